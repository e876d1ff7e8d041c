"""Regression: cells, losses, curvature and metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from helpers.kind_checks import (
    Reference,
    check_cell,
    check_curvature,
    check_directions,
    check_invalid_cell,
    check_loss,
    check_metrics,
    computed,
    over_known,
    shown,
)
from helpers.kinds import (
    AGE,
    AXES,
)
from helpers.references import compute, declare, torchmetrics
from mtfed.tasks.task import Task

CELLS = [
    (AGE, "61.5", [61.5]),
    (AXES, "2.3; -1", [2.3, -1]),
    (AXES, "?; 40", [np.nan, 40]),
]
INVALID_CELLS = [
    (AGE, "old", r"p\.png of site north: label 'old' of task age should be 1 numbers or \?"),
    (AGE, "61,5", "label '61,5'"),
    (AGE, "nan", "label 'nan'"),
    (AGE, "inf", "label 'inf'"),
    (AGE, "1; 2", "should be 1 numbers"),
    (AXES, "1", r"should be 2 numbers or \?, with ';' between them: long, short"),
    (AXES, "?; ?", "contains no number; leave the cell empty"),
    (AGE, "610", r"p\.png of site north: label '610' of task age is outside the task's range, 0 to 120; correct one"),
    (AXES, "?; -11", "outside the task's range, -10 to 40"),
]


@pytest.mark.parametrize(("task", "cell", "label"), CELLS)
def test_a_cell_becomes_a_label(task: Task, cell: str, label: Any) -> None:
    check_cell(task, cell, label)


@pytest.mark.parametrize(("task", "cell", "message"), INVALID_CELLS)
def test_an_invalid_cell_is_refused(task: Task, cell: str, message: str) -> None:
    check_invalid_cell(task, cell, message)


LOSSES = {
    "l1": over_known(abs),
    "mse": over_known(lambda d: d * d),
    "huber": over_known(lambda d: d * d / 0.2 if abs(d) < 0.1 else abs(d) - 0.05),
}


@pytest.mark.parametrize("term", AXES.spec.losses)
def test_losses_agree_with_their_definitions(term: str) -> None:
    check_loss(AXES, term, LOSSES[term])


def test_the_square_of_the_factor_is_the_curvature() -> None:
    check_curvature(AXES, "mse", 2)


def slow_mae(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    low, high = task.range
    return float(np.nanmean(abs(outputs * (high - low) + low - values)))


def slow_r2(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    low, high = task.range
    scores = []
    for output, value in zip((outputs * (high - low) + low).T, values.astype(float).T, strict=True):
        known = ~np.isnan(value)
        spread = ((value[known] - value[known].mean()) ** 2).sum()
        scores.append(1 - ((output[known] - value[known]) ** 2).sum() / spread)
    return float(np.mean(scores))


METRICS: dict[str, Reference] = {"mae": slow_mae, "r2": slow_r2}


@pytest.mark.parametrize("task", [AGE, AXES])
def test_metrics_of_two_sites_add_up_to_the_pooled_reference(task: Task) -> None:
    check_metrics(task, METRICS)


@pytest.mark.parametrize("task", [AGE, AXES])
def test_the_spec_contains_the_direction_of_every_metric(task: Task) -> None:
    check_directions(task)


def test_r2_of_equal_values_is_nan() -> None:
    metrics = computed(AGE, torch.rand(3, 1), torch.full((3, 1), 50.3))
    assert np.isnan(metrics["r2"]) and metrics["mae"] > 0


def test_the_record_contains_numbers_in_the_units_of_the_range() -> None:
    assert shown(AGE).shape == (9, 1) and shown(AXES).shape == (9, 2)
    np.testing.assert_allclose(shown(AXES, torch.tensor([[0.5, 1.0]])), [[15, 40]])


def test_metrics_agree_with_torchmetrics() -> None:
    outputs, values = torch.rand(60, 2), 4 * torch.rand(60, 2) - 1
    predicted = 4 * outputs - 1
    assert compute(declare("regression", 2, range=(-1, 3)), outputs, values) == {
        "mae": pytest.approx(float(torchmetrics.mean_absolute_error(predicted, values)), abs=1e-6),
        "r2": pytest.approx(float(torchmetrics.r2_score(predicted, values)), abs=1e-5),
    }
