"""One of several classes for each image; a task with two classes is binary."""

from __future__ import annotations

import re

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import LabelError
from .curvature_factors import softmax_factor
from .kind import Kind, LabelSource, LossSettings, mean_metric
from .roc import auc_metric
from .task import Task

NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")


def class_index(cell: str, task: Task) -> int:
    """Return the index of a class given by name or, if no name is itself a number, by index."""
    if cell in task.classes:
        return task.classes.index(cell)
    numeric_names = any(NUMBER.fullmatch(name) for name in task.classes)
    if not numeric_names and cell.isdecimal() and int(cell) < len(task.classes):
        return int(cell)
    expected = ", ".join(task.classes) + ("" if numeric_names else f" or an index below {len(task.classes)}")
    raise LabelError(f"label {cell!r} of task {task.name} should be one of {expected}.", "class")


def read_class(cell: str, task: Task, source: LabelSource) -> np.ndarray:
    """Return a class index, () int64."""
    try:
        return np.asarray(class_index(cell, task), np.int64)
    except LabelError as error:
        raise LabelError(f"Image {source.where}: {error}", error.fault) from None


def class_counts(label: np.ndarray, task: Task, raw: np.ndarray | None) -> dict[str, int]:
    """Return the one class of an image."""
    return {task.classes[int(label)]: 1}


def class_shown(values: Tensor, task: Task) -> Tensor:
    """Return (M, K): an image's class."""
    return values[:, None] == torch.arange(len(task.classes))


def cross_entropy(task: Task, settings: LossSettings, logits: Tensor, values: Tensor) -> Tensor:
    """Return the cross-entropy of a softmax."""
    return F.cross_entropy(logits, values)


def focal(task: Task, settings: LossSettings, logits: Tensor, values: Tensor) -> Tensor:
    """Return the focal loss of a softmax without class weights: (1 - p)^gamma (-log p), mean over samples and pixels.

    Lin et al., ICCV 2017. MONAI's has no gradient at a power below one if p rounds to 1.
    """
    return focus(F.cross_entropy(logits, values, reduction="none"), settings.focal_gamma).mean()


def focus(terms: Tensor, gamma: float) -> Tensor:
    """Return terms -log p times (1 - p)^gamma."""
    wrong = (-torch.expm1(-terms)).clamp(min=torch.finfo(terms.dtype).tiny)  # at 0 a root has no gradient
    return wrong**gamma * terms


def is_binary(task: Task) -> bool:
    """Return whether a task has two classes; then only the second one is judged."""
    return len(task.classes) == 2


def scores_and_truth(task: Task, logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return class probabilities (M, K) and the true class as 1 among 0; for a binary task, only the second class."""
    first = 1 if is_binary(task) else 0
    return logits.softmax(1)[:, first:], class_shown(values, task)[:, first:]


def correct(task: Task, logits: Tensor, values: Tensor) -> Tensor:
    """Return (M,): whether the predicted class is the true one."""
    scores = logits.softmax(1)
    predicted = (scores[:, 1] > 0.5).long() if is_binary(task) else scores.argmax(1)
    return predicted == values


KIND = Kind(
    read=read_class,
    class_of=class_index,
    class_counts=class_counts,
    losses={"cross-entropy": cross_entropy, "focal": focal},
    metrics={
        "auc": auc_metric(lambda task: 1 if is_binary(task) else len(task.classes), scores_and_truth),
        "accuracy": mean_metric(correct),
    },
    curvature_factor=lambda logits, values, task: softmax_factor(logits),
    show=lambda logits, task: logits.softmax(1).numpy(),
    contents=class_shown,
)
