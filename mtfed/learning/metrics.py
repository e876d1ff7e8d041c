"""Metrics as sums: what a site sends adds up over sites, and the figure computed of the sum is the pooled one.

A mean of sites' means weighs a hospital of ten patients like one of a thousand, and an AUC cannot be averaged at all.
So each metric here is a torchmetrics metric whose states add up: its states travel, not its value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import MtfedError
from ..tasks.kind import kind_of
from ..tasks.multi_label import mean_area
from ..tasks.task import Task

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
        """Take in a decoder's outputs (M, ...) and the labels (M, ...) of a batch; MtfedError if an output is NaN.

        What is not a number compares as false, and would be judged as the lowest class or left out of a mean.
        """
        outputs, values = outputs.detach().float().cpu(), values.cpu()
        if not outputs.isfinite().all():
            raise MtfedError(
                f"The model's outputs of task {self.task.name} are not finite; its training diverged: lower "
                "learning-rate or set clip-norm."
            )
        for name, metric in self.metrics.items():
            metric.update(*self.measures[name].read(self.task, outputs, values))
        self.count += len(values)

    def sums(self) -> dict[str, float | list[float]]:
        """Return everything that adds up, ready for a ``MetricRecord``: ``TASK.METRIC.STATE`` -> numbers.

        They are what a site sends, so sums over too few images (``Measure.least``) are zeros.
        """
        sums: dict[str, float | list[float]] = {f"{self.task.name}.count": self.count}
        for name, metric in self.metrics.items():
            known = self._enough(name)
            for state, value in metric.metric_state.items():
                assert isinstance(value, Tensor)
                sums[f"{self.task.name}.{name}.{state}"] = torch.where(known, value.double(), 0).flatten().tolist()
        return sums

    def _enough(self, name: str) -> Tensor:
        """Return where a metric's sums are over enough images to be sent: (), or (K,) where it counts them itself."""
        counts = self.metrics[name].metric_state.get("count", torch.tensor(self.count))
        assert isinstance(counts, Tensor)
        return counts >= self.measures[name].least

    def compute(self) -> dict[str, float]:
        """Return each metric's value; NaN where the data cannot tell (one class only, no structure)."""
        if not self.count:
            return dict.fromkeys(self.metrics, float("nan"))
        return {name: self._value(metric) for name, metric in self.metrics.items()}

    @staticmethod
    def _value(metric: Metric) -> float:
        curve, weight = (metric.metric_state.get(state) for state in ("confmat", "weight"))
        if isinstance(curve, Tensor) and curve.ndim > 2:
            # Counts by threshold, class, truth and prediction, (T, [K,] 2, 2). torchmetrics has an area of 0 for a
            # class without positives or without negatives; it is one that nothing can be said of.
            counts = curve.reshape(len(curve), -1, 2, 2)
            return float(mean_area(counts[..., 1, 1].T, counts[..., 0, 1].T))
        if isinstance(weight, Tensor) and not weight:  # a mean of nothing
            return float("nan")
        return float(metric.compute())

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
        if any(_form(sums.get(name)) != _form(value) for name, value in metrics.sums().items()):
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


def _form(value: object) -> int:
    """Return how many numbers a list holds, plus 1; 0 for a number, -1 for anything else."""
    if isinstance(value, list):
        return 1 + len(value)
    return 0 if isinstance(value, (int, float)) else -1
