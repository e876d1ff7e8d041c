"""Ordinal classification: cells, loss, curvature and metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from helpers.kind_checks import (
    Reference,
    bernoulli,
    check_cell,
    check_curvature,
    check_directions,
    check_invalid_cell,
    check_loss,
    check_metrics,
    check_no_loss,
    shown,
)
from helpers.kinds import (
    GRADE,
    NUMBERED,
    sigmoid,
)
from helpers.references import (
    compute,
    declare,
    multiclass_accuracy,
    multiclass_auroc,
    multiclass_cohen_kappa,
    torchmetrics,
)
from mtfed.tasks.ordinal import class_probabilities, predicted_class
from mtfed.tasks.roc import THRESHOLDS
from mtfed.tasks.task import Task

CELLS = [
    (GRADE, "mild", 1),
    (GRADE, "none", 0),
    (GRADE, "3", 3),
    (NUMBERED, "4", 3),
    (NUMBERED, "1", 0),
]
INVALID_CELLS = [
    (
        GRADE,
        "awful",
        r"p\.png of site north: label 'awful' of task grade should be one of none, mild, moderate, severe",
    ),
    (GRADE, "4", "or an index below 4"),
    (GRADE, "²", "or an index below 4"),
    (NUMBERED, "0", "label '0' of task birads should be one of 1, 2, 3, 4.$"),  # an index would be another class
    (NUMBERED.model_copy(update={"classes": ("1.0", "2.0")}), "1", "should be one of 1.0, 2.0.$"),
]


@pytest.mark.parametrize(("task", "cell", "label"), CELLS)
def test_a_cell_becomes_a_label(task: Task, cell: str, label: Any) -> None:
    check_cell(task, cell, label)


@pytest.mark.parametrize(("task", "cell", "message"), INVALID_CELLS)
def test_an_invalid_cell_is_refused(task: Task, cell: str, message: str) -> None:
    check_invalid_cell(task, cell, message)


def cumulative(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    each = [sum(bernoulli(o, v > k) for k, o in enumerate(output)) for output, v in zip(outputs, values, strict=True)]
    return float(np.mean(each))


LOSSES = {"coral": cumulative}


@pytest.mark.parametrize("term", GRADE.spec.losses)
def test_losses_agree_with_their_definitions(term: str) -> None:
    check_loss(GRADE, term, LOSSES[term])


def test_the_square_of_the_factor_is_the_curvature() -> None:
    check_curvature(GRADE, "coral", 1)


def test_a_confident_correct_prediction_has_no_loss() -> None:
    check_no_loss(GRADE, "coral", torch.tensor([[100.0, 100.0, -100.0]]), torch.tensor([2]))


def slow_kappa(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    predicted, count = (outputs > 0).sum(1), len(task.classes)
    observed, expected = 0.0, 0.0
    for i in range(count):
        for j in range(count):
            observed += (i - j) ** 2 * np.mean((predicted == i) & (values == j))
            expected += (i - j) ** 2 * np.mean(predicted == i) * np.mean(values == j)
    return 1 - observed / expected


def slow_auc(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    scores = class_probabilities(torch.from_numpy(outputs))
    bins = np.searchsorted(THRESHOLDS.numpy(), scores.numpy(), side="right")  # scores within a bin are ties
    pairs = [bins[values == k, k][:, None] - bins[values != k, k] for k in range(len(task.classes))]
    return float(np.mean([np.mean((pair > 0) + 0.5 * (pair == 0)) for pair in pairs]))


METRICS: dict[str, Reference] = {
    "kappa": slow_kappa,
    "mae": lambda outputs, values, task: float(np.mean(abs((outputs > 0).sum(1) - values))),
    "accuracy": lambda outputs, values, task: float(np.mean((outputs > 0).sum(1) == values)),
    "auc": slow_auc,
}


def test_metrics_of_two_sites_add_up_to_the_pooled_reference() -> None:
    check_metrics(GRADE, METRICS)


def test_the_spec_contains_the_direction_of_every_metric() -> None:
    check_directions(GRADE)


def test_the_record_contains_the_probability_of_each_class() -> None:
    assert shown(GRADE).shape == (9, 4)
    np.testing.assert_allclose(shown(GRADE).sum(1), 1, rtol=1e-6)
    falling = torch.tensor([[2.0, 0.0, -1.0]])
    expected = -np.diff([1, *sigmoid(falling[0].numpy()), 0])
    np.testing.assert_allclose(shown(GRADE, falling)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("classes", [2, 5])
def test_metrics_agree_with_torchmetrics(classes: int) -> None:
    logits, values = torch.randn(200, classes - 1), torch.randint(classes, (200,))
    predicted = predicted_class(logits)
    assert compute(declare("ordinal", classes), logits, values) == {
        "kappa": pytest.approx(float(multiclass_cohen_kappa(predicted, values, classes, "quadratic")), abs=1e-6),
        "mae": pytest.approx(float(torchmetrics.mean_absolute_error(predicted.float(), values.float())), abs=1e-6),
        "accuracy": pytest.approx(
            float(multiclass_accuracy(predicted, values, classes, average="micro")),
            abs=1e-6,
        ),
        "auc": pytest.approx(
            float(multiclass_auroc(class_probabilities(logits), values, classes, thresholds=THRESHOLDS)), abs=1e-6
        ),
    }
