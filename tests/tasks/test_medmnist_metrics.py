"""AUC and accuracy as the evaluator of the medmnist package defines them (Yang et al., Scientific Data 10:41, 2023)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.task_metrics import filled, task_of
from mtfed.tasks.ordinal import class_probabilities

TOLERANCE = 0.005  # of an AUC, because scores between two thresholds count as equal


def pair_auc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of pairs of a positive and a negative in order; ties count half."""
    pairs = scores[truth == 1][:, None] - scores[truth == 0][None]
    return float(np.mean((pairs > 0) + 0.5 * (pairs == 0)))


def medmnist_metrics(scores: np.ndarray, values: np.ndarray, task: str) -> tuple[float, float]:
    """Return AUC and accuracy of scores (M, K) for labels (M,) or, if there are several, (M, K)."""
    if task == "multi-label":
        columns = range(scores.shape[1])
        auc = np.mean([pair_auc(scores[:, k], values[:, k]) for k in columns])
        return float(auc), float(np.mean([np.mean((scores[:, k] > 0.5) == values[:, k]) for k in columns]))
    if task == "binary-class":
        return pair_auc(scores[:, -1], values), float(np.mean((scores[:, -1] > 0.5) == values))
    auc = np.mean([pair_auc(scores[:, k], values == k) for k in range(scores.shape[1])])
    return float(auc), float(np.mean(scores.argmax(1) == values))


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_classification_is_judged_as_medmnist_does(classes: int) -> None:
    values = torch.randint(classes, (600,))
    logits = torch.randn(600, classes) + torch.eye(classes)[values]
    expected = medmnist_metrics(logits.softmax(1).numpy(), values.numpy(), "binary-class" if classes == 2 else "multi")
    metrics = filled(task_of("classification", classes), (logits, values)).compute()
    assert metrics["auc"] == pytest.approx(expected[0], abs=TOLERANCE)
    assert metrics["accuracy"] == pytest.approx(expected[1], abs=1e-6)


def test_several_labels_are_judged_as_medmnist_does() -> None:
    values = (torch.rand(400, 8) < 0.2).long()
    logits = torch.randn(400, 8) + values - 1
    expected = medmnist_metrics(logits.sigmoid().numpy(), values.numpy(), "multi-label")
    metrics = filled(task_of("multi-label", 8), (logits, values)).compute()
    assert metrics["auc"] == pytest.approx(expected[0], abs=TOLERANCE)
    assert metrics["accuracy"] == pytest.approx(expected[1], abs=1e-6)


@pytest.mark.parametrize("classes", [2, 5])
def test_the_auc_of_ordered_classes_is_that_of_medmnist(classes: int) -> None:
    values = torch.randint(classes, (600,))
    logits = values[:, None] - torch.arange(classes - 1) - 0.5 + torch.randn(600, 1)
    scores = class_probabilities(logits)
    expected = medmnist_metrics(scores.numpy(), values.numpy(), "ordinal-regression")
    metrics = filled(task_of("ordinal", classes), (logits, values)).compute()
    assert metrics["auc"] == pytest.approx(expected[0], abs=TOLERANCE)
    # The accuracy is that of CORAL's class, the number of thresholds exceeded, not of the most probable class.
    assert metrics["accuracy"] == pytest.approx(float(((logits > 0).sum(1) == values).float().mean()), abs=1e-6)
    if classes == 2:
        assert metrics["accuracy"] == pytest.approx(expected[1], abs=1e-6)
