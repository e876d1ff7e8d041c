"""Metrics as sums: what a site sends adds up over sites, and the figure computed of the sum is the pooled one.

A mean of sites' means weighs a hospital of ten patients like one of a thousand, and an AUC cannot be averaged at all.
So each metric here is a torchmetrics metric whose states add up: its states travel, not its value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .lean import lean_import
from .tasks import METRICS_OF_KIND, Task

if TYPE_CHECKING:
    from torchmetrics import Metric

# AUC from a curve at fixed thresholds, evenly spaced in logits: even spacing in probabilities would lose the order
# among confident scores, and without 0 and 1 a curve would end before its corners. The finer the grid, the more single
# scores a small site's counts would tell.
THRESHOLDS = torch.cat([torch.zeros(1), torch.sigmoid(torch.linspace(-16, 16, 129)), torch.ones(1)])
BELOW_ONE = 1 - 2**-24  # the next number of float32: a score of 1 itself would leave no threshold above it


def _binary_or_multiclass(name: str, task: Task, **settings: object) -> Metric:
    classification = lean_import("torchmetrics.classification")
    if len(task.classes) == 2:
        return getattr(classification, f"Binary{name}")(**settings)
    return getattr(classification, f"Multiclass{name}")(num_classes=len(task.classes), **settings)


def _auc(task: Task) -> Metric:
    return _binary_or_multiclass("AUROC", task, thresholds=THRESHOLDS)


def _accuracy(task: Task) -> Metric:
    return _binary_or_multiclass("Accuracy", task, **({} if len(task.classes) == 2 else {"average": "micro"}))


def _mean(task: Task) -> Metric:
    mean = lean_import("torchmetrics.aggregation").MeanMetric
    # An aggregation cannot know which way is up; all that are averaged here are overlaps.
    return type("MeanOverlap", (mean,), {"higher_is_better": True})()


def _scores(task: Task, logits: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    """Return class probabilities, of two classes only the second's, and the labels."""
    scores = logits.float().softmax(1).clamp(max=BELOW_ONE)
    return (scores[:, 1] if len(task.classes) == 2 else scores), values


def _overlap(kind: str) -> Callable[[Task, Tensor, Tensor], tuple[Tensor, ...]]:
    def per_image(task: Task, logits: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        one_hot = [F.one_hot(x.long(), len(task.classes)).movedim(-1, 1) for x in (logits.argmax(1), values)]
        overlap = getattr(lean_import("monai.metrics"), f"compute_{kind}")
        # An image without the structure counts 1 if none is predicted, else 0: a false alarm must cost something.
        return (overlap(*one_hot, include_background=False, ignore_empty=False),)

    return per_image


MEASURES: dict[str, tuple[Callable[[Task], Metric], Callable[[Task, Tensor, Tensor], tuple[Tensor, ...]]]] = {
    "auc": (_auc, _scores),
    "accuracy": (_accuracy, _scores),
    "dice": (_mean, _overlap("dice")),  # mean over images and structures
    "iou": (_mean, _overlap("iou")),
}


class TaskMetrics:
    """The metrics of one task: update with batches or with other sites' sums, then compute."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.metrics = {name: MEASURES[name][0](task) for name in METRICS_OF_KIND[task.kind]}
        self.count = 0

    def update(self, logits: Tensor, values: Tensor) -> None:
        """Take in the logits (M, K, ...) and labels (M, ...) of a batch."""
        for name, metric in self.metrics.items():
            metric.update(*MEASURES[name][1](self.task, logits.detach().cpu(), values.cpu()))
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
        if (curve := metric.metric_state.get("confmat")) is not None:
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
