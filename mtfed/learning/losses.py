"""The loss of each task: the sum of the terms that its declaration names.

How the losses of several tasks are balanced is in :mod:`.balancing`; together they are the hybrid loss.
"""

from __future__ import annotations

from torch import Tensor

from ..config import Config
from ..tasks.kind import Loss, LossSettings, kind_of
from ..tasks.task import Task


def task_loss(task: Task, settings: LossSettings) -> Loss:
    """Return a task's loss: outputs (M, ...) and values (M, ...) to a scalar, the mean over the M images."""
    losses = kind_of(task).losses
    terms = [(weight, losses[term](task, settings)) for weight, term in task.terms]
    if len(terms) == 1 and terms[0][0] == 1:
        return terms[0][1]

    def total(outputs: Tensor, values: Tensor) -> Tensor:
        first, *rest = (weight * loss(outputs, values) for weight, loss in terms)
        return sum(rest, start=first)

    return total


def task_losses(config: Config) -> dict[str, Loss]:
    """Return the loss of every task by name. All modules that they need are imported by this call."""
    return {name: task_loss(task, config) for name, task in config.tasks.items()}
