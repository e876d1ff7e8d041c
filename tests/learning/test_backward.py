"""Gradients of a step against gradients computed task by task and image by image, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers import SMALL, TASKS
from helpers.three_tasks import HISTORY, IMAGES, ROWS, SCALARS, SEED, one_step, shard, tiny
from mtfed.config import read_config
from mtfed.data.shard import standardise
from mtfed.learning.backward import backward_by_task
from mtfed.learning.balancing import (
    BALANCING,
    ByGradient,
    GradNorm,
    PCGrad,
)
from mtfed.learning.train import train

torch.set_num_threads(1)


def task_gradients() -> tuple[dict[str, float], dict[str, dict[str, np.ndarray]]]:
    """Return every task's loss and its gradients: means over images, and over pixels, one by one."""
    model, data = tiny(), shard()
    images = standardise(data.images)
    named = {name: weight for name, weight in model.named_parameters() if not name.startswith("balance")}
    losses, gradients = {}, {}
    for task, labels in data.labels.items():
        total = torch.zeros((), dtype=torch.float64)
        for row, value in zip(labels.rows, labels.values, strict=True):
            logs = model(images[row : row + 1], {task: torch.tensor([0])})[task][0].log_softmax(0).reshape(2, -1)
            for pixel, truth in enumerate(value.reshape(-1)):
                total = total - logs[truth, pixel] / logs.shape[1] / len(labels.rows)
        losses[task] = float(total.detach())
        results = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        gradients[task] = {n: g.numpy() for n, g in zip(named, results, strict=True) if g is not None}
    return losses, gradients


SHARED = ["encoder.shared.weight", "encoder.shared.bias", "encoder.streams.lungs.0.weight",
          "encoder.streams.lungs.0.bias"]  # fmt: skip


def flat(gradient: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([gradient[name].ravel() for name in SHARED])


def weighted_sum(gradients: dict[str, dict[str, np.ndarray]], weights: dict[str, float]) -> dict[str, np.ndarray]:
    total: dict[str, np.ndarray] = {}
    for task, gradient in gradients.items():
        for name, value in gradient.items():
            total[name] = total.get(name, 0.0) + weights[task] * value
    return total


def slow_equal(losses: dict, gradients: dict) -> dict:
    return weighted_sum(gradients, dict.fromkeys(losses, 1.0))


def slow_uncertainty(losses: dict, gradients: dict) -> dict:
    weights = {task: 1 / (2 * math.exp(s)) for task, s in SCALARS.items()}
    return weighted_sum(gradients, weights) | {
        f"balance.{t}": np.array(0.5 - losses[t] * w) for t, w in weights.items()
    }


def slow_dwa(losses: dict, gradients: dict) -> dict:
    raised = {task: math.exp(losses[-1] / losses[-2] / 2) for task, losses in HISTORY.items()}
    return weighted_sum(gradients, {task: 3 * value / sum(raised.values()) for task, value in raised.items()})


def gradnorm_weights(v: dict[str, float]) -> dict[str, float]:
    return {task: len(v) * math.exp(value) / sum(map(math.exp, v.values())) for task, value in v.items()}


def slow_gradnorm(losses: dict, gradients: dict) -> dict:
    norms = {task: np.linalg.norm(flat(gradient)) for task, gradient in gradients.items()}
    weights = gradnorm_weights(SCALARS)
    pace = {task: losses[task] / HISTORY[task][0] for task in losses}
    mean_pace = sum(pace.values()) / 3
    mean_norm = sum(weights[task] * norms[task] for task in norms) / 3
    targets = {task: mean_norm * (pace[task] / mean_pace) ** 1.5 for task in pace}  # held fixed

    def objective(v: dict[str, float]) -> float:
        return sum(abs(w * norms[task] - targets[task]) for task, w in gradnorm_weights(v).items())

    step = 1e-6
    slopes = {
        f"balance.{task}": np.array((objective(SCALARS | {task: v + step}) - objective(SCALARS | {task: v - step}))
                                    / (2 * step))
        for task, v in SCALARS.items()
    }  # fmt: skip
    return weighted_sum(gradients, weights) | slopes


def slow_pcgrad(losses: dict, gradients: dict) -> dict:
    torch.manual_seed(SEED)
    torch.randperm(IMAGES)  # of the batch
    tasks = list(losses)
    given = [flat(gradients[task]) for task in tasks]
    total = np.zeros_like(given[0])
    for i in range(3):
        projected = given[i].copy()
        for j in torch.randperm(3).tolist():
            if j != i and projected @ given[j] < 0:
                projected -= projected @ given[j] / (given[j] @ given[j]) * given[j]
        total += projected
    expected, start = slow_equal(losses, gradients), 0
    for name in SHARED:
        size = expected[name].size
        expected[name], start = total[start : start + size].reshape(expected[name].shape), start + size
    return expected


SLOW: dict[str, Any] = {
    "equal": slow_equal,
    "uncertainty": slow_uncertainty,
    "dwa": slow_dwa,
    "gradnorm": slow_gradnorm,
    "pcgrad": slow_pcgrad,
}


@pytest.mark.parametrize("pieces", [1, 3, 5, 99])
@pytest.mark.parametrize("balancing", BALANCING)
def test_a_step_has_the_gradients_of_its_rule_in_any_number_of_pieces(balancing: str, pieces: int) -> None:
    expected = SLOW[balancing](*task_gradients())
    results = one_step(tiny(), balancing=balancing, accumulate=pieces)
    assert results.keys() == expected.keys()  # what nothing depends on gets no gradient, and does not decay
    for name, value in expected.items():
        np.testing.assert_allclose(results[name], value, rtol=1e-6, atol=1e-9, err_msg=name)
    vectors = [flat(gradient) for gradient in task_gradients()[1].values()]
    assert any(a @ b < 0 for a in vectors for b in vectors)  # otherwise PCGrad would have nothing to do


@pytest.mark.parametrize("balancing", [name for name in BALANCING if name != "uncertainty"])
def test_a_single_task_is_trained_with_equal_weights(balancing: str) -> None:
    def trained(rule: str) -> list[Tensor]:
        model = tiny()
        settings = read_config({key: value for key, value in (TASKS | SMALL).items() if "lungs" not in key}
                          | {"balancing": rule, "local-steps": 4, "batch-size": 5})  # fmt: skip
        train(
            model, shard(), ["pneumonia"], settings, seed=0, learning_rate=1e-2, history={"pneumonia": [0.8, 0.6, 0.3]}
        )
        return list(model.parameters())

    assert all(torch.equal(a, b) for a, b in zip(trained(balancing), trained("equal"), strict=True))


@pytest.mark.parametrize("rule", [GradNorm, PCGrad])
def test_the_scale_of_half_precision_reaches_every_gradient(rule: type[ByGradient]) -> None:
    results = []
    for factor in (1.0, 8.0):
        model, data = tiny(), shard()
        batch = next(data.batches(IMAGES))
        outputs = model(batch.images, {task: labels.rows for task, labels in batch.labels.items()})
        piece = {t: (nn.functional.cross_entropy(output, batch.labels[t].values), 1.0) for t, output in outputs.items()}
        own = {task: list(model.decoders[task].parameters()) for task in ROWS}
        torch.manual_seed(0)
        backward_by_task(rule(model.balance, HISTORY), list(ROWS), [piece], list(model.encoder.parameters()),
                         own, lambda loss, factor=factor: loss * factor)  # fmt: skip
        results.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], 8 * gradient)
