"""Every class by itself, present in an image or not, and perhaps not known of some images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..data.source import Source
from ..errors import MtfedError
from .additive import sum_metric
from .classification import BELOW_ONE, THRESHOLDS, focused
from .kind import Kind, Loss, Measure, sigmoid_signs
from .task import Task

if TYPE_CHECKING:
    from torchmetrics import Metric

DIGITS = {"0": 0, "1": 1, "?": -1}


def read_labels(cell: str, task: Task, source: Source) -> np.ndarray:
    """Return (K,) int64: 1 present, 0 absent, -1 not known.

    A cell names the classes that are present, "effusion; mass", or says "none", or gives 0, 1 or ? for each class.
    """
    words = [word.strip() for word in cell.split(";")]
    if cell.strip() == "none":
        return np.zeros(len(task.classes), np.int64)
    if len(words) == len(task.classes) and DIGITS.keys() >= set(words):
        values = np.array([DIGITS[word] for word in words], np.int64)
    elif set(task.classes) >= set(words):
        values = np.array([name in words for name in task.classes], np.int64)
    else:
        raise MtfedError(
            f"Image {source.where}: label {cell!r} of task {task.name} should name those of {', '.join(task.classes)} "
            f"that are present, or be 'none', or {len(task.classes)} of 0, 1 and ?, with ';' between them."
        )
    if (values < 0).all():
        raise MtfedError(
            f"Image {source.where}: label {cell!r} of task {task.name} knows of no class; leave the cell empty."
        )
    return values


def known_mean(terms: Tensor, known: Tensor) -> Tensor:
    """Return the mean over images of each one's mean over what is known of it.

    Args:
        terms: (M, K) or (M, K, ...).
        known: (M, K) bool.
    """
    terms = terms.flatten(2).mean(2) if terms.ndim > 2 else terms
    return (torch.where(known, terms, 0).sum(1) / known.sum(1).clamp(min=1)).mean()


def cross_entropy(task: Task, config: Config) -> Loss:
    """Return the binary cross-entropy over what is known."""

    def loss(logits: Tensor, values: Tensor) -> Tensor:
        known = values >= 0
        terms = F.binary_cross_entropy_with_logits(logits, values.clamp(min=0).to(logits), reduction="none")
        return known_mean(terms, known)

    return loss


def focal_terms(logits: Tensor, truth: Tensor, gamma: float) -> Tensor:
    """Return the focal loss (Lin et al., ICCV 2017) of every logit, without class weights."""
    return focused(F.binary_cross_entropy_with_logits(logits, truth, reduction="none"), gamma)


def focal(task: Task, config: Config) -> Loss:
    """Return the focal loss over what is known."""

    def loss(logits: Tensor, values: Tensor) -> Tensor:
        terms = focal_terms(logits, values.clamp(min=0).to(logits), config.focal_gamma)
        return known_mean(terms, values >= 0)

    return loss


def _auc(task: Task) -> Metric:
    shape = (len(task.classes), len(THRESHOLDS))
    return sum_metric(mean_area, True, true_positives=shape, false_positives=shape)


def mean_area(true_positives: Tensor, false_positives: Tensor) -> Tensor:
    """Return the mean area under the ROC curve, over the classes with positives and negatives; NaN where none has both.

    MedMNIST's AUC of several labels (Yang et al., Scientific Data 10:41, 2023). Counts (K, T) are those of scores at or
    above rising thresholds, the first of which is 0.
    """
    hits = true_positives / true_positives[:, :1]
    alarms = false_positives / false_positives[:, :1]
    return torch.trapezoid(hits.flip(1), alarms.flip(1)).nanmean()


def _curves(task: Task, logits: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    above = logits.sigmoid().clamp(max=BELOW_ONE)[..., None] >= THRESHOLDS.to(logits)  # (M, K, T)
    return tuple((above & (values == truth)[..., None]).sum(0) for truth in (1, 0))


def _accuracy(task: Task) -> Metric:
    shape = (len(task.classes),)
    return sum_metric(lambda right, known: (right / known).nanmean(), True, right=shape, known=shape)


def _right(task: Task, logits: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    return ((logits > 0).long() == values).sum(0), (values >= 0).sum(0)


def _signs(logits: Tensor, values: Tensor, task: Task) -> Tensor:
    known = values >= 0
    return sigmoid_signs(logits) * known / known.sum(1, keepdim=True).clamp(min=1).sqrt()


KIND = Kind(
    read=read_labels,
    signs=_signs,
    losses={"cross-entropy": cross_entropy, "focal": focal},
    measures={"auc": Measure(_auc, _curves), "accuracy": Measure(_accuracy, _right)},
    show=lambda logits, task: logits.sigmoid().numpy(),
)
