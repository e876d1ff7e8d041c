"""Classification: metrics against torchmetrics."""

from __future__ import annotations

import pytest
import torch

from helpers.references import (
    binary_accuracy,
    binary_auroc,
    compute,
    declare,
    multiclass_accuracy,
    multiclass_auroc,
)
from mtfed.tasks.roc import BELOW_ONE, THRESHOLDS


def test_metrics_of_two_classes_agree_with_torchmetrics() -> None:
    logits, values = 3 * torch.randn(300, 2), torch.randint(2, (300,))
    scores = logits.softmax(1)[:, 1].clamp(max=BELOW_ONE)
    assert compute(declare("classification", 2), logits, values) == {
        "auc": pytest.approx(float(binary_auroc(scores, values, thresholds=THRESHOLDS)), abs=1e-6),
        "accuracy": pytest.approx(float(binary_accuracy(scores, values)), abs=1e-6),
    }


@pytest.mark.parametrize("classes", [3, 5])
def test_metrics_of_several_classes_agree_with_torchmetrics(classes: int) -> None:
    logits, values = 3 * torch.randn(300, classes), torch.randint(classes, (300,))
    scores = logits.softmax(1).clamp(max=BELOW_ONE)
    assert compute(declare("classification", classes), logits, values) == {
        "auc": pytest.approx(
            float(multiclass_auroc(scores, values, classes, thresholds=THRESHOLDS)),
            abs=1e-6,
        ),
        "accuracy": pytest.approx(float(multiclass_accuracy(scores, values, classes, average="micro")), abs=1e-6),
    }
