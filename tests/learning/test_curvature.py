"""The curvature that a site measures, against all labels, samples and pixels one by one."""

from __future__ import annotations

import math
from functools import cache
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from helpers import SMALL, TASKS
from mtfed.config import Config, read_config
from mtfed.data.shard import Labels, Shard, standardise
from mtfed.learning.balancing import BALANCING
from mtfed.learning.curvature import MICRO_BATCH, curvature
from mtfed.models.build import build_model
from mtfed.models.system import MultiTaskModel

torch.set_num_threads(1)
SIDE, SEEDS = 4, 300
COUNTS = {"pneumonia": 7, "lungs": 5}


def config(**changes: object) -> Config:
    return read_config(TASKS | SMALL | {key.replace("_", "-"): value for key, value in changes.items()})


class Tiny(nn.Module):
    """An encoder and two decoders of a few weights, in double precision, with parts that no output depends on."""

    frozen: frozenset[str] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.ModuleDict({"used": nn.Conv2d(1, 3, 3, padding=1), "unused": nn.Linear(2, 2)})
        self.decoders = nn.ModuleDict({
            "lungs": nn.ModuleDict({"head": nn.Conv2d(3, 2, 1), "spare": nn.Linear(2, 2)}),
            "pneumonia": nn.ModuleDict({"norm": nn.BatchNorm1d(3), "head": nn.Linear(3, 2)}),
        })  # fmt: skip
        self.balance = nn.ParameterDict({"lungs": torch.tensor(0.4), "pneumonia": torch.tensor(-0.7)})
        self.double()
        for weight in self.parameters():
            if weight.ndim:
                nn.init.normal_(weight, std=0.8)
        self.encoder["unused"].bias.requires_grad_(False)

    def forward(self, images: Tensor, rows: dict[str, Tensor], words: Tensor | None = None) -> dict[str, Tensor]:
        features = self.encoder["used"](images.double()).tanh()
        own = {task: features[index] for task, index in rows.items()}
        outputs = {}
        if "lungs" in own:
            outputs["lungs"] = self.decoders["lungs"]["head"](own["lungs"])
        if "pneumonia" in own:
            decoder = self.decoders["pneumonia"]
            outputs["pneumonia"] = decoder["head"](decoder["norm"](own["pneumonia"].mean((2, 3))))
        return outputs

    def parts(self) -> dict[str, dict[str, Tensor]]:
        parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder.lungs": {}, "decoder.pneumonia": {}}
        for name, tensor in self.state_dict().items():
            kind, _, rest = name.partition(".")
            parts["encoder" if kind == "encoder" else "decoder." + rest.partition(".")[0]][name] = tensor
        return parts


def tiny() -> MultiTaskModel:
    return cast(MultiTaskModel, Tiny())


def shard() -> Shard:
    g = torch.Generator().manual_seed(0)
    n = sum(COUNTS.values())
    lungs = torch.arange(COUNTS["pneumonia"] - 2, n - 2)  # three images carry both labels, the last two none
    labels = {
        "pneumonia": Labels(torch.arange(COUNTS["pneumonia"]), torch.zeros(COUNTS["pneumonia"], dtype=torch.long)),
        "lungs": Labels(lungs, torch.zeros(len(lungs), SIDE, SIDE, dtype=torch.uint8)),
    }
    return Shard(torch.randint(0, 255, (n, 1, SIDE, SIDE), generator=g, dtype=torch.uint8), labels)


@cache
def exact(task: str) -> dict[str, Tensor]:
    """Return sum over samples, mean over pixels, of E[(d log p_c)^2] over the classes c that the model expects."""
    model, data = tiny().eval(), shard()
    weights = {
        name: weight for name, weight in model.named_parameters()
        if weight.requires_grad and name.startswith(("encoder.", f"decoders.{task}."))
    }  # fmt: skip
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for row in data.labels[task].rows:
        images = standardise(data.images[row : row + 1])
        logs = model(images, {task: torch.tensor([0])})[task][0].log_softmax(0).reshape(2, -1)  # (K, pixels)
        for pixel in range(logs.shape[1]):
            for log_p in logs[:, pixel]:
                gradients = torch.autograd.grad(log_p, list(weights.values()), retain_graph=True, allow_unused=True)
                for name, gradient in zip(weights, gradients, strict=True):
                    if gradient is not None:
                        total[name] += log_p.detach().exp() * gradient.square() / logs.shape[1]
    return total


def scale(task: str, balancing: str) -> float:
    s = float(Tiny().balance[task].detach())
    return 1 / (2 * math.exp(s)) if balancing == "uncertainty" else 1.0


@pytest.mark.parametrize(
    ("tasks", "balancing", "samples"),
    [
        (["pneumonia"], "equal", 0),
        (["lungs"], "uncertainty", 0),
        (["lungs", "pneumonia"], "uncertainty", 0),
        (["lungs", "pneumonia"], "equal", 0),
        (["pneumonia"], "uncertainty", 3),
        (["lungs", "pneumonia"], "equal", 3),
    ],
)
def test_the_mean_over_draws_is_the_exact_curvature(tasks: list[str], balancing: str, samples: int) -> None:
    model, data, settings = tiny(), shard(), config(balancing=balancing)
    draws = [curvature(model, data, tasks, settings, seed=seed, samples=samples) for seed in range(SEEDS)]
    expected: dict[str, Tensor] = {}
    for task in tasks:
        for name, value in exact(task).items():
            expected[name] = expected.get(name, torch.zeros_like(value)) + value * scale(task, balancing)
    result = {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
    if balancing == "uncertainty":
        expected |= {f"balance.{task}": torch.tensor(COUNTS[task] / 2).double() for task in tasks}
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        error = result[name].std(0) / SEEDS**0.5
        assert ((result[name].mean(0) - value).abs() <= 5 * error + 1e-12).all(), name
        assert result[name].dtype == value.dtype
    off, error, size = (
        float(torch.cat([value.flatten() for value in values]).norm())
        for values in (
            [result[name].mean(0) - value for name, value in expected.items()],
            [result[name].std(0) / SEEDS**0.5 for name in expected],
            list(expected.values()),
        )
    )
    assert off <= 3 * error + 1e-9 and error < 0.2 * size


@pytest.mark.parametrize("balancing", ["uncertainty", "dwa", "gradnorm", "pcgrad"])
def test_a_task_is_weighed_as_its_loss(balancing: str) -> None:
    history = {"lungs": [1.0, 0.9, 0.8], "pneumonia": [1.0, 0.9, 0.2]}
    rule = BALANCING[balancing](tiny().balance, history)
    weights = rule.weights(["lungs", "pneumonia"])
    assert (len({*weights.values(), 1.0}) == 3) == (balancing != "pcgrad")

    def measured(name: str) -> dict[str, Tensor]:
        return curvature(tiny(), shard(), ["lungs", "pneumonia"], config(balancing=name), seed=0, history=history)

    result, plain = measured(balancing), measured("equal")
    for task, weight in weights.items():
        for name in (name for name in plain if name.startswith(f"decoders.{task}.")):
            torch.testing.assert_close(result[name], weight * plain[name])
    expected_balance = {f"balance.{task}": count / 2 for task, count in COUNTS.items()} if rule.learns else {}
    assert {name: float(value) for name, value in result.items() if name.startswith("balance")} == expected_balance


def test_unused_weights_have_no_curvature() -> None:
    result = curvature(tiny(), shard(), ["lungs", "pneumonia"], config(), seed=0)
    zero = {name for name, value in result.items() if not value.any()}
    assert zero == {"encoder.unused.weight", "decoders.lungs.spare.weight", "decoders.lungs.spare.bias"}
    assert not any(name.startswith("decoders.lungs") for name in curvature(tiny(), shard(), ["pneumonia"], config(),
                                                                           seed=0))  # fmt: skip


def test_the_same_seed_gives_the_same() -> None:
    def drawn(seed: int, samples: int = 0) -> dict[str, Tensor]:
        return curvature(tiny(), shard(), ["lungs", "pneumonia"], config(), seed=seed, samples=samples)

    first = drawn(1)
    for other, equal in ((drawn(1), True), (drawn(1, 99), True), (drawn(2), False), (drawn(1, 3), False)):
        assert all(torch.equal(first[name], other[name]) for name in first) == equal


@pytest.mark.parametrize("count", [MICRO_BATCH - 1, 2 * MICRO_BATCH + 1])
def test_every_sample_counts_once_however_they_are_batched(count: int) -> None:
    data = shard()
    images = data.images[:1].expand(count, 1, SIDE, SIDE)
    many = Shard(images, {"pneumonia": Labels(torch.arange(count), torch.zeros(count, dtype=torch.long))})
    single_shard = Shard(images[:1], {"pneumonia": Labels(torch.arange(1), torch.zeros(1, dtype=torch.long))})
    result, single = (
        torch.stack([
            curvature(tiny(), own, ["pneumonia"], config(), seed=seed)["decoders.pneumonia.head.weight"]
            for seed in range(150)
        ]).mean(0)
        for own in (many, single_shard)
    )  # fmt: skip
    assert float(result.sum() / (count * single).sum()) == pytest.approx(1, abs=0.3)


def test_the_model_is_left_as_trained() -> None:
    model, settings = build_model(config()).train(), config()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (9, 1, 32, 32), generator=g, dtype=torch.uint8)
    labels = {
        "pneumonia": Labels(torch.arange(0, 9, 2), torch.zeros(5, dtype=torch.long)),
        "lungs": Labels(torch.arange(1, 9, 2), torch.zeros(4, 32, 32, dtype=torch.uint8)),
    }
    result = curvature(model, Shard(images, labels), ["pneumonia", "lungs"], settings, seed=0)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    assert not model.training and not any(value.requires_grad for value in result.values())
    assert {name: value.shape for name, value in result.items()} == {n: p.shape for n, p in model.named_parameters()}
    assert all(bool((value >= 0).all()) and bool(value.isfinite().all()) for value in result.values())
