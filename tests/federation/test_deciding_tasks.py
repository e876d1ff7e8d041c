"""Tasks without labels choose no round, and they alone do not keep a training going, if there are tasks with labels."""

from __future__ import annotations

import pytest

from helpers import mtfed, only_run, pairs


@pytest.mark.parametrize("per_task", [False, True])
def test_training_stops_with_the_tasks_that_have_labels(small: dict, per_task: bool) -> None:
    config = small | {"rounds": 8, "patience": 1, "stop-per-task": per_task, "learning-rate": 1e-9, "evaluate-every": 1}
    config |= {"task.views.kind": "views", "task.orientation.kind": "orientation", "unlabelled": 0.4}
    result = mtfed("simulate", "--num-supernodes", 3, *pairs(config))
    assert result.returncode == 0, result.stderr
    assert "1 of 3 sites have no labels and train only the tasks that need none: hospital-" in result.stdout
    run = only_run(small["out"])
    assert run.read_json("summary.json")["stopped"] == "no improvement in 1 evaluations"
    assert len(run.lines("rounds.jsonl")) < 8
    cards = {frozenset(card["tasks"]) for card in run.read_json("sites.json")}
    assert frozenset({"views", "orientation"}) in cards
    assert {line["task"] for line in run.lines("metrics.jsonl")} == {"lungs", "pneumonia", "views", "orientation"}
