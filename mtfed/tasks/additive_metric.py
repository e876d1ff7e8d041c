"""Metrics as functions of sums, which add up over batches and over sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .task import Task


@dataclass(frozen=True)
class AdditiveMetric:
    """A metric that is computed from sums over images, so that the sums of sites add up to the pooled figure."""

    # Name and shape of every sum.
    states: Callable[[Task], Mapping[str, tuple[int, ...]]]
    # Outputs (M, ...) and values (M, ...) of a batch -> what is added to each sum, in their order.
    update: Callable[[Task, Tensor, Tensor], tuple[Tensor, ...]]
    # The sums, float64, by name -> the value; NaN if the data cannot determine it.
    compute: Callable[..., Tensor]
    # Sums over fewer images stay at their site, because they would reveal single labels. If there is a sum ``count``
    # (K,), it is compared instead of the number of images, and all sums are (K,).
    min_images: int = 1


def mean_metric(terms: Callable[[Task, Tensor, Tensor], Tensor]) -> AdditiveMetric:
    """Return the mean of all terms (N,) or (M, ...) as a metric. A NaN is left out: its image cannot be judged."""

    def update(task: Task, outputs: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        judged = terms(task, outputs, values).double()
        judged = judged[~judged.isnan()]
        return judged.sum(), torch.tensor(judged.numel())

    return AdditiveMetric(lambda task: {"total": (), "count": ()}, update, lambda total, count: total / count)
