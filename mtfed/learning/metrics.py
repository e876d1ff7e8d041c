"""Metrics as sums: what a site sends adds up over sites, and the figure computed from the total is the pooled one.

A mean of the sites' means would weigh a hospital of ten patients like one of a thousand, and an AUC cannot be averaged
at all. So sites send the sums of each metric (:class:`~mtfed.tasks.kind.AdditiveMetric`), not its value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from ..errors import MtfedError
from ..tasks.kind import kind_of
from ..tasks.task import Task


class TaskMetrics:
    """The metrics of one task. Update them with batches or pool the sums of sites (:func:`pool`), then compute."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.metrics = {name: kind_of(task).metrics[name] for name in task.metrics}
        self.states = {
            name: {state: torch.zeros(shape, dtype=torch.float64) for state, shape in metric.states(task).items()}
            for name, metric in self.metrics.items()
        }
        self.count = 0

    def update(self, outputs: Tensor, values: Tensor, images: int | None = None) -> None:
        """Add the outputs of a decoder (M, ...) and the labels (M, ...) of a batch, of M images or ``images``.

        Raises:
            MtfedError: if an output is not finite. NaN compares as false, and would be judged as the lowest class or
                left out of a mean.
        """
        outputs, values = outputs.detach().float().cpu(), values.cpu()
        if not outputs.isfinite().all():
            raise MtfedError(
                f"The model's outputs of task {self.task.name} are not finite; its training diverged: lower "
                "learning-rate or set clip-norm."
            )
        for name, metric in self.metrics.items():
            increments = metric.update(self.task, outputs, values)
            for state, increment in zip(self.states[name].values(), increments, strict=True):
                state += increment
        self.count += len(values) if images is None else images

    def sums(self) -> dict[str, float | list[float]]:
        """Return all sums for a ``MetricRecord``: ``TASK.METRIC.STATE`` -> numbers.

        This is what a site sends, so sums over too few images (``min_images``) are replaced by zeros.
        """
        sums: dict[str, float | list[float]] = {f"{self.task.name}.count": self.count}
        for name, states in self.states.items():
            enough = states.get("count", torch.tensor(self.count)) >= self.metrics[name].min_images
            for state, value in states.items():
                sums[f"{self.task.name}.{name}.{state}"] = torch.where(enough, value, 0).flatten().tolist()
        return sums

    def compute(self) -> dict[str, float]:
        """Return the value of each metric; NaN if the data cannot determine it (only one class, no structure)."""
        if not self.count:
            return dict.fromkeys(self.metrics, float("nan"))
        return {name: float(metric.compute(**self.states[name])) for name, metric in self.metrics.items()}


def pool(tasks: Iterable[Task], sums: Mapping[str, object]) -> dict[str, TaskMetrics]:
    """Return the metrics of added sums (see :meth:`TaskMetrics.sums`), for the tasks that they contain."""
    pooled = {}
    for task in tasks:
        if not sums.get(f"{task.name}.count"):
            continue
        metrics = TaskMetrics(task)
        if any(np.shape(sums.get(key)) != np.shape(value) for key, value in metrics.sums().items()):  # type: ignore
            continue  # from sites whose version has other metrics
        metrics.count = int(sums[f"{task.name}.count"])  # type: ignore[call-overload]
        for name, states in metrics.states.items():
            for state, zeros in states.items():
                values = torch.tensor(sums[f"{task.name}.{name}.{state}"], dtype=torch.float64)
                states[state] = values.reshape(zeros.shape)
        pooled[task.name] = metrics
    return pooled
