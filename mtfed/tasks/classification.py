"""One of several classes an image; two make it a binary task."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..data.source import Source
from ..errors import MtfedError
from ..lean import lean_import
from .kind import Kind, Loss, Measure, softmax_signs
from .task import Task

if TYPE_CHECKING:
    from torchmetrics import Metric

# AUC from a curve at fixed thresholds, spaced by the size of the logit: a model that is hardly trained has all its
# scores close to 0.5, a confident one tells scores apart that are all but 0 or 1. Without 0 and 1 a curve would end
# before its corners. The more thresholds, the more single scores a small site's counts would tell.
LOGITS = torch.sinh(torch.linspace(-4.5, 4.5, 129)) * (16 / math.sinh(4.5))  # 0.025 apart at 0, 0.2 at 3, 1.1 at 16
THRESHOLDS = torch.cat([torch.zeros(1), torch.sigmoid(LOGITS), torch.ones(1)])
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
BELOW_ONE = 1 - 2**-24  # the next number of float32: a score of 1 itself would leave no threshold above it


def class_index(cell: str, task: Task) -> int:
    """Return the index of a class given by name or, where no name is itself a number, by index."""
    if cell in task.classes:
        return task.classes.index(cell)
    by_name = any(NUMBER.fullmatch(name) for name in task.classes)
    if not by_name and cell.isdecimal() and int(cell) < len(task.classes):
        return int(cell)
    more = "" if by_name else f" or an index below {len(task.classes)}"
    raise MtfedError(f"label {cell!r} of task {task.name} should be one of {', '.join(task.classes)}{more}.")


def read_class(cell: str, task: Task, source: Source) -> np.ndarray:
    """Return a class index, () int64."""
    try:
        return np.asarray(class_index(cell, task), np.int64)
    except MtfedError as error:
        raise MtfedError(f"Image {source.where}: {error}") from None


def cross_entropy(task: Task, config: Config) -> Loss:
    """Return the cross-entropy of a softmax."""
    return F.cross_entropy


def focal(task: Task, config: Config) -> Loss:
    """Return the focal loss of a softmax without class weights: (1 - p)^gamma (-log p), mean over samples and pixels.

    Lin et al., ICCV 2017. MONAI's has no gradient at a power below one where p rounds to 1.
    """

    def loss(logits: Tensor, values: Tensor) -> Tensor:
        return focused(F.cross_entropy(logits, values, reduction="none"), config.focal_gamma).mean()

    return loss


def focused(terms: Tensor, gamma: float) -> Tensor:
    """Return terms -log p times (1 - p)^gamma."""
    wrong = (-torch.expm1(-terms)).clamp(min=torch.finfo(terms.dtype).tiny)  # at 0 a root has no gradient
    return wrong**gamma * terms


def class_metric(name: str, task: Task, **settings: object) -> Metric:
    """Return torchmetrics' metric for two classes or for several."""
    classification = lean_import("torchmetrics.classification")
    if len(task.classes) == 2:
        return getattr(classification, f"Binary{name}")(**settings)
    return getattr(classification, f"Multiclass{name}")(num_classes=len(task.classes), **settings)


def _auc(task: Task) -> Metric:
    return class_metric("AUROC", task, thresholds=THRESHOLDS)


def _accuracy(task: Task) -> Metric:
    return class_metric("Accuracy", task, **({} if len(task.classes) == 2 else {"average": "micro"}))


def _scores(task: Task, logits: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    """Return class probabilities, of two classes only the second's, and the labels."""
    scores = logits.float().softmax(1).clamp(max=BELOW_ONE)
    return (scores[:, 1] if len(task.classes) == 2 else scores), values


KIND = Kind(
    read=read_class,
    signs=lambda logits, values, task: softmax_signs(logits),
    losses={"cross-entropy": cross_entropy, "focal": focal},
    measures={"auc": Measure(_auc, _scores), "accuracy": Measure(_accuracy, _scores)},
    show=lambda logits, task: logits.softmax(1).numpy(),
    class_of=class_index,
)
