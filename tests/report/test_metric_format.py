"""Words, digits and scales of metrics."""

from __future__ import annotations

import pytest

from mtfed.report.metric_format import digits, direction, metric_title, scale
from mtfed.tasks.specs import KIND_SPECS, METRIC_SPECS
from mtfed.tasks.task import Task


def test_every_metric_has_words_and_a_direction() -> None:
    assert METRIC_SPECS.keys() == {metric for spec in KIND_SPECS.values() for metric in spec.metrics}
    for metric, spec in METRIC_SPECS.items():
        assert metric_title(metric) == spec.title and spec.description
        assert bool(direction(metric)) == (not spec.higher_is_better)


DIGITS = [  # highest value of a regression, decimals of its mean absolute error
    (1, 3),
    (8, 3),
    (80, 2),
    (100, 1),
    (228, 1),
    (40_000, 0),
]


@pytest.mark.parametrize(("high", "expected"), DIGITS)
def test_errors_have_sensible_digits(high: float, expected: int) -> None:
    task = Task(name="t", kind="regression", classes=("a",), range=(0, high))
    assert (digits(task, "mae"), digits(task, "r2")) == (expected, 3)


SCALES = [  # points, metric, ends
    ([0.81, 0.86], "auc", (0.8, 0.9)),
    ([0.15, 0.3], "auc", (0.15, 0.3)),
    ([0.5], "auc", (0.45, 0.55)),
    ([-0.02, 0.4], "kappa", (-0.05, 0.4)),
    ([], "auc", (0, 1)),
    ([2.8, 31.4], "dose-score", (0, 35)),
    ([8.9, 9.4], "mae", (8.9, 9.4)),
    ([9.4], "mae", (9, 9.5)),
    ([0.0], "mae", (0, 0.5)),
    ([0.0], "ap50", (0, 0.05)),
    ([], "mae", (0, 1)),
]


@pytest.mark.parametrize(("points", "metric", "ends"), SCALES)
def test_scales_end_at_round_numbers(points: list[float], metric: str, ends: tuple[float, float]) -> None:
    assert scale(points, metric) == pytest.approx(ends)
