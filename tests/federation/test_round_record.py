"""The record of a round: sums of the sites' metrics, and forms of metrics that are left out."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from helpers.rounds import drift, one_round, same
from mtfed.federation.round_record import RoundRecord
from mtfed.learning.metrics import TaskMetrics, pool
from mtfed.strategies import TaskFedAvg
from mtfed.tasks.task import Task


@pytest.mark.parametrize(
    ("forms", "left"),  # of the metric of sites a, b and c
    [
        ([[1.0], 1.0, 1.0], "a"),
        ([1.0, [1.0], [1.0, 2.0]], "bc"),
        ([[1.0], [1.0, 2.0], [1.0, 2.0]], "a"),
        ([1.0, 1.0, 1.0], ""),
        ([None, 1.0, 1.0], ""),
    ],
)
def test_metrics_of_an_unusual_form_are_left_out(forms: list, left: str) -> None:
    def answer(key: str, message: Message) -> RecordDict:
        given, form = drift(key, message), forms["abc".index(key)]
        if form is not None:
            given["metrics"]["loss-sum.x"] = form
        return given

    strategy, samples = TaskFedAvg(), {"a": 10, "b": 3, "c": 45}
    merged, metrics, grid = one_round(strategy, answer)
    # The weights of all sites are merged.
    assert same(merged, one_round(TaskFedAvg(), drift)[0]) and not strategy.failures
    assert metrics["num-examples"] == sum(n for key, n in samples.items() if key not in left)
    messages = strategy.configure_evaluate(1, merged, ConfigRecord(), grid)
    assert strategy.aggregate_evaluate(1, grid.send_and_receive(messages)) == metrics
    assert "".join(failure.site for failure in strategy.failures) == left
    result = strategy.evaluate_result
    assert (result.server_round, result.asked, result.answered) == (1, 3, 3 - len(left))
    assert result.site_metrics.keys() == set("abc") - set(left) and list(result.failures) == strategy.failures


def test_sums_of_another_form_give_no_values() -> None:
    task = Task(name="x", kind="classification", classes=("a", "b"))
    sums = TaskMetrics(task).sums() | {"x.count": 3}
    (name, *_) = [name for name, value in sums.items() if isinstance(value, list) and len(value) > 1]
    assert pool([task], sums).keys() == {"x"}
    for wrong in ({name: [1.0]}, {name: 1.0}, {"x.count": [3.0]}):
        assert not pool([task], sums | wrong)
    trained = {"seen.x": 2, "loss-sum.x": 3.0, "seen.y": [2], "loss-sum.y": 3.0}
    assert RoundRecord(1, 0.1, trained=trained).losses == {"x": 1.5}
    assert np.isnan(RoundRecord(1, 0.1, trained={"seen.x": 2, "loss-sum.x": [3.0]}).losses["x"])
