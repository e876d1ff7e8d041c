"""torchmetrics and MONAI as references for metrics and losses; the product does not need them for these."""

from __future__ import annotations

import torch
from torch import Tensor

from mtfed.learning.metrics import TaskMetrics
from mtfed.startup import import_torchvision
from mtfed.tasks import Task

import_torchvision()  # repaired, before both libraries import it

from monai.losses import DiceLoss  # noqa: E402
from monai.metrics import compute_dice, compute_iou  # noqa: E402
from torchmetrics import functional as torchmetrics  # noqa: E402
from torchmetrics.functional.classification import (  # noqa: E402
    binary_accuracy,
    binary_auroc,
    multiclass_accuracy,
    multiclass_auroc,
    multiclass_cohen_kappa,
    multilabel_accuracy,
    multilabel_auroc,
)

__all__ = [
    "DiceLoss",
    "binary_accuracy",
    "binary_auroc",
    "compute",
    "compute_dice",
    "compute_iou",
    "declare",
    "multiclass_accuracy",
    "multiclass_auroc",
    "multiclass_cohen_kappa",
    "multilabel_accuracy",
    "multilabel_auroc",
    "torchmetrics",
]

NAMES = ("a", "b", "c", "d", "e")


def declare(kind: str, classes: int, **fields: object) -> Task:
    return Task(name="t", kind=kind, classes=NAMES[:classes], **fields)


def compute(task: Task, outputs: Tensor, values: Tensor) -> dict[str, float]:
    """Return the metrics of two batches."""
    metrics = TaskMetrics(task)
    for part in torch.arange(len(values)).tensor_split(2):
        metrics.update(outputs[part], values[part])
    return metrics.compute()
