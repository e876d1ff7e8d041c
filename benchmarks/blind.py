"""Metrics of a baseline that does not look at the image: it predicts the mean label of the training images.

A model has learned something only if it beats this baseline. The mean is taken per class, pixel or voxel. Boxes have no
mean, so there is no baseline for detection.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mtfed.config import Config
from mtfed.data.loading import load_shard
from mtfed.data.shard import Shard
from mtfed.data.simulated_sites import simulated_site
from mtfed.learning.metrics import TaskMetrics
from mtfed.tasks.dose import STEPS
from mtfed.tasks.regression import to_units
from mtfed.tasks.task import Task

MIN_SHARE = 1e-6  # keeps logits finite


def figures(config: Config) -> dict[str, dict[str, float]]:
    """Return the metrics of the mean label on the validation images of all pooled data, by task and metric."""
    data = simulated_site(config, 0, 1)
    train, validation = (load_shard(data, config, split) for split in ("train", "val"))
    by_task = {}
    for name, task in config.tasks.items():
        if task.kind in MEANS and train.count(name) and validation.count(name):
            output = MEANS[task.kind](task, labels(train, name))
            metrics = TaskMetrics(task)
            for values in labels(validation, name).split(16):
                metrics.update(output.expand(len(values), *output.shape[1:]), values)
            by_task[name] = metrics.compute()
    return by_task


def labels(shard: Shard, task: str) -> Tensor:
    """Return the labels (M, ...) of a task, with the same types as in a batch."""
    values = shard.labels[task].values
    return values if values.is_floating_point() else values.long()


def _logit(share: Tensor) -> Tensor:
    return torch.logit(share.float(), MIN_SHARE)


def _known_mean(x: Tensor, known: Tensor) -> Tensor:
    return torch.where(known, x, 0).sum(0) / known.sum(0).clamp_min(1)


def _classes(task: Task, values: Tensor) -> Tensor:
    """Return the log frequencies of the classes, (1, K) or (1, K, *S)."""
    shares = F.one_hot(values, len(task.classes)).float().mean(0)
    return shares.clamp_min(MIN_SHARE).log().movedim(-1, 0)[None]


def _ordinal(task: Task, values: Tensor) -> Tensor:
    return _logit((values[:, None] > torch.arange(len(task.classes) - 1)).float().mean(0))[None]


def _labels(task: Task, values: Tensor) -> Tensor:
    known = (values == 0) | (values == 1)
    return _logit(_known_mean(values.float(), known))[None]


def _regression(task: Task, values: Tensor) -> Tensor:
    """Return the median, which minimises the absolute error."""
    return to_units(values.nanmedian(0).values, task)[None]


def _dose(task: Task, values: Tensor) -> Tensor:
    steps = values[:, :1].float()
    return (_known_mean(steps, steps >= 0) / STEPS)[None]


MEANS: dict[str, Callable[[Task, Tensor], Tensor]] = {
    "classification": _classes,
    "segmentation": _classes,
    "ordinal": _ordinal,
    "multi-label": _labels,
    "multi-label-segmentation": _labels,
    "regression": _regression,
    "dose": _dose,
}
