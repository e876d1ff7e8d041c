"""The learning rate of the encoder relative to that of the decoders; 0 freezes the encoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.two_tasks import config, random_shard
from mtfed.config import read_config
from mtfed.errors import MtfedError
from mtfed.learning.curvature import curvature
from mtfed.learning.optimizer import adamw, encoder_rates, set_learning_rate
from mtfed.learning.train import train
from mtfed.models.build import build_model
from mtfed.models.system import MultiTaskModel

torch.set_num_threads(1)
TASKS = ["pneumonia", "lungs"]


def trained(steps: int = 3, **settings: Any) -> tuple[MultiTaskModel, dict[str, Tensor]]:
    """Return a model after some steps of training, and its tensors before."""
    run = config(local_steps=steps, batch_size=12, **settings)
    model = build_model(run)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    backforward = run.backforward_rounds > 0
    train(model, random_shard(), TASKS, run, seed=1, learning_rate=1e-2, backforward=backforward)
    return model, before


@pytest.mark.parametrize(
    ("settings", "encoder"),
    [
        ({}, ("encoder.body.",)),
        ({"model": "hard-sharing", "encoder": "resnet10t"}, ("encoder.body.",)),  # batch norms keep their statistics
        ({"model": "single-task"}, ("encoder.own.",)),
        ({"model": "mtan"}, ("encoder.body.",)),
        ({"model": "ctan"}, ("encoder.body.",)),
        ({"model": "medformer"}, ("encoder.patches.", "encoder.latents", "encoder.blocks.", "encoder.writer.")),
        ({"backforward_rounds": 1}, ("encoder.body.",)),
        ({"balancing": "pcgrad"}, ("encoder.body.",)),
    ],
)
def test_a_frozen_encoder_keeps_every_bit(settings: dict[str, Any], encoder: tuple[str, ...]) -> None:
    model, before = trained(encoder_rate=0.0, **settings)
    changed = {name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    frozen = {name for name in before if model.is_encoder(name)}
    assert all(any(name.startswith(prefix) for name in frozen) for prefix in encoder)
    assert not changed & frozen
    assert not any("bottlenecks" in name for name in frozen)  # MTAN's, which no pretrained weights provide
    assert {f"decoders.{task}" for task in TASKS} <= {".".join(name.split(".")[:2]) for name in changed}
    assert all(weight.requires_grad for weight in model.parameters())
    assert all(module.training for module in model.modules())
    if settings.get("model") in ("mtan", "ctan", "medformer"):  # what such a model builds for its tasks is not frozen
        assert any(name.startswith("encoder.") for name in changed)


@pytest.mark.parametrize("settings", [{}, {"backforward_rounds": 1}])
def test_the_first_step_of_the_encoder_is_as_large_as_its_rate(settings: dict[str, Any]) -> None:
    sizes = []  # AdamW's first step is the learning rate, whatever the gradient is
    for rate in (1.0, 0.1):
        model, before = trained(1, encoder_rate=rate, weight_decay=0.0, **settings)
        moves = {name: (tensor - before[name]).abs() for name, tensor in model.state_dict().items()}
        sizes.append({name: float(move.median()) for name, move in moves.items() if move.any()})
    for name, size in sizes[0].items():
        factor = 0.1 if name.startswith("encoder.") else 1.0
        assert sizes[1][name] == pytest.approx(factor * size, rel=0.05, abs=1e-5), name


def test_one_rate_is_one_group_of_the_optimiser() -> None:
    model = build_model(config())
    for rate, groups in ((1.0, 1), (0.5, 2)):
        settings = config(encoder_rate=rate)
        optimizer = adamw(model.parameters(), encoder_rates(model, settings), settings)
        set_learning_rate(optimizer, 0.1)
        assert sorted(group["lr"] for group in optimizer.param_groups) == sorted({0.1 * rate, 0.1})
        assert len(optimizer.param_groups) == groups
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_a_frozen_encoder_has_no_curvature() -> None:
    settings = config(encoder_rate=0.0)
    model = build_model(settings)
    measured = curvature(model, random_shard(), TASKS, settings, seed=0)
    assert measured and not any(model.is_encoder(name) for name in measured)


def test_a_negative_rate_is_refused() -> None:
    values = {"task.lungs.kind": "segmentation", "task.lungs.classes": "background, lung", "encoder-rate": -1.0}
    with pytest.raises(MtfedError, match="encoder-rate"):
        read_config(values)
