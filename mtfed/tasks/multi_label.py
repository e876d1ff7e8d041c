"""Several classes that are present in an image or not, independently; some may not be known."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import LabelError
from .classification import focus
from .curvature_factors import sigmoid_factor
from .kind import AdditiveMetric, Kind, LabelSource, LossSettings
from .roc import auc_metric
from .task import Task

DIGITS = {"0": 0, "1": 1, "?": -1}


def read_labels(cell: str, task: Task, source: LabelSource) -> np.ndarray:
    """Return (K,) int64: 1 present, 0 absent, -1 not known.

    A cell names the classes that are present, "effusion; mass", or is "none", or contains 0, 1 or ? for each class.
    """
    words = [word.strip() for word in cell.split(";")]
    if cell.strip() == "none":
        return np.zeros(len(task.classes), np.int64)
    if len(words) == len(task.classes) and DIGITS.keys() >= set(words):
        values = np.array([DIGITS[word] for word in words], np.int64)
    elif set(task.classes) >= set(words):
        values = np.array([name in words for name in task.classes], np.int64)
    else:
        raise LabelError(
            f"Image {source.where}: label {cell!r} of task {task.name} should name those of {', '.join(task.classes)} "
            f"that are present, or be 'none', or {len(task.classes)} of 0, 1 and ?, with ';' between them.",
            "class",
        )
    if (values < 0).all():
        label = f"label {cell!r} of task {task.name}"
        raise LabelError(f"Image {source.where}: {label} contains no known class; leave the cell empty.", "class")
    return values


def class_counts(label: np.ndarray, task: Task, raw: np.ndarray | None) -> dict[str, int]:
    """Return the classes that are present."""
    return {name: 1 for name, value in zip(task.classes, label, strict=True) if value == 1}


def known_mean(terms: Tensor, known: Tensor) -> Tensor:
    """Return the mean over images of the mean over what is known of each image.

    Args:
        terms: (M, K) or (M, K, ...).
        known: (M, K) bool.
    """
    terms = terms.flatten(2).mean(2) if terms.ndim > 2 else terms
    return (torch.where(known, terms, 0).sum(1) / known.sum(1).clamp(min=1)).mean()


def cross_entropy(task: Task, settings: LossSettings, logits: Tensor, values: Tensor) -> Tensor:
    """Return the binary cross-entropy over what is known."""
    terms = F.binary_cross_entropy_with_logits(logits, values.clamp(min=0).to(logits), reduction="none")
    return known_mean(terms, values >= 0)


def focal_terms(logits: Tensor, truth: Tensor, gamma: float) -> Tensor:
    """Return the focal loss (Lin et al., ICCV 2017) of every logit, without class weights."""
    return focus(F.binary_cross_entropy_with_logits(logits, truth, reduction="none"), gamma)


def focal(task: Task, settings: LossSettings, logits: Tensor, values: Tensor) -> Tensor:
    """Return the focal loss over what is known."""
    terms = focal_terms(logits, values.clamp(min=0).to(logits), settings.focal_gamma)
    return known_mean(terms, values >= 0)


def _count_correct(task: Task, logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many labels of each class are judged correctly, and how many are known."""
    return ((logits > 0).long() == values).sum(0), (values >= 0).sum(0)


def _curvature_factor(logits: Tensor, values: Tensor, task: Task) -> Tensor:
    known = values >= 0
    return sigmoid_factor(logits) * known / known.sum(1, keepdim=True).clamp(min=1).sqrt()


KIND = Kind(
    read=read_labels,
    class_counts=class_counts,
    losses={"cross-entropy": cross_entropy, "focal": focal},
    metrics={
        "auc": auc_metric(lambda task: len(task.classes), lambda task, logits, values: (logits.sigmoid(), values)),
        "accuracy": AdditiveMetric(
            lambda task: dict.fromkeys(("correct", "known"), (len(task.classes),)),
            _count_correct,
            lambda correct, known: (correct / known).nanmean(),
        ),
    },
    curvature_factor=_curvature_factor,
    show=lambda logits, task: logits.sigmoid().numpy(),
    contents=lambda values, task: values == 1,
)
