"""Multi-label classification: cells, losses, curvature and metrics."""

from __future__ import annotations

from functools import partial
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
    check_no_loss,
    computed,
    entropy,
    shown,
)
from helpers.kinds import (
    FINDINGS,
)
from helpers.references import compute, declare, multilabel_accuracy, multilabel_auroc
from mtfed.tasks.roc import BELOW_ONE, THRESHOLDS
from mtfed.tasks.task import Task

CELLS = [
    ("mass", [0, 1, 0]),
    ("nodule; effusion", [1, 0, 1]),
    ("none", [0, 0, 0]),
    ("1;0;?", [1, 0, -1]),
    ("? ; ? ; 1", [-1, -1, 1]),
]
INVALID_CELLS = [
    ("heart", r"Image p\.png of site north: label 'heart' of task findings should name those of effusion, "),
    ("mass; ", "that are present, or be 'none', or 3 of 0, 1 and"),
    ("1;0", "3 of 0, 1 and"),
    ("1;0;2", "label '1;0;2'"),
    ("none; mass", "label 'none; mass'"),
    ("?;?;?", "contains no known class; leave the cell empty"),
]


@pytest.mark.parametrize(("cell", "label"), CELLS)
def test_a_cell_becomes_a_label(cell: str, label: Any) -> None:
    check_cell(FINDINGS, cell, label)


@pytest.mark.parametrize(("cell", "message"), INVALID_CELLS)
def test_an_invalid_cell_is_refused(cell: str, message: str) -> None:
    check_invalid_cell(FINDINGS, cell, message)


LOSSES = {"cross-entropy": entropy, "focal": partial(entropy, gamma=1.5)}


@pytest.mark.parametrize("term", FINDINGS.spec.losses)
def test_losses_agree_with_their_definitions(term: str) -> None:
    check_loss(FINDINGS, term, LOSSES[term])


def test_the_square_of_the_factor_is_the_curvature() -> None:
    check_curvature(FINDINGS, "cross-entropy", 1)


def test_a_confident_correct_prediction_has_no_loss() -> None:
    check_no_loss(FINDINGS, "focal", torch.tensor([[100.0, -100.0, 3.0]]), torch.tensor([[1, 0, -1]]))


def slow_auc(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    bins = np.floor(np.arcsinh(outputs * np.sinh(4.5) / 16) / (4.5 / 64)).clip(-64, 63)  # ties within a bin
    areas = []
    for score, truth in zip(bins.T, values.T, strict=True):
        pairs = [np.sign(p - n) / 2 + 0.5 for p in score[truth == 1] for n in score[truth == 0]]
        areas += [np.mean(pairs)] if pairs else []
    return float(np.mean(areas))


def slow_accuracy(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    columns = zip(outputs.T, values.T, strict=True)
    return float(np.mean([np.mean((o > 0)[v >= 0] == v[v >= 0]) for o, v in columns if (v >= 0).any()]))


METRICS: dict[str, Reference] = {"auc": slow_auc, "accuracy": slow_accuracy}


def test_metrics_of_two_sites_add_up_to_the_pooled_reference() -> None:
    check_metrics(FINDINGS, METRICS)


def test_the_spec_contains_the_direction_of_every_metric() -> None:
    check_directions(FINDINGS)


def test_the_auc_of_one_class_is_nan() -> None:
    outputs, values = torch.randn(4, 3), torch.tensor([[1, 0, -1]] * 4)
    metrics = computed(FINDINGS, outputs, values)
    assert np.isnan(metrics["auc"]) and 0 <= metrics["accuracy"] <= 1
    values[0, 0] = 0  # now the first class has both
    assert 0 <= computed(FINDINGS, outputs, values)["auc"] <= 1


def test_the_record_contains_a_number_for_each_class() -> None:
    assert shown(FINDINGS).shape == (9, 3)


def test_metrics_agree_with_torchmetrics() -> None:
    logits, values = torch.randn(200, 4), torch.randint(2, (200, 4))
    scores = logits.sigmoid().clamp(max=BELOW_ONE)
    assert compute(declare("multi-label", 4), logits, values) == {
        "auc": pytest.approx(float(multilabel_auroc(scores, values, 4, thresholds=THRESHOLDS)), abs=1e-6),
        "accuracy": pytest.approx(float(multilabel_accuracy(scores, values, 4)), abs=1e-6),
    }
