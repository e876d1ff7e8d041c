"""What a model reaches that never looks at an image: of every label, the mean over the training images, place by place.

The figure that a model has to beat before it has learned anything. Boxes have no mean, so detection has none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mtfed.config import Config
from mtfed.data.federation import simulated_site
from mtfed.data.shard import Shard, load_shard
from mtfed.learning.metrics import TaskMetrics
from mtfed.tasks.dose import STEPS
from mtfed.tasks.regression import to_units
from mtfed.tasks.task import Task

LEAST = 1e-6  # of a share, so that its logit is finite


def figures(config: Config) -> dict[str, dict[str, float]]:
    """Return, by task and metric, what the mean label reaches on the validation images of a pooled shard."""
    data = simulated_site(config, 0, 1)
    train, held = (load_shard(data, config, split) for split in ("train", "val"))
    found = {}
    for name, task in config.tasks.items():
        if task.kind in MEANS and train.count(name) and held.count(name):
            output = MEANS[task.kind](task, labels(train, name))
            metrics = TaskMetrics(task)
            for values in labels(held, name).split(16):
                metrics.update(output.expand(len(values), *output.shape[1:]), values)
            found[name] = metrics.compute()
    return found


def labels(shard: Shard, task: str) -> Tensor:
    """Return the labels (M, ...) of a task as a batch has them."""
    values = shard.labels[task].values
    return values if values.is_floating_point() else values.long()


def _logit(share: Tensor) -> Tensor:
    return torch.logit(share.float(), LEAST)


def _known_mean(x: Tensor, known: Tensor) -> Tensor:
    return torch.where(known, x, 0).sum(0) / known.sum(0).clamp_min(1)


def _classes(task: Task, values: Tensor) -> Tensor:
    """Return the logarithms of the classes' shares, (1, K) or (1, K, *S)."""
    shares = F.one_hot(values, len(task.classes)).float().mean(0)
    return shares.clamp_min(LEAST).log().movedim(-1, 0)[None]


def _ordinal(task: Task, values: Tensor) -> Tensor:
    return _logit((values[:, None] > torch.arange(len(task.classes) - 1)).float().mean(0))[None]


def _labels(task: Task, values: Tensor) -> Tensor:
    known = (values == 0) | (values == 1)
    return _logit(_known_mean(values.float(), known))[None]


def _regression(task: Task, values: Tensor) -> Tensor:
    """Return the median, which has the least absolute error."""
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
