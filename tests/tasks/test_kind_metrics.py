"""Metrics of the kinds against slow references, and what the report shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from helpers.kinds import AGE, AXES, DOSE, FINDINGS, GRADE, TASKS, examples, patients, perfect, sigmoid, slow_dvh
from mtfed.learning.metrics import TaskMetrics, pool
from mtfed.tasks.kind import kind_of
from mtfed.tasks.specs import METRIC_SPECS
from mtfed.tasks.task import Task


def slow_auc(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    bins = np.floor(np.arcsinh(outputs * np.sinh(4.5) / 16) / (4.5 / 64)).clip(-64, 63)  # ties within a bin
    areas = []
    for score, truth in zip(bins.T, values.T, strict=True):
        pairs = [np.sign(p - n) / 2 + 0.5 for p in score[truth == 1] for n in score[truth == 0]]
        areas += [np.mean(pairs)] if pairs else []
    return float(np.mean(areas))


def slow_accuracy(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    columns = zip(outputs.T, values.T, strict=True)
    return float(np.mean([np.mean((o > 0)[v >= 0] == v[v >= 0]) for o, v in columns if (v >= 0).any()]))


def slow_kappa(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    predicted, count = (outputs > 0).sum(1), len(task.classes)
    observed, expected = 0.0, 0.0
    for i in range(count):
        for j in range(count):
            observed += (i - j) ** 2 * np.mean((predicted == i) & (values == j))
            expected += (i - j) ** 2 * np.mean(predicted == i) * np.mean(values == j)
    return 1 - observed / expected


def slow_mae(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    if task.kind == "ordinal":
        return float(np.mean(abs((outputs > 0).sum(1) - values)))
    low, high = task.range
    return float(np.nanmean(abs(outputs * (high - low) + low - values)))


def slow_r2(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    low, high = task.range
    scores = []
    for output, value in zip((outputs * (high - low) + low).T, values.astype(float).T, strict=True):
        known = ~np.isnan(value)
        spread = ((value[known] - value[known].mean()) ** 2).sum()
        scores.append(1 - ((output[known] - value[known]) ** 2).sum() / spread)
    return float(np.mean(scores))


def slow_overlap(ratio: Callable[[int, int, int], float]) -> Callable[[np.ndarray, np.ndarray, Task], float]:
    def slow(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
        overlaps = []
        for o, v in zip(outputs.reshape(-1, 4, 5), values.reshape(-1, 4, 5), strict=True):
            a, b = o > 0, v == 1
            if v[0, 0] != 255:
                overlaps.append(1.0 if not (a | b).any() else ratio(int((a & b).sum()), int(a.sum()), int(b.sum())))
        return float(np.mean(overlaps))

    return slow


def slow_dose(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    return float(
        np.mean([abs(a - b)[possible].sum() / possible.sum() for a, b, possible, *_ in patients(outputs, values, task)])
    )


def slow_dvh_score(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    differences = []
    for predicted, planned, _, masks, tenth in patients(outputs, values, task):
        for name, mask in masks.items():
            a, b = (slow_dvh(gray, name, mask, tenth) for gray in (predicted, planned))
            differences += [abs(a[metric] - b[metric]) for metric in a]
    return float(np.mean(differences))


METRICS = {
    ("findings", "auc"): slow_auc,
    ("findings", "accuracy"): slow_accuracy,
    ("grade", "kappa"): slow_kappa,
    ("grade", "mae"): slow_mae,
    ("grade", "accuracy"): lambda outputs, values, task: float(np.mean((outputs > 0).sum(1) == values)),
    ("age", "mae"): slow_mae,
    ("age", "r2"): slow_r2,
    ("axes", "mae"): slow_mae,
    ("axes", "r2"): slow_r2,
    ("parts", "dice"): slow_overlap(lambda both, a, b: 2 * both / (a + b)),
    ("parts", "iou"): slow_overlap(lambda both, a, b: both / (a + b - both)),
    ("dose", "dose-score"): slow_dose,
    ("dose", "dvh-score"): slow_dvh_score,
}


@pytest.mark.parametrize("name", TASKS)
def test_metrics_of_two_sites_add_up_to_the_pooled_reference(name: str) -> None:
    task = TASKS[name]
    sites = [examples(task, images=m, seed=m) for m in (11, 26)]
    sums: dict[str, Any] = {}
    for outputs, values in sites:
        metrics = TaskMetrics(task)
        for part in torch.arange(len(values)).split(10):  # in batches
            metrics.update(outputs[part], values[part])
        for key, value in metrics.sums().items():
            sums[key] = np.add(sums[key], value).tolist() if key in sums else value
    pooled = pool([task], sums)[name]
    outputs, values = (torch.cat(parts).numpy() for parts in zip(*sites, strict=True))
    assert pooled.compute() == {
        metric: pytest.approx(METRICS[name, metric](outputs, values, task), rel=1e-5, abs=1e-6)
        for metric in task.metrics
    }


@pytest.mark.parametrize("name", TASKS)
def test_the_spec_contains_the_direction_of_every_metric(name: str) -> None:
    task = TASKS[name]
    outputs, values = examples(task, images=30)
    good, bad = TaskMetrics(task), TaskMetrics(task)
    good.update(perfect(task, values), values)
    bad.update(outputs, values)
    for metric, value in good.compute().items():
        higher = METRIC_SPECS[metric].higher_is_better
        assert value == pytest.approx(1 if higher else 0, abs=1e-5)
        assert (value > bad.compute()[metric]) == higher


def test_a_metric_that_the_data_cannot_determine_is_nan() -> None:
    outputs, values = torch.randn(4, 3), torch.tensor([[1, 0, -1]] * 4)  # one class only
    metrics = TaskMetrics(FINDINGS)
    metrics.update(outputs, values)
    assert np.isnan(metrics.compute()["auc"]) and 0 <= metrics.compute()["accuracy"] <= 1
    values[0, 0] = 0  # now the first class has both
    metrics = TaskMetrics(FINDINGS)
    metrics.update(outputs, values)
    assert 0 <= metrics.compute()["auc"] <= 1
    metrics = TaskMetrics(AGE)
    metrics.update(torch.rand(3, 1), torch.full((3, 1), 50.3))
    assert np.isnan(metrics.compute()["r2"]) and metrics.compute()["mae"] > 0
    outputs, values = examples(DOSE)
    values[:, 1] = 0  # no structure
    metrics = TaskMetrics(DOSE)
    metrics.update(outputs, values)
    assert np.isnan(metrics.compute()["dvh-score"]) and metrics.compute()["dose-score"] > 0


def test_predictions_in_the_record() -> None:
    shown = {name: kind_of(task).show(examples(task)[0].float(), task) for name, task in TASKS.items()}
    shapes = {name: array.shape for name, array in shown.items()}
    assert shapes == {"findings": (9, 3), "grade": (9, 4), "age": (9, 1), "axes": (9, 2), "parts": (9, 3, 4, 5),
                      "dose": (9, 4, 5)}  # fmt: skip
    np.testing.assert_allclose(shown["grade"].sum(1), 1, rtol=1e-6)
    falling = torch.tensor([[2.0, 0.0, -1.0]])
    expected = -np.diff([1, *sigmoid(falling[0].numpy()), 0])
    np.testing.assert_allclose(kind_of(GRADE).show(falling, GRADE)[0], expected, rtol=1e-6)
    np.testing.assert_allclose(kind_of(AXES).show(torch.tensor([[0.5, 1.0]]), AXES), [[15, 40]])
