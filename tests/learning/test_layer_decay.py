"""The decay of the encoder's learning rate from its last layer to its first."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.two_tasks import config, random_shard
from mtfed.config import read_config
from mtfed.errors import MtfedError
from mtfed.learning.optimizer import adamw, encoder_rates, set_learning_rate
from mtfed.learning.train import train
from mtfed.models.build import build_model
from mtfed.models.system import MultiTaskModel
from mtfed.models.timm_library import timm

torch.set_num_threads(1)
TASKS = ["pneumonia", "lungs"]
VOLUMES = {"dimensions": 3, "model": "hard-sharing"}
Layers = list[str]  # prefixes of the names of each layer's weights, from the first layer to the last


def body(layers: Layers, *prefixes: str) -> Layers:
    """Return the layers of an encoder that a sharing scheme has under some names."""
    return [" ".join(f"{prefix}{name}" for prefix in prefixes or ("body.",) for name in own.split()) for own in layers]


def blocks(*counts: int, stage: str = "stages.{}.") -> Layers:
    """Return the layers of a hierarchical encoder, whose stages have so many blocks."""
    return [f"{stage.format(i)}{j}." for i, count in enumerate(counts) for j in range(count)]


def last(layers: Layers, names: str) -> Layers:
    """Return layers, with more names in the last one."""
    return [*layers[:-1], f"{layers[-1]} {names}"]


VIT = ["pos_embed patch_embed.", *(f"blocks.{i}." for i in range(4)), "fc_norm."]
VIT_TINY = last(["cls_token pos_embed patch_embed.", *(f"blocks.{i}." for i in range(12))], "norm.")
RESNET = ["conv1. bn1.", "layer1.0.", "layer2.0.", "layer3.0.", "layer4.0."]
LITE = last(["conv_stem. bn1.", *blocks(1, 2, 2, 3, 3, 4, 1, stage="blocks.{}.")], "conv_head. bn2.")
SWIN = ["patch_embed.", "stages.0.blocks.0.", "stages.0.blocks.1. mergers.0.", "stages.1.blocks.0."]
SWIN += ["stages.1.blocks.1. mergers.1.", "stages.2.blocks.0.", "stages.2.blocks.1. mergers.2."]
SWIN += ["stages.3.blocks.0.", "stages.3.blocks.1."]
MEDFORMER = ["patches. latents points dimensionality. modality. body_part.", "reader."]
MEDFORMER += [*(f"blocks.{i}." for i in range(4)), "writer.0.", "writer.1."]

CASES: dict[str, tuple[dict[str, Any], Layers]] = {
    "ViT": ({}, body(VIT)),
    "ViT with class token": ({"encoder": "vit_tiny_patch16_224"}, body(VIT_TINY)),
    "ResNet": ({"model": "hard-sharing", "encoder": "resnet10t"}, body(RESNET)),
    "EfficientNet": ({"model": "hard-sharing", "encoder": "tf_efficientnet_lite0"}, body(LITE)),
    "volume ViT": (VOLUMES | {"encoder": "vit3d_mini_patch8", "image_size": 16}, body(VIT)),
    "volume ResNet": (VOLUMES | {"encoder": "resnet3d_mini"}, body(RESNET)),
    "volume Swin": (VOLUMES | {"encoder": "swin3d_mini"}, body(SWIN)),
    "single task": ({"model": "single-task"}, body(VIT, *(f"own.{task}.body." for task in TASKS))),
    "MTAN": ({"model": "mtan", "encoder": "resnet10t"}, body(RESNET)),
    "CTAN": ({"model": "ctan", "encoder": "resnet10t"}, body(RESNET)),
    "Medformer": ({"model": "medformer"}, MEDFORMER),
}


def learning_rates(model: MultiTaskModel, /, **settings: Any) -> dict[str, float]:
    """Return the learning rate of each weight by name, if that of the decoders is 0.1."""
    run = config(**settings)
    optimizer = adamw(model.parameters(), encoder_rates(model, run), run)
    set_learning_rate(optimizer, 0.1)
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    return {name: rates[id(weight)] for name, weight in model.named_parameters()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("encoder_rate", [1.0, 0.5])
def test_every_weight_learns_at_the_rate_of_its_layer(case: str, encoder_rate: float) -> None:
    settings, layers = CASES[case]
    model = build_model(config(**settings))
    rates = learning_rates(model, encoder_rate=encoder_rate, layer_decay=0.7, **settings)
    expected = {name: 0.1 for name in rates if not model.is_encoder(name)}
    for depth, prefixes in enumerate(layers):
        for prefix in prefixes.split():
            names = [name for name in rates if name.startswith(f"encoder.{prefix}")]
            assert names, prefix
            expected |= dict.fromkeys(names, 0.1 * encoder_rate * 0.7 ** (len(layers) - 1 - depth))
    assert rates == pytest.approx(expected, rel=1e-12)


def test_without_decay_the_optimiser_has_one_group_in_the_order_of_the_model() -> None:
    model, run = build_model(config()), config(layer_decay=1.0)
    (group,) = adamw(model.parameters(), encoder_rates(model, run), run).param_groups
    assert [id(weight) for weight in group["params"]] == [id(weight) for weight in model.parameters()]


@pytest.mark.parametrize("settings", [{}, {"backforward_rounds": 1}, {"model": "single-task"}, {"encoder_rate": 0.1}])
def test_the_first_step_of_a_layer_is_as_large_as_its_rate(settings: dict[str, Any]) -> None:
    sizes = {}  # AdamW's first step is the learning rate, whatever the gradient is
    for decay in (1.0, 0.5):
        run = config(local_steps=1, batch_size=12, weight_decay=0.0, layer_decay=decay, **settings)
        model = build_model(run)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        backforward = run.backforward_rounds > 0
        train(model, random_shard(), TASKS, run, seed=1, learning_rate=1e-2, backforward=backforward)
        moves = {name: (tensor - before[name]).abs() for name, tensor in model.state_dict().items()}
        sizes[decay] = {name: float(move.median()) for name, move in moves.items() if move.any()}
    assert sizes[1.0].keys() == sizes[0.5].keys()
    for name, size in sizes[1.0].items():
        depth = next((i for i, prefix in enumerate(VIT[1:]) if f"body.{prefix}" in name), -1) + 1
        factor = 0.5 ** (len(VIT) - 1 - depth) if name.startswith("encoder.") else 1.0
        assert sizes[0.5][name] == pytest.approx(factor * size, rel=0.05, abs=1e-5), name


def test_an_encoder_without_layers_is_refused_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(timm.models.ResNet, "group_matcher")
    settings = {"model": "hard-sharing", "encoder": "resnet10t"}
    model = build_model(config(**settings))
    assert len(set(learning_rates(model, encoder_rate=0.5, **settings).values())) == 2  # that needs no layers
    with pytest.raises(MtfedError, match="Config key layer-decay: expected an encoder whose layers timm groups"):
        build_model(config(layer_decay=0.7, **settings))


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.1])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    values = {"task.lungs.kind": "segmentation", "task.lungs.classes": "background, lung", "layer-decay": decay}
    with pytest.raises(MtfedError, match="layer-decay"):
        read_config(values)
