"""What every kind of task has to say of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..data.source import Source
from .task import Task

if TYPE_CHECKING:
    from torchmetrics import Metric

Loss = Callable[[Tensor, Tensor], Tensor]  # outputs (M, ...), values (M, ...) -> scalar: the mean over the M images


@dataclass(frozen=True)
class Measure:
    """A metric of a kind: one whose states add up over sites, and what it is updated with."""

    make: Callable[[Task], Metric]
    read: Callable[[Task, Tensor, Tensor], tuple[Any, ...]]  # outputs (M, ...), values (M, ...) -> arguments of update
    # Sums over fewer images than this stay at their site, as they would tell of single labels. Where the states hold a
    # ``count`` (K,), it is that which is compared, and all states are (K,).
    least: int = 1


@dataclass(frozen=True)
class Kind:
    """How tasks of a kind are done. Names of losses and metrics are those of :data:`.specs.KIND_SPECS`."""

    # A manifest's cell as the label of one image, in the pixels that the model sees; MtfedError if it is none.
    read: Callable[[str, Task, Source], np.ndarray]
    # Random numbers z (M, ...) for outputs and values, with E[z z^T] the curvature in the outputs of an image's loss,
    # whose terms weigh 1 on average.
    signs: Callable[[Tensor, Tensor, Task], Tensor]
    losses: Mapping[str, Callable[[Task, Config], Loss]]
    measures: Mapping[str, Measure]
    # What the record keeps of outputs (M, ...) for the report.
    show: Callable[[Tensor, Task], np.ndarray]
    # Labels of several images as one array.
    stack: Callable[[Sequence[np.ndarray]], np.ndarray] = np.stack
    # The class of a cell, where an image has one.
    class_of: Callable[[str, Task], int] | None = None


def softmax_signs(logits: Tensor) -> Tensor:
    """Return z = sum_c e_c sqrt(p_c) (1_c - p) with random signs e_c, (M, K, ...): cross-entropy of a softmax.

    E[z z^T] is its curvature in the logits, diag(p) - p p^T.
    """
    p = logits.softmax(1)
    drawn = p.sqrt() * random_signs(p)
    return drawn - p * drawn.sum(1, keepdim=True)


def sigmoid_signs(logits: Tensor) -> Tensor:
    """Return z = e sqrt(p (1 - p)) with random signs e: binary cross-entropy, whose curvature is p (1 - p)."""
    p = logits.sigmoid()
    return (p * (1 - p)).sqrt() * random_signs(p)


def random_signs(like: Tensor) -> Tensor:
    """Return -1 or 1, of a tensor's shape, from the default generator."""
    return torch.randint(0, 2, like.shape, device=like.device).mul_(2).sub_(1).to(like.dtype)


def kind_of(task: Task) -> Kind:
    """Return what a task's kind can do; its module is imported when first asked for."""
    return _load(task.kind)


@lru_cache
def _load(name: str) -> Kind:
    return import_module(f"{__package__}.{name.replace('-', '_')}").KIND
