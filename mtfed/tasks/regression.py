"""One or several numbers for each image, each within the task's range.

The sums of R² contain those of the true numbers and of their squares; for a single image they are its label. So a site
sends them only for quantities that are known for :data:`MIN_IMAGES` validation images or more. With fewer images
they are sent as zero, and R² over all sites leaves them out. The server's own test images always count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import LabelError
from .curvature_factors import random_signs
from .kind import AdditiveMetric, Kind, LabelSource, LossSettings, mean_metric
from .multi_label import known_mean
from .task import Task

MIN_IMAGES = 5  # minimum of images for the sums of R²
MOMENTS = ("count", "total", "squares", "residual")  # the sums of R², by quantity
HUBER_WIDTH = 0.1  # share of the range; larger errors count linearly in Huber's loss
GROUPS = 4  # groups into which the record divides the images, by the mean of their numbers
TERMS: dict[str, Callable[..., Tensor]] = {
    # Divided by the width, so that the slope becomes that of l1.
    "huber": partial(F.smooth_l1_loss, beta=HUBER_WIDTH),
    "l1": F.l1_loss,
    "mse": F.mse_loss,
}


def read_numbers(cell: str, task: Task, source: LabelSource) -> np.ndarray:
    """Return (K,) float32, NaN if a number is not known, of a cell such as "2.3", or "2.3; ?" for two quantities."""
    words = [word.strip() for word in cell.split(";")]
    try:
        values = [math.nan if word == "?" else float(word) for word in words]
    except ValueError:
        values = []
    known, label = [value for value in values if math.isfinite(value)], f"label {cell!r} of task {task.name}"
    if len(values) != len(task.classes) or len(known) + words.count("?") != len(task.classes):
        expected = f"{len(task.classes)} numbers or ?, with ';' between them: {', '.join(task.classes)}"
        raise LabelError(f"Image {source.where}: {label} should be {expected}.")
    if not known:
        raise LabelError(f"Image {source.where}: {label} contains no number; leave the cell empty.")
    low, high = task.range
    if not low <= min(known) <= max(known) <= high:
        interval = f"the task's range, {low:g} to {high:g}"
        raise LabelError(f"Image {source.where}: {label} is outside {interval}; correct one of them.", "range")
    return np.array(values, np.float32)


def _class_counts(label: np.ndarray, task: Task, raw: np.ndarray | None) -> dict[str, int]:
    """Return the quantities that are known."""
    return {name: 1 for name, value in zip(task.classes, label, strict=True) if np.isfinite(value)}


def to_units(values: Tensor, task: Task) -> Tensor:
    """Return values in units of the task's range."""
    low, high = task.range
    return (values - low) / (high - low)


def from_units(outputs: Tensor, task: Task) -> Tensor:
    """Return outputs, which are in units of the task's range, in the task's own unit."""
    low, high = task.range
    return outputs * (high - low) + low


def known_loss(term: str, task: Task, settings: LossSettings, outputs: Tensor, values: Tensor) -> Tensor:
    """Return a loss over what is known, in units of the range; mean over images."""
    known = values.isfinite()
    truth = torch.where(known, to_units(values, task), 0).to(outputs)
    return known_mean(TERMS[term](outputs, truth, reduction="none"), known)


def absolute_errors(task: Task, outputs: Tensor, values: Tensor) -> Tensor:
    """Return the absolute errors of all known numbers, in the task's own unit."""
    return (from_units(outputs, task) - values).abs()[values.isfinite()]


def moments(task: Task, outputs: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    """Return for each quantity the count of known numbers, their sum, their sum of squares, and that of the errors."""
    known = values.isfinite()
    truth = torch.where(known, to_units(values.double(), task), 0)
    residual = torch.where(known, outputs - truth, 0)
    return known.sum(0), truth.sum(0), truth.square().sum(0), residual.square().sum(0)


def mean_r2(count: Tensor, total: Tensor, squares: Tensor, residual: Tensor) -> Tensor:
    """Return the coefficient of determination, mean over the quantities that vary; NaN if none does."""
    spread = squares - total**2 / count
    spread = torch.where(spread > 1e-9 * squares, spread, torch.nan)  # rounding, if all numbers are the same
    return (1 - residual / spread).nanmean()


def _curvature_factor(outputs: Tensor, values: Tensor, task: Task) -> Tensor:
    """Return the curvature factor of a normal error of unit variance in units of the range, for all losses.

    Our design: the curvature of l1 is 0, and that of Huber's loss depends on where it is evaluated.
    """
    known = values.isfinite()
    return random_signs(outputs) * known / known.sum(1, keepdim=True).clamp(min=1).sqrt()


def _groups(values: Tensor, task: Task) -> Tensor:
    """Return (M, GROUPS): in which group of all images an image is, by the mean of its numbers."""
    rank = values.nanmean(1).argsort().argsort()
    return F.one_hot(rank * GROUPS // len(values), GROUPS).bool()


KIND = Kind(
    read=read_numbers,
    class_counts=_class_counts,
    losses={term: partial(known_loss, term) for term in TERMS},
    metrics={
        "mae": mean_metric(absolute_errors),
        "r2": AdditiveMetric(lambda task: dict.fromkeys(MOMENTS, (len(task.classes),)), moments, mean_r2, MIN_IMAGES),
    },
    curvature_factor=_curvature_factor,
    show=lambda outputs, task: from_units(outputs, task).numpy(),
    contents=_groups,
)
