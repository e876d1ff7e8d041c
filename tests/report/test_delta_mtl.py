"""Delta_MTL against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from mtfed.errors import MtfedError
from mtfed.report.delta_mtl import delta_mtl

SINGLE = {"lungs": {"dice": 0.8, "iou": 0.5}, "age": {"mae": 10.0, "r2": 0.4}}


@pytest.mark.parametrize(
    ("multi", "percent"),
    [
        (SINGLE, 0.0),
        ({"lungs": {"dice": 0.88}}, 10.0),
        ({"lungs": {"dice": 0.72}}, -10.0),
        ({"age": {"mae": 9.0}}, 10.0),  # an error that falls is a gain
        ({"age": {"mae": 12.0}}, -20.0),
        ({"age": {"mae": 0.0}}, 100.0),
        ({"lungs": {"dice": 0.88, "iou": 0.6}}, 15.0),  # the mean over a task's metrics
        ({"lungs": {"dice": 0.88, "iou": 0.6}, "age": {"mae": 9.5}}, 10.0),  # and over tasks, however many metrics
        ({"lungs": {"dice": 0.88}, "age": {"mae": 11.0, "r2": 0.4}}, 2.5),
    ],
)
def test_gains(multi: dict, percent: float) -> None:
    assert delta_mtl(multi, SINGLE) == pytest.approx(percent)


def test_directions_can_be_given() -> None:
    assert delta_mtl({"lungs": {"dice": 0.88}}, SINGLE, {"dice"}) == pytest.approx(-10)


@pytest.mark.parametrize(
    ("multi", "single", "sentence"),
    [
        ({}, SINGLE, "expected at least one metric for every task, got none"),
        ({"lungs": {}}, SINGLE, "expected at least one metric for every task, got none"),
        (
            {"heart": {"dice": 0.8}},
            SINGLE,
            "expected a single-task figure for 'heart', got lungs, age; train this task by itself",
        ),
        ({"heart": {"dice": 0.8}}, {}, "for 'heart', got none"),
        ({"age": {"auc": 0.8}}, SINGLE, "expected a single-task 'auc' for 'age', got mae, r2; use the same metrics"),
        ({"age": {"mae": 1.0}}, {"age": {"mae": 0.0}}, "'mae' of 'age', the single-task one above 0, got 1 after 0"),
        ({"age": {"r2": 0.1}}, {"age": {"r2": -0.5}}, "got 0.1 after -0.5; leave this metric out"),
        ({"age": {"r2": math.nan}}, SINGLE, "got nan after 0.4"),
        ({"age": {"r2": 0.3}}, {"age": {"r2": math.nan}}, "got 0.3 after nan"),
    ],
)
def test_what_cannot_be_compared_is_refused(multi: dict, single: dict, sentence: str) -> None:
    with pytest.raises(MtfedError, match=sentence):
        delta_mtl(multi, single)
