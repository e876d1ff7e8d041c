"""Metrics as sums: what a site sends adds up over sites, and the figure computed of the sum is the pooled one.

A mean of sites' means weighs a hospital of ten patients like one of a thousand, and an AUC cannot be averaged at all.
So each metric here is a torchmetrics metric whose states add up: its states travel, not its value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .kinds import kind_of
from .tasks import Task

if TYPE_CHECKING:
    from torchmetrics import Metric


class TaskMetrics:
    """The metrics of one task: update with batches or with other sites' sums, then compute."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.measures = kind_of(task).measures
        self.metrics = {name: self.measures[name].make(task) for name in task.metrics}
        self.count = 0

    def update(self, outputs: Tensor, values: Tensor) -> None:
        """Take in a decoder's outputs (M, ...) and the labels (M, ...) of a batch."""
        outputs, values = outputs.detach().float().cpu(), values.cpu()
        for name, metric in self.metrics.items():
            metric.update(*self.measures[name].read(self.task, outputs, values))
        self.count += len(values)

    def sums(self) -> dict[str, float | list[float]]:
        """Return everything that adds up, ready for a ``MetricRecord``: ``TASK.METRIC.STATE`` -> numbers."""
        sums: dict[str, float | list[float]] = {f"{self.task.name}.count": self.count}
        for name, metric in self.metrics.items():
            for state, value in metric.metric_state.items():
                assert isinstance(value, Tensor)
                sums[f"{self.task.name}.{name}.{state}"] = value.double().flatten().tolist()
        return sums

    def compute(self) -> dict[str, float]:
        """Return each metric's value; NaN where the data cannot tell (one class only, no structure)."""
        if not self.count:
            return dict.fromkeys(self.metrics, float("nan"))
        return {
            name: float(metric.compute()) if self._can_tell(metric) else float("nan")
            for name, metric in self.metrics.items()
        }

    @staticmethod
    def _can_tell(metric: Metric) -> bool:
        curve = metric.metric_state.get("confmat")
        if isinstance(curve, Tensor) and curve.ndim > 2:
            # (T, ..., 2, 2): an area needs positives and negatives of every class.
            return bool((curve[0].sum(-1) > 0).all())
        weight = metric.metric_state.get("weight")
        return not isinstance(weight, Tensor) or float(weight) > 0

    def higher_is_better(self, name: str) -> bool:
        """Say which way of a metric is up."""
        return bool(self.metrics[name].higher_is_better)


def pool(tasks: Iterable[Task], sums: Mapping[str, object]) -> dict[str, TaskMetrics]:
    """Return the metrics of added-up sums (see :meth:`TaskMetrics.sums`), for the tasks that they hold."""
    pooled = {}
    for task in tasks:
        if not sums.get(f"{task.name}.count"):
            continue
        metrics = TaskMetrics(task)
        if not sums.keys() >= metrics.sums().keys():
            continue  # of sites whose version has other metrics
        metrics.count = int(sums[f"{task.name}.count"])  # type: ignore[call-overload]
        for name, metric in metrics.metrics.items():
            for state, zero in metric.metric_state.items():
                assert isinstance(zero, Tensor)
                values = torch.tensor(sums[f"{task.name}.{name}.{state}"], dtype=torch.float64)
                setattr(metric, state, values.to(zero.dtype).reshape(zero.shape))
            metric._update_count = 1  # torchmetrics warns of a compute without an update
        pooled[task.name] = metrics
    return pooled
