"""Evaluation of a model on one site's shard."""

from __future__ import annotations

import torch

from ..config import Config
from ..data.shard import Shard
from ..models.system import MultiTaskModel
from .acceleration import autocast, half_precision
from .device import to_device
from .metrics import TaskMetrics
from .pretext import add_pretext, same_copies


@torch.inference_mode()
def evaluate(model: MultiTaskModel, shard: Shard, tasks: list[str], config: Config) -> dict[str, TaskMetrics]:
    """Return the metrics of a model on the labels of the given tasks, without tasks that have no labels."""
    model.eval()
    device = next(model.parameters()).device
    dtype = half_precision(config.autocast, device)
    metrics = {task: TaskMetrics(config.tasks[task]) for task in tasks if shard.count(task)}
    batches = shard.batches(max(4 * config.batch_size // config.accumulate, 1), tasks=list(metrics)) if metrics else ()
    with same_copies(config.tasks, device):
        for batch in batches:
            if not batch.labels:
                continue
            images = {task: len(own.rows) for task, own in batch.labels.items()}  # of which there may be several copies
            batch = add_pretext(to_device(batch, device), config.tasks)
            with autocast(dtype, device):
                outputs = model(batch.images, {task: own.rows for task, own in batch.labels.items()}, batch.words)
            for task, output in outputs.items():
                metrics[task].update(output.float(), batch.labels[task].values, images[task])
    return metrics
