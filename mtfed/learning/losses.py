"""Each task's own loss: the sum of terms that its declaration names.

How the tasks' losses are balanced against each other is in :mod:`.balancing`; together they are the hybrid loss.
"""

from __future__ import annotations

from torch import Tensor

from ..config import Config
from ..tasks.kind import Loss, kind_of
from ..tasks.task import Task


def task_loss(task: Task, config: Config) -> Loss:
    """Return a task's loss: outputs (M, ...) and values (M, ...) to a scalar, the mean over the M images."""
    losses = kind_of(task).losses
    terms = [(weight, losses[term](task, config)) for weight, term in task.terms]
    if len(terms) == 1 and terms[0][0] == 1:
        return terms[0][1]

    def total(outputs: Tensor, values: Tensor) -> Tensor:
        first, *rest = (weight * loss(outputs, values) for weight, loss in terms)
        return sum(rest, start=first)

    return total


def task_losses(config: Config) -> dict[str, Loss]:
    """Return every task's loss by name; what they import is imported now."""
    return {name: task_loss(task, config) for name, task in config.tasks.items()}
