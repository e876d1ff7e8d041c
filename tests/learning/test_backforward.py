"""Backforward propagation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.two_tasks import config, random_shard
from mtfed.data.shard import Batch
from mtfed.errors import MtfedError
from mtfed.learning.backforward import Backforward
from mtfed.learning.balancing import Equal
from mtfed.learning.losses import BatchLosses
from mtfed.learning.train import OrdinarySteps, train
from mtfed.models.build import build_model

torch.set_num_threads(1)


def test_layers_of_a_chain_are_updated_one_after_another() -> None:
    """Three linear layers in float64 against the method written out by hand, with AdamW's formulas."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 2)).double()
    x, target = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    settings = config(weight_decay=0.1)
    walk = Backforward(model, settings)
    weights = [weight.detach().clone() for weight in model.parameters()]
    first, second = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w) for w in weights]
    for step in range(1, 5):
        inputs = [x]
        for i in range(3):
            inputs.append(inputs[-1] @ weights[2 * i].T + weights[2 * i + 1])
        output_gradients = [2 * (inputs[-1] - target) / target.numel()]  # of the last layer, then of those before it
        for i in (2, 1):
            output_gradients.insert(0, output_gradients[0] @ weights[2 * i])
        activations = x
        for i, g in enumerate(output_gradients):
            for k, gradient in ((2 * i, g.T @ activations), (2 * i + 1, g.sum(0))):
                first[k] = 0.9 * first[k] + 0.1 * gradient
                second[k] = 0.999 * second[k] + 0.001 * gradient**2
                direction = first[k] / (1 - 0.9**step) / ((second[k] / (1 - 0.999**step)).sqrt() + 1e-8)
                weights[k] = weights[k] * (1 - 0.05 * 0.1) - 0.05 * direction
            activations = activations @ weights[2 * i].T + weights[2 * i + 1]
        means = walk.step(Equal({}), regression(model, x, target), batch_of(x), 0.05)
        torch.testing.assert_close(means["t"], (inputs[-1] - target).square().mean())
        for weight, expected in zip(model.parameters(), weights, strict=True):
            torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)


class Branches(nn.Module):
    """A layer that runs twice, a norm whose output is overwritten, a free weight, and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.ones(4))
        self.shared, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.table, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.dropout(x) * self.start)
        x = self.norm(x).relu_()
        return self.last(self.shared(x) + nn.functional.linear(x, self.table.weight))


@pytest.fixture
def branches() -> tuple[Branches, Tensor, Tensor]:
    torch.manual_seed(1)
    return Branches().double(), torch.randn(6, 4).double(), torch.randn(6, 2).double()


def test_a_layer_that_runs_twice_is_updated_at_its_last_call(branches: tuple[Branches, Tensor, Tensor]) -> None:
    """After one step of AdamW without decay, a weight has moved by the learning rate against its gradient's sign."""
    model, x, target = branches
    start = {name: value.clone() for name, value in model.state_dict().items()}
    reference = Branches().double()
    reference.load_state_dict(start)
    torch.manual_seed(3)
    Backforward(model, config(weight_decay=0.0)).step(Equal({}), regression(model, x, target), batch_of(x), 0.1)

    torch.manual_seed(3)
    x = reference.dropout(x)
    a = reference.shared(x * reference.start)
    b = reference.norm(a)
    h = b.relu()
    c, d = reference.shared(h), nn.functional.linear(h, reference.table.weight)
    e = reference.last(c + d)
    loss = (e - target).square().mean()
    ga, gb, gc, ge, gs, gt = torch.autograd.grad(loss, (a, b, c, e, reference.start, reference.table.weight))
    with torch.no_grad():
        start_vector = start["start"] - 0.1 * gs.sign()
        table = start["table.weight"] - 0.1 * gt.sign()
        new_a = (x * start_vector) @ start["shared.weight"].T + start["shared.bias"]
        hat = (new_a - new_a.mean(0)) / (new_a.var(0, unbiased=False) + 1e-5).sqrt()
        gain, bias = start["norm.weight"] - 0.1 * (gb * hat).sum(0).sign(), start["norm.bias"] - 0.1 * gb.sum(0).sign()
        new_h = (hat * gain + bias).relu()
        shared = start["shared.weight"] - 0.1 * (ga.T @ (x * start_vector) + gc.T @ new_h).sign()
        shared_bias = start["shared.bias"] - 0.1 * (ga.sum(0) + gc.sum(0)).sign()
        new_sum = new_h @ shared.T + shared_bias + new_h @ table.T
        last = start["last.weight"] - 0.1 * (ge.T @ new_sum).sign()
    expected = {
        "start": start_vector, "table.weight": table, "norm.weight": gain, "norm.bias": bias, "shared.weight": shared,
        "shared.bias": shared_bias, "last.weight": last, "idle.weight": start["idle.weight"],
        "table.bias": start["table.bias"], "norm.num_batches_tracked": torch.tensor(1),
        "norm.running_mean": 0.1 * new_a.mean(0), "norm.running_var": 0.9 + 0.1 * new_a.var(0),
    }  # fmt: skip
    for name, value in expected.items():
        torch.testing.assert_close(model.state_dict()[name], value.detach(), rtol=1e-5, atol=1e-5, msg=name)


def test_the_gradient_norm_is_limited_by_the_ordinary_gradient(branches: tuple[Branches, Tensor, Tensor]) -> None:
    """Gradients far below AdamW's epsilon of 1e-8 move nothing."""
    model, x, target = branches
    before = [weight.detach().clone() for weight in model.parameters()]
    settings = config(weight_decay=0.0, clip_norm=1e-14)
    Backforward(model, settings).step(Equal({}), regression(model, x, target), batch_of(x), 0.1)
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"model": "ctan", "autocast": "bfloat16"}, {"model": "mtan", "encoder": "resnet10t", "batch_size": 6},
        {"model": "single-task", "clip_norm": 1.0}, {"model": "medformer", "balancing": "dwa"},
    ],
    ids=str,
)  # fmt: skip
def test_every_model_trains_and_repeats(changes: dict[str, Any]) -> None:
    settings = config(**{"local_steps": 5, "batch_size": 12} | changes)
    shard = random_shard()
    batch = next(shard.batches(12))

    def trained() -> tuple[Tensor, float, float]:
        model = build_model(settings).train()
        before = loss(model)
        train(
            model, shard, ["pneumonia", "lungs"], settings, seed=2, learning_rate=2e-3, proximal_mu=0.1,
            backforward=True,
        )  # fmt: skip
        assert not any(module._forward_hooks for module in model.modules())
        return (
            torch.cat([value.detach().flatten().double() for value in model.state_dict().values()]),
            before,
            loss(model),
        )

    def loss(model: Any) -> float:
        with torch.no_grad():
            (piece,) = BatchLosses(model, settings, torch.device("cpu"), 1)(batch)
        return sum(float(value) for value, _ in piece.values())

    (weights, before, after), (again, _, _) = trained(), trained()
    assert torch.equal(weights, again) and after < 0.9 * before


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "medformer"}, {"model": "mtan", "encoder": "resnet10t"}, {"model": "ctan", "autocast": "bfloat16"},
        {"encoder": "swin_s3_tiny_224"},
    ],
    ids=str,
)  # fmt: skip
def test_layers_get_their_ordinary_gradient_as_long_as_no_weight_changes(changes: dict[str, Any]) -> None:
    """With a learning rate of 0, all inputs stay the same, dropped units included, and so do running statistics."""
    settings = config(batch_size=12, **changes)
    (batch,) = random_shard().batches(12)

    def gradients(kind: type[Backforward] | type[OrdinarySteps]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model = build_model(settings).train()
        steps: Any = kind(model, settings) if kind is Backforward else kind(model, list(batch.labels), settings, ())
        groups = [*steps.rest, *steps.layers.values()] if kind is Backforward else [steps]
        torch.manual_seed(0)
        steps.step(Equal({}), BatchLosses(model, settings, torch.device("cpu"), 1, is_plain=True), batch, 0.0)
        states = {weight: state for group in groups for weight, state in group.optimizer.state.items() if state}
        moments = {name: states[w]["exp_avg"] for name, w in model.named_parameters() if w in states}
        return moments, dict(model.named_buffers())

    (walked, walked_buffers), (ordinary, buffers) = gradients(Backforward), gradients(OrdinarySteps)
    assert list(walked) == list(ordinary)
    for name, value in ordinary.items():
        assert (walked[name] - value).norm() <= 1e-5 * value.norm() + 1e-9, name
    assert all(torch.equal(value, walked_buffers[name]) for name, value in buffers.items())


def test_weights_of_other_tasks_stay_as_they_are() -> None:
    settings = config(model="ctan", local_steps=2)
    model = build_model(settings)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, random_shard(), ["lungs"], settings, seed=2, learning_rate=1e-2, backforward=True)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {model.part(name) for name in changed} == {"encoder", "cross.lungs", "decoder.lungs"}


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"accumulate": 2}, "backforward-rounds: expected accumulate = 1"),
        ({"balancing": "pcgrad"}, "backforward-rounds: expected balancing = .*pcgrad"),
        ({"balancing": "gradnorm"}, "backforward-rounds: expected balancing = .*gradnorm"),
        ({"autocast": "float16"}, "autocast: expected .* with backforward-rounds"),
    ],
)
def test_settings_that_need_whole_gradients_are_refused(changes: dict[str, Any], keys: str) -> None:
    config(**changes)
    with pytest.raises(MtfedError, match=f"Config key {keys}"):
        config(**changes, backforward_rounds=1)


def regression(model: nn.Module, x: Tensor, target: Tensor) -> Callable[[Batch], Any]:
    return partial(_regression, model, x, target)


def _regression(model: nn.Module, x: Tensor, target: Tensor, batch: Batch) -> Any:
    return [{"t": ((model(x) - target).square().mean(), 1.0)}]


def batch_of(x: Tensor) -> Batch:
    return Batch(x, {})
