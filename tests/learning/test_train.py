"""Local training."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import three_tasks
from helpers.three_tasks import HISTORY, ROWS, tiny
from helpers.two_tasks import config, random_shard
from mtfed.data.loading import load_shard
from mtfed.data.simulated_sites import simulated_site
from mtfed.learning.balancing import (
    BALANCING,
)
from mtfed.learning.optimizer import add_proximal_gradients
from mtfed.learning.train import train
from mtfed.models.build import build_model

torch.set_num_threads(1)


def test_training_learns_and_repeats() -> None:
    settings = config(local_steps=12, batch_size=12)
    results = []
    for _ in range(2):
        model = build_model(settings)
        first = train(
            model,
            random_shard(),
            ["pneumonia", "lungs"],
            config(local_steps=1, batch_size=12),
            seed=3,
            learning_rate=1e-3,
        )
        result = train(model, random_shard(), ["pneumonia", "lungs"], settings, seed=3, learning_rate=3e-3)
        results.append([t.clone() for t in model.state_dict().values()])
        assert result.steps == 12 and result.samples == {"pneumonia": 72, "lungs": 72}
        mean = result.loss_sums["pneumonia"] / result.samples["pneumonia"]
        assert mean < first.loss_sums["pneumonia"] / first.samples["pneumonia"]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_only_the_named_tasks_are_trained() -> None:
    model = build_model(config())
    before = {part: {n: t.clone() for n, t in tensors.items()} for part, tensors in model.parts().items()}
    result = train(
        model,
        random_shard(),
        ["lungs"],
        config(local_epochs=2, local_steps=0, batch_size=4),
        seed=0,
        learning_rate=1e-3,
    )
    assert result.samples == {"lungs": 12} and result.steps == 4
    changed = {
        part: any(not torch.equal(t, before[part][n]) for n, t in tensors.items())
        for part, tensors in model.parts().items()
    }
    assert changed == {"encoder": True, "decoder.pneumonia": False, "decoder.lungs": True}


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 3),
        ({"local_epochs": 2}, 6),
        ({"min_steps": 5}, 5),
        ({"min_steps": 2}, 3),
        ({"local_steps": 1, "min_steps": 5}, 1),
    ],
)
def test_number_of_steps(settings: dict, steps: int) -> None:
    result = train(
        build_model(config()),
        random_shard(),
        ["lungs", "pneumonia"],
        config(**({"local_steps": 0, "batch_size": 5} | settings)),
        seed=0,
        learning_rate=1e-3,
    )
    assert result.steps == steps


def test_the_learning_rate_rises_and_the_gradient_is_clipped() -> None:
    """AdamW's first step moves a weight by its learning rate; a gradient that is clipped to nothing moves none."""
    shard = random_shard()

    def moved(steps: int, warmup: int = 0, **settings: object) -> float:
        model = build_model(config())
        before = model.encoder.body.pos_embed.detach().clone()
        given = config(local_steps=steps, weight_decay=0.0, **settings)
        train(model, shard, ["lungs"], given, seed=0, learning_rate=1e-3, warmup=warmup)
        return float((model.encoder.body.pos_embed.detach() - before).abs().max())

    assert moved(1) == pytest.approx(1e-3, rel=1e-3)
    assert moved(1, warmup=3) == pytest.approx(0.25e-3, rel=1e-3)
    assert moved(2, warmup=1) == pytest.approx(1.5e-3, rel=0.02)
    assert moved(1, clip_norm=1e9) == moved(1)
    assert moved(1, clip_norm=1e-12) < 1e-5


def test_the_proximal_pull_is_the_gradient_of_its_term() -> None:
    torch.manual_seed(0)
    weight, anchor = torch.randn(5, requires_grad=True), torch.randn(5)
    plain = torch.randn(5)
    weight.grad = plain.clone()
    without_gradient = torch.ones(2)
    add_proximal_gradients([(weight, anchor, 0.3), (without_gradient, torch.zeros(2), 0.3)])
    assert without_gradient.grad is None
    (term,) = torch.autograd.grad(0.3 / 2 * (weight - anchor).square().sum(), weight)
    torch.testing.assert_close(weight.grad, plain + term)

    def drift(**pull: Any) -> float:
        model = build_model(config())
        start = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        settings = config(local_steps=20, weight_decay=0.0)
        train(model, random_shard(), ["pneumonia"], settings, seed=0, learning_rate=1e-3, **pull)
        return float((torch.cat([p.detach().flatten() for p in model.parameters()]) - start).norm())

    everything = dict.fromkeys((name for name, _ in build_model(config()).named_parameters()), 1.0)
    some = {name: mu for name, mu in everything.items() if "mlp" in name}
    free, pulled = drift(), drift(proximal_mu=1.0)
    assert pulled < drift(pull=some) < free
    assert drift(pull=everything) == pulled


def test_a_real_site_trains() -> None:
    shard = load_shard(simulated_site(config(), 2, 8).part("train"), config())
    result = train(
        build_model(config()), shard, ["pneumonia", "lungs"], config(local_steps=3), seed=0, learning_rate=1e-3
    )
    assert all(np.isfinite(value) for value in result.loss_sums.values())


def test_the_same_seed_gives_the_same_weights() -> None:
    def trained(balancing: str, seed: int) -> Tensor:
        model, settings = tiny(), three_tasks.config(balancing=balancing, batch_size=5, local_steps=6, accumulate=2)
        train(model, three_tasks.shard(), list(ROWS), settings, seed=seed, learning_rate=1e-2, history=HISTORY)
        return torch.cat([weight.detach().flatten() for weight in model.parameters()])

    results = {name: trained(name, 0) for name in BALANCING}
    for name, weights in results.items():
        assert torch.equal(weights, trained(name, 0)) and not torch.equal(weights, trained(name, 1))
    assert all(not torch.equal(a, b) for a, b in pairwise(results.values()))
