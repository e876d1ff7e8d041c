"""Losses and curvatures of the kinds against slow references."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.kinds import FINDINGS, GRADE, PARTS, TASKS, config, examples, patients, sigmoid, trained_by
from mtfed.learning.losses import task_loss
from mtfed.tasks import dose
from mtfed.tasks.kind import kind_of
from mtfed.tasks.task import Task


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


def cumulative(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    each = [sum(bernoulli(o, v > k) for k, o in enumerate(output)) for output, v in zip(outputs, values, strict=True)]
    return float(np.mean(each))


def over_known(term: Callable[[float], float]) -> Callable[[np.ndarray, np.ndarray, Task], float]:
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


def soft_dice(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    images = []
    for output, value in zip(outputs, values, strict=True):
        each = []
        for p, v in zip(sigmoid(output), value, strict=True):
            if v[0, 0] != 255:
                each.append(1 - (2 * (p * v).sum() + 1e-5) / (p.sum() + v.sum() + 1e-5))
        images.append(np.mean(each))
    return float(np.mean(images))


def histogram(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    high, total = task.range[1], []
    for predicted, planned, _, masks, _ in patients(outputs, values, task):
        each = []
        for mask in masks.values():
            for level in (np.arange(32) + 0.5) / 32:
                shares = [np.mean(sigmoid(32 * (gray[mask] / high - level))) for gray in (predicted, planned)]
                each.append((shares[0] - shares[1]) ** 2)
        total.append(np.mean(each))
    return float(np.mean(total))


LOSSES: dict[tuple[str, str], Callable[[np.ndarray, np.ndarray, Task], float]] = {
    ("findings", "cross-entropy"): entropy,
    ("findings", "focal"): lambda outputs, values, task: entropy(outputs, values, task, 1.5),
    ("grade", "coral"): cumulative,
    ("axes", "l1"): over_known(abs),
    ("axes", "mse"): over_known(lambda d: d * d),
    ("axes", "huber"): over_known(lambda d: d * d / 0.2 if abs(d) < 0.1 else abs(d) - 0.05),
    ("parts", "cross-entropy"): entropy,
    ("parts", "focal"): lambda outputs, values, task: entropy(outputs, values, task, 1.5),
    ("parts", "dice"): soft_dice,
    ("dose", "l1"): over_known(abs),
    ("dose", "mse"): over_known(lambda d: d * d),
    ("dose", "dvh"): histogram,
}


@pytest.mark.parametrize(("name", "term"), LOSSES)
def test_losses_agree_with_their_definitions(name: str, term: str) -> None:
    task = TASKS[name]
    outputs, values = examples(task)
    outputs.requires_grad_()
    loss = task_loss(trained_by(task, term), config(task))(outputs, values)
    expected = LOSSES[name, term](outputs.detach().numpy(), values.numpy(), task)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert outputs.grad is not None and outputs.grad.isfinite().all() and outputs.grad.any()


def test_every_loss_and_metric_of_these_kinds_is_implemented() -> None:
    for task in TASKS.values():
        kind = kind_of(task)
        assert {term for name, term in LOSSES if TASKS[name].kind == task.kind} == set(task.spec.losses)
        assert set(kind.losses) == set(task.spec.losses) and set(kind.metrics) == set(task.metrics)


def test_a_confident_correct_prediction_has_no_loss() -> None:
    for outputs, values, task, term in (
        (torch.full((1, 3, 2, 2), -100.0), torch.zeros(1, 3, 2, 2), PARTS, "dice"),  # neither present nor predicted
        (torch.tensor([[100.0, 100.0, -100.0]]), torch.tensor([2]), GRADE, "coral"),
        (torch.tensor([[100.0, -100.0, 3.0]]), torch.tensor([[1, 0, -1]]), FINDINGS, "focal"),
    ):
        loss = task_loss(trained_by(task, term), config(task))(outputs, values.long())
        assert float(loss) == pytest.approx(0, abs=1e-6)


CURVATURES = [("findings", "cross-entropy", 1), ("grade", "coral", 1), ("parts", "cross-entropy", 1),
              ("axes", "mse", 2), ("dose", "mse", 2)]  # fmt: skip


@pytest.mark.parametrize(("name", "term", "times"), CURVATURES)
def test_the_square_of_the_factor_is_the_curvature(name: str, term: str, times: float) -> None:
    """The curvature of these losses is diagonal. So is E[z z^T], because signs are independent; z^2 is its diagonal."""
    task = TASKS[name]
    outputs, values = examples(task, images=3)
    loss = task_loss(trained_by(task, term), config(task))
    hessian = torch.autograd.functional.hessian(lambda x: 3 * loss(x.view_as(outputs), values), outputs.flatten())
    assert isinstance(hessian, Tensor)
    assert torch.equal(hessian, hessian.diag().diag())
    draws = torch.stack([kind_of(task).curvature_factor(outputs, values, task).flatten() for _ in range(40)])
    for draw in draws[:2]:
        np.testing.assert_allclose(times * draw**2, hessian.diag(), rtol=1e-6, atol=1e-12)
    assert all({-1.0, 1.0} == set(draws[:, i].sign().tolist()) for i in draws[0].nonzero().flatten())
