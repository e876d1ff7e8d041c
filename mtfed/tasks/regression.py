"""One or several numbers an image, within a range; outputs count in units of it, 0..1 from its low to its high end.

The sums of R² hold those of the true numbers and of their squares, which of one image are its label. So a site sends
them only of quantities that it knows of :data:`LEAST` validation images or more; those of fewer count zero, and R² over
all sites is then without them. The server's own test images are all counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..data.source import Source
from ..errors import MtfedError
from .additive import sum_metric
from .kind import Kind, Loss, Measure, random_signs
from .multi_label import known_mean
from .segmentation import mean_metric
from .task import Task

if TYPE_CHECKING:
    from torchmetrics import Metric

LEAST = 5  # images that sums of R² are over
WIDTH = 0.1  # of the range: errors above it count linearly in Huber's loss
TERMS: dict[str, Callable[..., Tensor]] = {
    # Over its width, so that its slope becomes that of l1.
    "huber": partial(F.smooth_l1_loss, beta=WIDTH),
    "l1": F.l1_loss,
    "mse": F.mse_loss,
}


def read_numbers(cell: str, task: Task, source: Source) -> np.ndarray:
    """Return (K,) float32, NaN where a number is not known, of a cell such as "2.3", or "2.3; ?" for two quantities."""
    words = [word.strip() for word in cell.split(";")]
    try:
        values = [math.nan if word == "?" else float(word) for word in words]
    except ValueError:
        values = []
    known = [value for value in values if math.isfinite(value)]
    if len(values) != len(task.classes) or len(known) + words.count("?") != len(task.classes):
        raise MtfedError(
            f"Image {source.where}: label {cell!r} of task {task.name} should be {len(task.classes)} numbers or ?, "
            f"with ';' between them: {', '.join(task.classes)}."
        )
    if not known:
        raise MtfedError(
            f"Image {source.where}: label {cell!r} of task {task.name} knows of no number; leave the cell empty."
        )
    low, high = task.range
    if not low <= min(known) <= max(known) <= high:
        raise MtfedError(
            f"Image {source.where}: label {cell!r} of task {task.name} lies outside the task's range, {low:g} to "
            f"{high:g}; correct one of them."
        )
    return np.array(values, np.float32)


def to_units(values: Tensor, task: Task) -> Tensor:
    """Return values in units of the task's range."""
    low, high = task.range
    return (values - low) / (high - low)


def from_units(outputs: Tensor, task: Task) -> Tensor:
    """Return outputs in true units."""
    low, high = task.range
    return outputs * (high - low) + low


def known_loss(term: str, task: Task, config: Config) -> Loss:
    """Return a loss over what is known, in units of the range; mean over images."""

    def loss(outputs: Tensor, values: Tensor) -> Tensor:
        known = values.isfinite()
        truth = torch.where(known, to_units(values, task), 0).to(outputs)
        return known_mean(TERMS[term](outputs, truth, reduction="none"), known)

    return loss


def _errors(task: Task, outputs: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    """Return the absolute errors of all known numbers, in true units."""
    errors = (from_units(outputs, task) - values).abs()
    return (errors[values.isfinite()],)


def _r2(task: Task) -> Metric:
    shape = (len(task.classes),)
    return sum_metric(mean_r2, True, count=shape, total=shape, squares=shape, residual=shape)


def mean_r2(count: Tensor, total: Tensor, squares: Tensor, residual: Tensor) -> Tensor:
    """Return the coefficient of determination, mean over the quantities that differ at all; NaN where none does."""
    spread = squares - total**2 / count
    spread = torch.where(spread > 1e-9 * squares, spread, torch.nan)  # rounding, where all are the same
    return (1 - residual / spread).nanmean()


def _moments(task: Task, outputs: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    known = values.isfinite()
    truth = torch.where(known, to_units(values.double(), task), 0)
    residual = torch.where(known, outputs - truth, 0)
    return known.sum(0), truth.sum(0), truth.square().sum(0), residual.square().sum(0)


def _signs(outputs: Tensor, values: Tensor, task: Task) -> Tensor:
    """Return signs: the curvature of a normal error of unit variance in units of the range, for all losses alike.

    Our design: that of l1 is 0, and that of Huber's loss depends on where it is looked at.
    """
    known = values.isfinite()
    return random_signs(outputs) * known / known.sum(1, keepdim=True).clamp(min=1).sqrt()


KIND = Kind(
    read=read_numbers,
    signs=_signs,
    losses={term: partial(known_loss, term) for term in TERMS},
    measures={
        "mae": Measure(mean_metric(higher_is_better=False), _errors),
        "r2": Measure(_r2, _moments, least=LEAST),
    },
    show=lambda outputs, task: from_units(outputs, task).numpy(),
)
