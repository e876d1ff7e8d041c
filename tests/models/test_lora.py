"""Low-rank updates of encoders: the function, what is trained and sent, and which encoders can be adapted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from helpers import SMALL, TASKS
from helpers.two_tasks import random_shard
from mtfed.config import Config, read_config
from mtfed.errors import MtfedError
from mtfed.learning.train import train
from mtfed.models import pretrained
from mtfed.models.build import build_model
from mtfed.models.encoders import Encoder
from mtfed.models.lora import AdaptedLinear
from mtfed.models.symmetry import derive_axes

torch.set_num_threads(1)
CUBES = {"dimensions": 3, "image-size": 32, "task.lungs.classes": "background, lung"}
MODELS: dict[str, dict[str, Any]] = {
    "plain ViT": {},
    "Swin": {"encoder": "swin_tiny_patch4_window7_224", "image-size": 64},
    "PVT": {"encoder": "pvt_v2_b0"},
    "cubes": CUBES | {"encoder": "vit3d_mini_patch8"},
    "Swin of cubes": CUBES | {"encoder": "swin3d_mini"},
    "single task": {"model": "single-task"},
    "MTAN": {"model": "mtan"},
    "CTAN": {"model": "ctan"},
    "Medformer": {"model": "medformer", "encoder": "vit_nano_patch8"},
}


def config(**settings: Any) -> Config:
    return read_config(TASKS | SMALL | {"lora-rank": 2} | {k.replace("_", "-"): v for k, v in settings.items()})


def test_an_adapted_layer_by_definition() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 4).double()
    layer = AdaptedLinear(linear, 3)
    x = torch.randn(5, 6, dtype=torch.float64)
    assert layer(x).equal(linear(x))
    nn.init.normal_(layer.lora_b)
    expected = x @ (linear.weight + layer.lora_b @ layer.lora_a).T + linear.bias
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.lora_a @ layer.lora_a.T, torch.eye(3, dtype=torch.float64))


def test_the_mean_of_sites_updates_is_the_update_by_their_mean() -> None:
    torch.manual_seed(0)
    layer = AdaptedLinear(nn.Linear(6, 4).double(), 3)
    x, updates = torch.randn(5, 6, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)
    outputs = []
    for update in (*updates, updates.mean(0)):
        layer.lora_b.data = update
        outputs.append(layer(x).detach())
    torch.testing.assert_close(outputs[2], (outputs[0] + outputs[1]) / 2)


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_only_the_updates_and_the_decoders_are_sent(settings: dict[str, Any]) -> None:
    model, plain = build_model(config(**settings)), build_model(config(**settings, lora_rank=0))
    own, before = model.state_dict(), plain.state_dict()
    assert all(tensor.equal(own[name]) for name, tensor in before.items())
    added = own.keys() - before.keys()
    assert added and {name.rpartition(".")[2] for name in added} == {"lora_a", "lora_b"}
    sent = {name for tensors in model.parts().values() for name in tensors}
    encoder = {name for name in own if model.is_encoder(name)}
    assert {name for name in sent if name in encoder} == {name for name in added if name.endswith("lora_b")}
    assert sent | model.frozen == own.keys() and not sent & model.frozen
    graph = derive_axes(model)
    assert not graph.tensors.keys() & model.frozen


@pytest.mark.parametrize("settings", [MODELS[name] for name in ("plain ViT", "Swin", "PVT", "CTAN", "Medformer")])
def test_every_update_is_trained_and_nothing_else_of_the_encoder(settings: dict[str, Any]) -> None:
    run = config(**settings, local_steps=2)
    model = build_model(run)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, random_shard(size=run.image_size), ["lungs", "pneumonia"], run, seed=0, learning_rate=1e-2)
    changed = {name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    assert {name for name in changed if model.is_encoder(name)} == {name for name in before if name.endswith("lora_b")}
    assert any(name.startswith("decoders.") for name in changed)


@pytest.mark.parametrize("case", ["plain ViT", "PVT", "Medformer"])
@pytest.mark.parametrize("later", [{"lora_rank": 0}, {"lora_rank": 3}, {"lora_rank": 0, "encoder_rate": 0.0}])
@torch.no_grad()
def test_a_later_run_starts_from_the_adapted_encoder(case: str, later: dict[str, Any], tmp_path: Path) -> None:
    settings = MODELS[case]
    first = build_model(config(**settings)).eval()
    for name, tensor in first.state_dict().items():
        if name.endswith("lora_b"):
            nn.init.normal_(tensor, std=0.1)
    save_file(first.state_dict(), tmp_path / "best.safetensors")
    run = config(**settings | later, weights=str(tmp_path / "best.safetensors"), seed=7)
    second = build_model(run, pretrained=True).eval()
    image = torch.randn(2, 1, run.image_size, run.image_size)
    rows = {"pneumonia": torch.arange(2)}
    if case == "Medformer":  # a task's latent is not the encoder's
        second.encoder.task_latents.load_state_dict(first.encoder.task_latents.state_dict())
    features = [model.encoder(image, rows)["pneumonia"] for model in (first, second)]
    torch.testing.assert_close(features[1].pooled, features[0].pooled, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(features[1].maps[3], features[0].maps[3], rtol=1e-3, atol=1e-3)


def test_the_fixed_factor_depends_on_the_seed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site may read the file that the server downloads, which draws other random numbers."""
    made: list[nn.Module] = []

    def published(*_: object) -> nn.Module:
        made.append(Encoder("vit_nano_patch8", 32, 1).body)
        return made[0]

    monkeypatch.setattr(pretrained, "_published", published)
    server = build_model(config(encoder="vit_nano_patch8", weights="timm")).state_dict()
    save_file(made[0].state_dict(), tmp_path / "body.safetensors")
    site = build_model(config(encoder="vit_nano_patch8", weights=str(tmp_path / "body.safetensors"))).state_dict()
    assert all(site[name].equal(tensor) for name, tensor in server.items() if name.startswith("encoder."))


REFUSED = [
    ({"model": "hard-sharing", "encoder": "resnet10t"}, "expected an encoder with attention layers to adapt"),
    ({"encoder_rate": 0.0}, "expected encoder-rate above 0 with it"),
    ({"lora_rank": -1}, "lora-rank"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_cannot_be_adapted_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MtfedError, match=message):
        build_model(config(**settings))
