"""The section of the report about the agreement of the tasks."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest

from helpers.reports import make_run, plain, read
from mtfed.report.agreement import LIMITS, _colour, _layer_title, _limit

LAYERS = ("all", "encoder", *(f"encoder.body.blocks.{i}" for i in range(3)), "input.ct")


def add_agreement(run: Path, tasks: list[str], value: float, weighted: bool = False) -> Path:
    """Write the agreement of all pairs into ``rounds.jsonl``; each pair agrees a little more than the one before."""
    file = run / "rounds.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    figures = {
        f"{a}, {b}": dict.fromkeys(LAYERS, value + i / 100) for i, (a, b) in enumerate(combinations(sorted(tasks), 2))
    }
    for line in lines:
        line |= {"agreement": figures} | ({"weighted_agreement": figures} if weighted else {})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_two_tasks(tmp_path: Path) -> None:
    run = add_agreement(make_run(tmp_path / "a"), ["lungs", "pneumonia"], -0.12, weighted=True)
    page = read(run)
    text = plain(page)
    assert "Agreement of the tasks" in text and "Lungs and pneumonia: −0.12, weighted by precision −0.12" in text
    assert "Hospitals that have both tasks are left out" in text and "−0.20 opposite" in text
    assert ">block 2</text>" in page and ">input ct</text>" in page and ">round 1</text>" in page
    assert "rounds.jsonl contains all pairs" not in text


def test_nine_tasks_have_a_table_and_the_least_agreeing_pairs(tmp_path: Path) -> None:
    tasks = [f"task-{i}" for i in range(9)]
    page = read(add_agreement(make_run(tmp_path / "a", rounds=100), tasks, -0.1))
    text = plain(page)
    assert "The 6 pairs that agree least, by layer; rounds.jsonl contains all pairs" in text
    assert "Task 0 and task 1: −0.10" in text and "Task 7 and task 8" not in text
    assert "background:" in page and len(page) < 600_000


def test_runs_without_figures_have_no_section(tmp_path: Path) -> None:
    assert "Agreement of the tasks" not in plain(read(make_run(tmp_path / "a")))


def test_seeds_are_averaged_and_other_runs_are_folded(tmp_path: Path) -> None:
    tasks = ["lungs", "pneumonia"]
    runs = [add_agreement(make_run(tmp_path / f"a{s}", seed=s), tasks, s / 10) for s in (1, 2)]
    runs += [add_agreement(make_run(tmp_path / "b", "fedprox"), tasks, 0.4), make_run(tmp_path / "c", "bayesian")]
    text = plain(read(*runs))
    assert "Lungs and pneumonia: 0.15" in text
    assert "The same, FedProxLungs and pneumonia: 0.40" in text and "The same, Bayesian" not in text


@pytest.mark.parametrize(
    ("name", "title"), [("encoder.body.stages.2.blocks.0", "stages 2 block 0"), ("all", "all shared weights")]
)
def test_titles_of_layers(name: str, title: str) -> None:
    assert _layer_title(name) == title


def test_colours() -> None:
    assert _colour(0.0, 0.1) == "#ffffff"
    assert _colour(0.1, 0.1) == _colour(0.9, 0.1) != _colour(-0.1, 0.1)
    assert _limit([0.01] * 9 + [0.9]) == LIMITS[0] and _limit([1.0]) == 1.0
