"""Masked patches: the mask, the losses and R² against slow references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.pretext import copies, pretext_task
from mtfed.config import Config
from mtfed.learning.losses import task_loss
from mtfed.learning.metrics import TaskMetrics
from mtfed.tasks.kind import kind_of
from mtfed.tasks.reconstruction import random_mask

TASK = pretext_task("reconstruction")
SIZES = [((64, 64), 8, 8), ((16, 16), 4, 4), ((40, 40), 5, 8), ((36, 36), 4, 9), ((50, 50), 6, 9), ((16, 16, 16), 4, 4)]


@pytest.mark.parametrize(("size", "patch", "grid"), SIZES)
def test_a_mask_covers_a_share_of_the_patches(size: tuple[int, ...], patch: int, grid: int) -> None:
    torch.manual_seed(0)
    masks = random_mask(5, size).numpy()
    assert masks.shape == (5, 1, *size)
    for mask in masks[:, 0]:
        means = []
        for corner in np.ndindex(*(grid,) * len(size)):
            block = mask[tuple(slice(patch * i, patch * (i + 1)) for i in corner)]
            assert block.size and block.min() == block.max()
            means.append(block.mean())
        assert sum(means) == round(0.6 * grid ** len(size))
    assert len({mask.tobytes() for mask in masks}) == 5


@pytest.mark.parametrize("shape", [(3, 1, 16, 16), (2, 3, 16, 16), (2, 1, 16, 16, 16)])
def test_masked_pixels_are_zero_and_the_others_stay(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape)
    masked, values = copies("reconstruction", images)
    mask = values[:, -1:].bool().expand_as(images)
    assert torch.equal(values[:, :-1], images)
    assert not masked[mask].any() and torch.equal(masked[~mask], images[~mask])


def outputs_and_values(channels: int) -> tuple[Tensor, Tensor]:
    _, values = copies("reconstruction", torch.randn(4, channels, 18, 18))  # patches at the edge are smaller
    return torch.randn(4, channels, 18, 18, requires_grad=True), values


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("term", ["l1", "mse"])
def test_a_loss_is_the_mean_over_masked_pixels(term: str, channels: int) -> None:
    outputs, values = outputs_and_values(channels)
    task = pretext_task("reconstruction", loss=term)
    loss = task_loss(task, Config(tasks={task.name: task}))(outputs, values)
    means = []
    for output, value in zip(outputs.detach().numpy(), values.numpy(), strict=True):
        errors = [
            abs(output[c, y, x] - value[c, y, x]) ** {"l1": 1, "mse": 2}[term]
            for c, y, x in np.ndindex(*output.shape)
            if value[-1, y, x]
        ]
        means.append(np.mean(errors))
    assert float(loss.detach()) == pytest.approx(np.mean(means), rel=1e-5)
    loss.backward()
    assert outputs.grad is not None and not outputs.grad[values[:, -1:].expand_as(outputs) == 0].any()


def test_the_curvature_is_that_of_half_the_squared_error() -> None:
    outputs, values = outputs_and_values(1)
    factor = kind_of(TASK).curvature_factor(outputs.detach(), values, TASK)
    loss = task_loss(pretext_task("reconstruction", loss="mse"), Config(tasks={TASK.name: TASK}))
    gradient = torch.autograd.grad(len(outputs) / 2 * loss(outputs, values), outputs)[0]
    error = outputs.detach() - values[:, :-1]
    torch.testing.assert_close(factor.square() * error, gradient)  # the gradient of a quadratic is linear


def test_r2_of_two_batches_is_that_of_all_masked_pixels() -> None:
    outputs, values = outputs_and_values(3)
    metrics = TaskMetrics(TASK)
    metrics.update(outputs[:1], values[:1])
    metrics.update(outputs[1:], values[1:])
    mask = values[:, -1:].bool().expand_as(outputs)
    truth, predicted = values[:, :-1][mask].double(), outputs.detach()[mask].double()
    expected = 1 - (predicted - truth).square().sum() / (truth - truth.mean()).square().sum()
    assert metrics.compute() == {"r2": pytest.approx(float(expected), rel=1e-6)}
    perfect = TaskMetrics(TASK)
    perfect.update(values[:, :-1], values)
    assert perfect.compute() == {"r2": 1.0}
