"""The loss of a task, which is the sum of the terms that its declaration names, and all tasks' losses on a batch.

Batches are computed in pieces, in half precision and compiled, as the config asks. How the losses of several tasks are
balanced is in :mod:`.balancing`; together they are the hybrid loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import itemgetter

import torch
from torch import Tensor

from ..config import Config
from ..data.shard import Batch, Labels
from ..models.system import MultiTaskModel
from ..tasks.kind import LossSettings, kind_of
from ..tasks.task import Task
from .acceleration import autocast, half_precision, make_scaler, training_forward
from .balancing import BALANCING
from .device import to_device

# Task -> its mean loss in a piece of a batch, and the share of the batch's labels of the task that are in the piece.
PieceLosses = Mapping[str, tuple[Tensor, float]]
Loss = Callable[[Tensor, Tensor], Tensor]  # outputs (M, ...), values (M, ...) -> scalar: the mean over the M images


def task_loss(task: Task, settings: LossSettings) -> Loss:
    """Return a task's loss with the settings of a run."""
    losses = kind_of(task).losses
    terms = [(weight, partial(losses[term], task, settings)) for weight, term in task.terms]
    if len(terms) == 1 and terms[0][0] == 1:
        return terms[0][1]

    def total(outputs: Tensor, values: Tensor) -> Tensor:
        first, *rest = (weight * loss(outputs, values) for weight, loss in terms)
        return sum(rest, start=first)

    return total


def task_losses(config: Config) -> dict[str, Loss]:
    """Return the loss of every task by name. All modules that they need are imported by this call."""
    return {name: task_loss(task, config) for name, task in config.tasks.items()}


def labels_loss(loss: Loss, outputs: Tensor, labels: Labels) -> Tensor:
    """Return the loss of some outputs (M, ...); that of mixed images is the mixture of the losses for each label."""
    if not labels.mixture:
        return loss(outputs, labels.values)
    first, *rest = (weight * loss(outputs, values) for weight, values in labels.mixture)
    return sum(rest, start=first)


class BatchLosses:
    """Compute a model's losses on batches.

    The number of batches, ``steps``, decides whether compiling pays off; ``is_plain`` forbids it.
    """

    def __init__(
        self, model: MultiTaskModel, config: Config, device: torch.device, steps: int, is_plain: bool = False
    ) -> None:
        self.pieces = config.accumulate
        self.device = device
        self.dtype = half_precision(config.autocast, device)
        self.scaler = make_scaler(self.dtype, device)
        self.loss_of_task = task_losses(config)
        # A compiled backward pass computes all gradients at once, which does not suit a backward pass for each task.
        is_plain = is_plain or BALANCING[config.balancing].by_gradient
        self.forward = model if is_plain else training_forward(model, config, device, steps * self.pieces)

    def __call__(self, batch: Batch) -> Iterator[PieceLosses]:
        """Yield for each piece the tasks' mean losses, in single precision, and their shares of the batch's labels."""
        for piece in split_batch(batch, self.pieces):
            piece = to_device(piece, self.device)
            with autocast(self.dtype, self.device):
                rows = {task: labels.rows for task, labels in piece.labels.items()}
                outputs = self.forward(piece.images, rows, piece.words)
            if self.dtype is not None:
                outputs = {task: output.float() for task, output in outputs.items()}
            losses = {
                task: labels_loss(self.loss_of_task[task], outputs[task], own) for task, own in piece.labels.items()
            }
            yield {
                task: (loss, len(piece.labels[task].rows) / len(batch.labels[task].rows))
                for task, loss in losses.items()
            }


def split_batch(batch: Batch, pieces: int) -> Iterator[Batch]:
    """Yield a batch in pieces, each with the labels of its images; fewer pieces if the batch has too few images."""
    size = -(-len(batch.images) // pieces)
    if size >= len(batch.images):
        yield batch
        return
    for start in range(0, len(batch.images), size):
        labels = {}
        for task, whole in batch.labels.items():
            inside = (whole.rows >= start) & (whole.rows < start + size)
            if inside.any():
                labels[task] = whole.changed(whole.rows[inside] - start, itemgetter(inside))
        piece = slice(start, start + size)
        yield Batch(batch.images[piece], labels, None if batch.words is None else batch.words[piece])
