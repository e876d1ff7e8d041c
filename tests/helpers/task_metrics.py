"""Metrics of one task, at a site and pooled over sites."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from mtfed.learning.metrics import TaskMetrics, pool
from mtfed.tasks.specs import KIND_SPECS
from mtfed.tasks.task import Task


def task_of(kind: str, classes: int = 3) -> Task:
    given: dict[str, Any] = {"range": (0, 10)} if KIND_SPECS[kind].has_range else {}
    return Task(name="t", kind=kind, classes=tuple("abcdefgh"[:classes]), **given)


def filled(task: Task, *batches: tuple[Tensor, Tensor]) -> TaskMetrics:
    metrics = TaskMetrics(task)
    for outputs, values in batches:
        metrics.update(outputs, values)
    return metrics


def pooled(task: Task, *sites: TaskMetrics) -> dict[str, float]:
    """Return the figures of the added sums that sites send."""
    sent = [site.sums() for site in sites]
    return pool([task], {name: np.add.reduce([sums[name] for sums in sent]).tolist() for name in sent[0]})[
        "t"
    ].compute()
