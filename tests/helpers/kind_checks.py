"""Checks of a kind of task; each kind's test module provides the slow references."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtfed.errors import MtfedError
from mtfed.learning.losses import task_loss
from mtfed.learning.metrics import TaskMetrics, pool
from mtfed.tasks import dose
from mtfed.tasks.kind import kind_of
from mtfed.tasks.specs import METRIC_SPECS
from mtfed.tasks.task import Task

from .kinds import config, examples, perfect, sigmoid, source, trained_by

Reference = Callable[[np.ndarray, np.ndarray, Task], float]  # of outputs and values


def check_cell(task: Task, cell: str, label: Any) -> None:
    values = kind_of(task).read(cell, task, source())
    np.testing.assert_allclose(values, label, rtol=1e-6)
    assert values.dtype == (np.float32 if task.kind == "regression" else np.int64)


def check_invalid_cell(task: Task, cell: str, message: str) -> None:
    with pytest.raises(MtfedError, match=message):
        kind_of(task).read(cell, task, source())


def check_loss(task: Task, term: str, reference: Reference) -> None:
    """Check the value of a loss, and that it has a gradient."""
    outputs, values = examples(task)
    outputs.requires_grad_()
    loss = task_loss(trained_by(task, term), config(task))(outputs, values)
    expected = reference(outputs.detach().numpy(), values.numpy(), task)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert outputs.grad is not None and outputs.grad.isfinite().all() and outputs.grad.any()


def check_no_loss(task: Task, term: str, outputs: Tensor, values: Tensor) -> None:
    loss = task_loss(trained_by(task, term), config(task))(outputs, values.long())
    assert float(loss) == pytest.approx(0, abs=1e-6)


def check_curvature(task: Task, term: str, factor: float) -> None:
    """Check that the square of the kind's curvature factor, times a factor, is the Hessian of a loss.

    The curvature of these losses is diagonal. So is E[z z^T], because signs are independent; z^2 is its diagonal.
    """
    outputs, values = examples(task, images=3)
    loss = task_loss(trained_by(task, term), config(task))
    hessian = torch.autograd.functional.hessian(lambda x: 3 * loss(x.view_as(outputs), values), outputs.flatten())
    assert isinstance(hessian, Tensor)
    assert torch.equal(hessian, hessian.diag().diag())
    draws = torch.stack([kind_of(task).curvature_factor(outputs, values, task).flatten() for _ in range(40)])
    for draw in draws[:2]:
        np.testing.assert_allclose(factor * draw**2, hessian.diag(), rtol=1e-6, atol=1e-12)
    assert all({-1.0, 1.0} == set(draws[:, i].sign().tolist()) for i in draws[0].nonzero().flatten())


def check_metrics(task: Task, references: Mapping[str, Reference]) -> None:
    """Check that the metrics of two sites add up to those of all their images."""
    sites = [examples(task, images=m, seed=m) for m in (11, 26)]
    sums: dict[str, Any] = {}
    for outputs, values in sites:
        metrics = TaskMetrics(task)
        for part in torch.arange(len(values)).split(10):  # in batches
            metrics.update(outputs[part], values[part])
        for key, value in metrics.sums().items():
            sums[key] = np.add(sums[key], value).tolist() if key in sums else value
    pooled = pool([task], sums)[task.name]
    outputs, values = (torch.cat(parts).numpy() for parts in zip(*sites, strict=True))
    assert pooled.compute() == {
        metric: pytest.approx(references[metric](outputs, values, task), rel=1e-5, abs=1e-6) for metric in task.metrics
    }


def check_directions(task: Task) -> None:
    """Check for every metric that a perfect prediction is best in the direction that its spec contains."""
    outputs, values = examples(task, images=30)
    good, bad = computed(task, perfect(task, values), values), computed(task, outputs, values)
    for metric, value in good.items():
        higher = METRIC_SPECS[metric].higher_is_better
        assert value == pytest.approx(1 if higher else 0, abs=1e-5)
        assert (value > bad[metric]) == higher


def computed(task: Task, outputs: Tensor, values: Tensor) -> dict[str, float]:
    metrics = TaskMetrics(task)
    metrics.update(outputs, values)
    return metrics.compute()


def shown(task: Task, outputs: Tensor | None = None) -> np.ndarray:
    """Return what the record contains of outputs."""
    return kind_of(task).show(examples(task)[0].float() if outputs is None else outputs, task)


# Slow losses that two kinds share.


def bernoulli(logit: float, truth: int, gamma: float = 0) -> float:
    p = sigmoid(logit) if truth else 1 - sigmoid(logit)
    return -((1 - p) ** gamma) * np.log(p)


def entropy(outputs: np.ndarray, values: np.ndarray, task: Task, gamma: float = 0) -> float:
    """Return the cross-entropy of labels or masks, mean over pixels, the known classes of an image, and images."""
    images = []
    for output, value in zip(outputs, values, strict=True):
        each = []
        for o, v in zip(output.reshape(len(output), -1), value.reshape(len(value), -1), strict=True):
            if v[0] not in (-1, 255):
                each.append(np.mean([bernoulli(x, t, gamma) for x, t in zip(o, v, strict=True)]))
        images.append(np.mean(each))
    return float(np.mean(images))


def over_known(term: Callable[[float], float]) -> Reference:
    """Return the mean over images of a term over the known numbers, in units of the range."""

    def slow(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
        low, high = task.range
        if task.kind == "dose":
            values = np.where(values[:, :1] >= 0, values[:, :1] / dose.STEPS * (high - low) + low, np.nan)
        images = []
        for output, value in zip(outputs, values, strict=True):
            truth = (value.astype(float) - low) / (high - low)
            images.append(np.mean([term(o - t) for o, t in zip(output.flat, truth.flat, strict=True) if t == t]))
        return float(np.mean(images))

    return slow


def slow_overlap(ratio: Callable[[int, int, int], float]) -> Reference:
    def slow(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
        overlaps = []
        for o, v in zip(outputs.reshape(-1, 4, 5), values.reshape(-1, 4, 5), strict=True):
            a, b = o > 0, v == 1
            if v[0, 0] != 255:
                overlaps.append(1.0 if not (a | b).any() else ratio(int((a & b).sum()), int(a.sum()), int(b.sum())))
        return float(np.mean(overlaps))

    return slow
