"""Pretrained weights, from files and from timm."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from helpers.encoders import ENCODERS, encoder, image
from mtfed.errors import MtfedError
from mtfed.models import pretrained
from mtfed.models.encoders import Encoder
from mtfed.models.timm_library import timm

torch.set_num_threads(1)

RESIZED = ["vit_nano_patch8", "vit_tiny_patch16_224", "pvt_mini", "resnet_nano", "vit3d_mini_patch8", "resnet3d_mini"]


@pytest.mark.parametrize("name", RESIZED)
@torch.no_grad()
def test_a_file_of_another_size_and_of_colours_gives_the_same_features(name: str, tmp_path: Path) -> None:
    dimensions, _, second = ENCODERS[name][:3]
    source = encoder(name, 3)
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.body.state_dict().items()}}, tmp_path / "body.pth")
    made = encoder(name, 1, second, seed=7, weights=str(tmp_path / "body.pth"))
    grey = image(dimensions, second)
    expected = source(grey.expand(-1, 3, *grey.shape[2:]))
    features = made(grey)
    for a, b in zip([*features.maps, features.pooled], [*expected.maps, expected.pooled], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_grey_weights_adapt_to_colours(tmp_path: Path) -> None:
    source = encoder("resnet_nano", 1)
    save_file(source.body.state_dict(), tmp_path / "grey.safetensors")
    made = encoder("resnet_nano", 3, seed=7, weights=str(tmp_path / "grey.safetensors"))
    grey = image(2, 32)
    torch.testing.assert_close(made(grey.expand(-1, 3, -1, -1)).pooled, source(grey).pooled)


@torch.no_grad()
def test_the_tables_of_windows_are_resized(tmp_path: Path) -> None:
    source = encoder("swin_mini", 3, 64)
    save_file(source.body.state_dict(), tmp_path / "swin.safetensors")
    same = encoder("swin_mini", 3, 64, seed=7, weights=str(tmp_path / "swin.safetensors"))
    x = image(2, 64, 3)
    assert torch.equal(same(x).pooled, source(x).pooled)
    other = encoder("swin_mini", 1, 128, seed=7, weights=str(tmp_path / "swin.safetensors"))
    assert other.body.layers[3].blocks[0].attn.window_size == (4, 4)  # 2 x 2 in the file
    assert torch.equal(other.body.layers[0].blocks[0].mlp.fc1.weight, source.body.layers[0].blocks[0].mlp.fc1.weight)


@torch.no_grad()
def test_a_file_of_a_whole_model_with_a_classifier_is_accepted(tmp_path: Path) -> None:
    source = encoder("resnet_nano")
    tensors = {f"encoder.body.{key}": value for key, value in source.body.state_dict().items()}
    tensors |= {"decoders.lungs.head.weight": torch.ones(3), "encoder.body.fc.weight": torch.ones(5, 64)}
    save_file(tensors, tmp_path / "run.safetensors")
    made = encoder("resnet_nano", seed=7, weights=str(tmp_path / "run.safetensors"))
    for key, value in source.body.state_dict().items():
        assert torch.equal(made.body.state_dict()[key], value)


@torch.no_grad()
def test_missing_tensors_are_logged_and_keep_their_initial_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = encoder("resnet_nano").body.state_dict()
    save_file({k: v for k, v in tensors.items() if not k.startswith("layer4.0.bn1")}, tmp_path / "part.safetensors")
    torch.manual_seed(7)
    fresh = Encoder("resnet_nano", 32, 1).body.state_dict()
    made = encoder("resnet_nano", seed=7, weights=str(tmp_path / "part.safetensors")).body.state_dict()
    for key in made:
        assert torch.equal(made[key], (fresh if key.startswith("layer4.0.bn1") else tensors)[key])
    assert "66 of the 70 tensors of encoder 'resnet_nano'; first missing: layer4.0.bn1.weight" in caplog.text


@torch.no_grad()
def test_a_file_whose_names_are_the_bodys_is_not_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swin = timm.models.swin_transformer
    convert = swin.checkpoint_filter_fn

    def of_an_original(tensors: dict[str, Tensor], body: nn.Module) -> dict[str, Tensor]:  # as in timm 1.0.16
        features = convert(tensors, body)
        pattern = r"layers.(\d).downsample"
        return {re.sub(pattern, lambda m: f"layers.{int(m[1]) + 1}.downsample", key): features[key] for key in features}

    monkeypatch.setattr(swin, "checkpoint_filter_fn", of_an_original)
    source = encoder("swin_mini", 1, 64)
    save_file(source.body.state_dict(), tmp_path / "swin.safetensors")
    for size in (64, 128):
        made = encoder("swin_mini", 1, size, seed=7, weights=str(tmp_path / "swin.safetensors")).body.state_dict()
        for key, value in source.body.state_dict().items():
            assert torch.equal(made[key], value) or (size == 128 and key.endswith("bias_table"))


def test_a_file_of_a_shallower_body_is_refused(tmp_path: Path) -> None:
    shallow, deep = (
        timm.models.ResNet(timm.models.resnet.BasicBlock, layers, channels=(4, 4, 4, 4), num_classes=0)
        for layers in ((1, 1, 1, 1), (1, 1, 2, 1))
    )
    save_file(shallow.state_dict(), tmp_path / "shallow.safetensors")
    with pytest.raises(MtfedError, match=r"has 65 of the 75 .* encoder 'deep', .*first missing: layer3\.1\.conv1"):
        pretrained.load_weights(deep, "deep", str(tmp_path / "shallow.safetensors"), None)


def test_channels_as_timm_adapts_them() -> None:
    weight = torch.randn(4, 3, 7, 7)
    grey = pretrained._of_channels(weight, torch.Size((4, 1, 7, 7)))
    torch.testing.assert_close(grey, timm.models.adapt_input_conv(1, weight))
    assert pretrained._of_channels(weight, torch.Size((4, 3, 7, 7))) is weight
    depthwise = torch.randn(4, 1, 3, 3)
    assert pretrained._of_channels(depthwise, torch.Size((4, 1, 3, 3))) is depthwise


class Stranger:
    """An object that must not be unpickled from a weights file."""


def write_files(folder: Path) -> None:
    torch.save(Stranger(), folder / "object.pth")
    (folder / "broken.safetensors").write_bytes(b"no tensors here")
    (folder / "broken.pt").write_bytes(b"nor here")
    (folder / "empty.pth").write_bytes(b"")
    (folder / "notes.txt").write_text("weights")
    torch.save([torch.ones(3)], folder / "list.pth")
    save_file({"head.weight": torch.ones(3, 4)}, folder / "other.safetensors")
    body = Encoder("resnet_nano", 32, 1).body.state_dict()
    save_file({k: v for k, v in body.items() if k.startswith("layer4")}, folder / "little.safetensors")
    save_file(Encoder("resnet_mini", 32, 1).body.state_dict(), folder / "mini.safetensors")
    tensors = {f"encoder.own.{task}.body.{k}": v for task in ("lungs", "kind") for k, v in body.items()}
    torch.save(tensors, folder / "own.pth")


BAD_FILES = [
    ("missing.pth", "missing.pth is not a file; expected '', 'timm', or the path of a weights file"),
    ("", "is not a file"),  # the folder itself
    ("notes.txt", r"expected .safetensors, .pth, .pt, .bin; got '.txt'"),
    (
        "object.pth",
        "Cannot read weights file .*object.pth: it contains objects that are not tensors; save only its tensors",
    ),
    ("broken.safetensors", "Cannot read weights file .*broken.safetensors"),
    ("broken.pt", "Cannot read weights file .*broken.pt"),
    ("empty.pth", "Cannot read weights file .*empty.pth"),
    ("list.pth", "holds a list instead of tensors by name; save a state dict"),
    ("other.safetensors", "has 0 of the 70 tensors of encoder 'resnet_nano', expected at least 90%; set encoder to"),
    ("little.safetensors", r"has 15 of the 70 .*first missing: conv1\.0\.weight"),
    (
        "own.pth",
        r"for each of the tasks lungs, kind, expected only one; save .*, each tensor encoder\.own\.lungs\.body\.NAME",
    ),
]


def test_unsuitable_files_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path)
    for name, message in BAD_FILES:
        with pytest.raises(MtfedError, match=message):
            Encoder("resnet_nano", 32, 1, weights=str(tmp_path / name))
    for name in ("vit_nano_patch8", "swin_mini", "pvt_mini"):  # timm converts files of these
        with pytest.raises(MtfedError, match=f"has 0 of the .* encoder '{name}'"):
            Encoder(name, 64, 1, weights=str(tmp_path / "little.safetensors"))


def test_weights_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size, dimensions in (("vit_nano_patch8", 32, 2), ("resnet3d_mini", 32, 3)):
        with pytest.raises(MtfedError, match=f"timm publishes no weights of encoder '{name}'"):
            Encoder(name, size, 1, dimensions, "timm")
    create = timm.create_model
    asked = {}

    def offline(name: str, pretrained: bool, **settings: Any) -> nn.Module:
        if pretrained:
            raise ConnectionError("no route to host\nand more")
        return create(name, **settings)

    def published(name: str, pretrained: bool, **settings: Any) -> nn.Module:
        asked.update(settings if pretrained else {})
        model = create(name, **settings)
        if pretrained:
            nn.init.constant_(model.pos_embed, 3.0)
        return model

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        MtfedError, match="'vit_tiny_patch16_224' cannot be downloaded: no route to host; download them on a"
    ):
        Encoder("vit_tiny_patch16_224", 32, 1, weights="timm")
    monkeypatch.setattr(timm, "create_model", published)
    made = Encoder("vit_tiny_patch16_224", 32, 1, weights="timm")
    assert torch.all(made.body.pos_embed == 3.0)
    assert asked == {"num_classes": 0, "in_chans": 1, "img_size": 32, "dynamic_img_size": True}
