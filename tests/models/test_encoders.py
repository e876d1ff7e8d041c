"""Encoders: maps and stages of every architecture, sizes and channels, weights from files, names, and axes."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mtfed.strategies.axes import AxisGraph
from safetensors.torch import save_file
from torch import Tensor, nn

from mtfed.errors import MtfedError
from mtfed.models import pretrained
from mtfed.models.axes.builder import AxisGraphBuilder, Label
from mtfed.models.axes.encoders import label_body
from mtfed.models.encoders import Encoder, Features
from mtfed.models.families import FAMILIES, family_of
from mtfed.models.norms import BatchNorm, BatchNormAct, with_our_norms
from mtfed.models.symmetry import SymmetryError, check_symmetry, derive_axes
from mtfed.models.volumes import VOLUMES, VolumeResNet, VolumeSwin, _attend, build_volume_body
from mtfed.startup import import_timm

timm = import_timm()
torch.set_num_threads(1)

HALVING = [4, 8, 16, 32]
ENCODERS = {  # dimensions, image size, another one, strides, channels of the maps, whether it is a transformer
    "vit_nano_patch8": (2, 32, 48, [8] * 4, [64] * 4, True),
    "vit_mini_patch8": (2, 64, 32, [8] * 4, [96] * 4, True),
    "vit_tiny_patch16_224": (2, 32, 48, [16] * 4, [192] * 4, True),  # a class token, twelve blocks
    "deit_tiny_distilled_patch16_224": (2, 32, 48, [16] * 4, [192] * 4, True),
    "swin_mini": (2, 64, 32, HALVING, [24, 48, 96, 192], True),
    "pvt_mini": (2, 64, 96, HALVING, [16, 32, 64, 128], True),
    "resnet_nano": (2, 32, 64, HALVING, [8, 16, 32, 64], False),
    "resnet_mini": (2, 64, 32, HALVING, [16, 32, 64, 128], False),
    "convnext_atto": (2, 64, 32, HALVING, [40, 80, 160, 320], False),
    "vit3d_mini_patch8": (3, 16, 32, [8] * 4, [96] * 4, True),
    "swin3d_mini": (3, 32, 64, HALVING, [24, 48, 96, 192], True),
    "resnet3d_mini": (3, 32, 64, HALVING, [16, 32, 64, 128], False),
}
CLASS_TOKENS = {"vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"}


def encoder(name: str, channels: int = 1, size: int | None = None, seed: int = 0, **settings: Any) -> Encoder:
    """An encoder in evaluation mode, with noise on its weights: what starts as zero or one would hide mistakes."""
    torch.manual_seed(seed)
    dimensions, first = ENCODERS[name][:2]
    made = Encoder(name, size or first, channels, dimensions, **settings)
    if not settings.get("weights"):
        disturb(made)
    return made.eval()


@torch.no_grad()
def disturb(module: nn.Module) -> None:
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.05 * torch.rand_like(tensor)


def image(dimensions: int, size: int, channels: int = 1, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, *[size] * dimensions, generator=torch.Generator().manual_seed(1))


# Maps.


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_maps_and_stages_at_two_sizes(name: str, channels: int) -> None:
    dimensions, first, second, strides, widths, transformer = ENCODERS[name]
    made = encoder(name, channels)
    assert (made.strides, made.channels, made.dim) == (strides, widths, widths[-1])
    assert (made.dims, made.image_channels, made.is_transformer) == (dimensions, channels, transformer)
    for size in (first, second):
        x = image(dimensions, size, channels)
        features = made(x)
        sides = [(size // stride,) * dimensions for stride in strides]
        assert [tuple(level.shape) for level in features.maps] == [
            (2, width, *side) for width, side in zip(widths, sides, strict=True)
        ]
        assert features.pooled.shape == (2, widths[-1])
        stages = made.stages(x)
        for (before, after), level in zip(stages, features.maps, strict=True):
            assert torch.equal(after, level)
            assert before.shape == level.shape and not torch.allclose(before, level)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in made.modules())


def again_vit(body: Any, stage: int, x: Tensor) -> Tensor:
    return body.blocks[stage](x.flatten(2).mT).mT.reshape(x.shape)


def again_swin(body: Any, stage: int, x: Tensor) -> Tensor:
    return body.layers[stage].blocks[-1](x.movedim(1, -1)).movedim(-1, 1)


def again_pvt(body: Any, stage: int, x: Tensor) -> Tensor:
    tokens = body.stages[stage].blocks[-1](x.flatten(2).mT, x.shape[2:])
    return body.stages[stage].norm(tokens).mT.reshape(x.shape)


def again_volume_swin(body: Any, stage: int, x: Tensor) -> Tensor:
    last = deepcopy(body.stages[stage])
    last.blocks = last.blocks[-1:]
    return _attend(last, x.movedim(1, -1)).movedim(-1, 1)


AGAIN = {  # the last block of a stage, by hand, on the map before it
    "vit_nano_patch8": again_vit,
    "vit3d_mini_patch8": again_vit,
    "swin_mini": again_swin,
    "pvt_mini": again_pvt,
    "swin3d_mini": again_volume_swin,
    "resnet_mini": lambda body, stage, x: getattr(body, f"layer{stage + 1}")[-1](x),
    "convnext_atto": lambda body, stage, x: body.stages[stage].blocks[-1](x),
}


@pytest.mark.parametrize("name", AGAIN)
@torch.no_grad()
def test_the_last_block_leads_from_the_map_before_to_the_map_after(name: str) -> None:
    made = encoder(name)
    stages = made.stages(image(made.dims, ENCODERS[name][1]))
    for stage, (before, after) in enumerate(stages):
        torch.testing.assert_close(AGAIN[name](made.body, stage, before), after)


@torch.no_grad()
def test_a_group_of_blocks_of_a_plain_transformer_ends_in_its_last() -> None:
    made = encoder("vit_tiny_patch16_224")
    assert made.stage_names == ["blocks.2", "blocks.5", "blocks.8", "blocks.11"]
    x = image(2, 32)
    every = made.body.forward_intermediates(x, output_fmt="NCHW", intermediates_only=True)
    for (before, after), last in zip(made.stages(x), (2, 5, 8, 11), strict=True):
        assert torch.equal(before, every[last - 1]) and torch.equal(after, every[last])


@pytest.mark.parametrize("name", ["resnet_nano", "resnet3d_mini"])
@torch.no_grad()
def test_a_stage_of_one_block_has_its_shortcut_for_the_map_before(name: str) -> None:
    made = encoder(name)
    stages = made.stages(image(made.dims, 32))
    for stage in (1, 2, 3):
        shortcut = getattr(made.body, f"layer{stage + 1}")[0].downsample
        torch.testing.assert_close(stages[stage][0], shortcut(stages[stage - 1][1]))


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_features_of_maps(name: str) -> None:
    made = encoder(name)
    x = image(made.dims, ENCODERS[name][1])
    features = made(x)
    same = made.features(x, features.maps)
    assert same.image is x and same.maps is features.maps
    if name in CLASS_TOKENS:
        tokens = made.body.norm(features.maps[-1].flatten(2).mT)
        torch.testing.assert_close(same.pooled, tokens.mean(1))
    else:
        torch.testing.assert_close(same.pooled, features.pooled)
    changed = made.features(x, [*features.maps[:-1], features.maps[-1] * torch.rand(made.dim, *[1] * made.dims)])
    assert not torch.allclose(changed.pooled, same.pooled)


@pytest.mark.parametrize("name", sorted(set(ENCODERS) - CLASS_TOKENS))
def test_gradients_reach_every_weight(name: str) -> None:
    made = encoder(name).train()
    x = image(made.dims, ENCODERS[name][1])
    made(x).pooled.square().sum().backward()
    unused = [path for path, weight in made.named_parameters() if weight.grad is None]
    assert not unused
    made.zero_grad()
    sum((before * after).sum() for before, after in made.stages(x)).backward()  # nothing is overwritten in between


def test_rows_are_of_everything() -> None:
    features = Features(torch.arange(3.0), [torch.arange(3.0), torch.arange(3.0) + 1], torch.arange(3.0) + 2)
    some = features.rows(torch.tensor([2, 0]))
    assert [x.tolist() for x in (some.image, *some.maps, some.pooled)] == [[2, 0], [2, 0], [3, 1], [4, 2]]


@pytest.mark.parametrize(("name", "width"), [("vit_mini_patch8", 96), ("vit_nano_patch8", 64)])
@pytest.mark.parametrize(("size", "channels"), [(32, 1), (64, 3)])
@torch.no_grad()
def test_plain_transformers_are_timms_to_the_bit(name: str, width: int, size: int, channels: int) -> None:
    torch.manual_seed(3)
    made = Encoder(name, size, channels).eval()
    torch.manual_seed(3)
    reference = timm.models.VisionTransformer(
        img_size=size, patch_size=8, in_chans=channels, num_classes=0, embed_dim=width, depth=4, num_heads=4,
        global_pool="avg", class_token=False,
    ).eval()  # fmt: skip
    own, expected = made.body.state_dict(), reference.state_dict()
    assert list(own) == list(expected) and all(torch.equal(own[key], expected[key]) for key in own)
    x = image(2, size, channels)
    features = made(x)
    final, maps = reference.forward_intermediates(x, output_fmt="NCHW")
    assert torch.equal(features.pooled, reference.forward_head(final, pre_logits=True))
    assert all(torch.equal(a, b) for a, b in zip(features.maps, maps, strict=True))


# Volumes.


LEVELS = {  # strides and widths of the maps, millions of weights
    "vit3d_mini_patch4": ([4] * 4, [96] * 4, 0.5),
    "vit3d_mini_patch8": ([8] * 4, [96] * 4, 0.5),
    "vit3d_small_patch16": ([16] * 12, [384] * 12, 22.9),
    "vit3d_base_patch16": ([16] * 12, [768] * 12, 88.2),
    "resnet3d_mini": (HALVING, [16, 32, 64, 128], 0.9),
    "resnet3d_10": (HALVING, [64, 128, 256, 512], 14.4),
    "resnet3d_18": (HALVING, [64, 128, 256, 512], 33.2),
    "resnet3d_34": (HALVING, [64, 128, 256, 512], 63.5),
    "resnet3d_50": (HALVING, [256, 512, 1024, 2048], 46.2),
    "swin3d_mini": (HALVING, [24, 48, 96, 192], 1.4),
    "swin3d_tiny": ([2, 4, 8, 16], [48, 96, 192, 384], 5.7),
}


@pytest.mark.parametrize("name", VOLUMES)
def test_volumes_by_name(name: str) -> None:
    with torch.device("cpu" if "swin" in name else "meta"):
        body = build_volume_body(name, 32, 1)
    strides, widths, millions = LEVELS[name]
    assert [level["reduction"] for level in body.feature_info] == strides
    assert [level["num_chs"] for level in body.feature_info] == widths
    assert sum(weight.numel() for weight in body.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    assert family_of(body) is FAMILIES[type(body)]


@torch.no_grad()
def test_a_residual_network_of_volumes_is_monais() -> None:
    import_timm()
    from monai.networks.nets import resnet as networks

    for block in ("basic", "bottleneck"):
        own = VolumeResNet((1, 2, 1, 1), (4, 8, 8, 16), 2, block).eval()
        reference = networks.ResNet(
            block, [1, 2, 1, 1], [4, 8, 8, 16], n_input_channels=2, conv1_t_stride=2, feed_forward=False,
            bias_downsample=False,
        ).eval()  # fmt: skip
        disturb(own)
        reference.load_state_dict(own.state_dict())
        x = image(3, 32, 2)
        last, maps = own.forward_intermediates(x)
        torch.testing.assert_close(own.forward_head(last), reference(x))
        assert [level.shape[1] for level in maps] == [level["num_chs"] for level in own.feature_info]


@torch.no_grad()
def test_a_swin_transformer_of_volumes_is_monais(monkeypatch: pytest.MonkeyPatch) -> None:
    import_timm()
    from monai.networks.nets import swin_unetr as networks

    ends = {"b c d h w -> b d h w c": (1, -1), "b d h w c -> b c d h w": (-1, 1)}
    monkeypatch.setattr(networks, "rearrange", lambda x, pattern: x.movedim(*ends[pattern]))  # without einops
    torch.manual_seed(0)
    own = VolumeSwin(2, 3, 12, (1, 2, 2, 4), 1).eval()
    torch.manual_seed(0)
    reference = networks.SwinTransformer(
        1, 12, (3, 3, 3), (2, 2, 2), (2, 2, 2, 2), (1, 2, 2, 4), downsample="mergingv2"
    ).eval()
    for size in (32, 20):  # windows that fill the maps, and some that do not
        x = image(3, size, batch=1)
        merged = reference(x, normalize=False)[1:-1]
        last, maps = own.forward_intermediates(x)
        for merger, level, expected in zip(own.mergers, maps, merged, strict=False):
            torch.testing.assert_close(merger(level.movedim(1, -1)).movedim(-1, 1), expected)
        normed = nn.functional.layer_norm(last.movedim(1, -1), (96,))
        torch.testing.assert_close(own.forward_head(last), normed.mean((1, 2, 3)))
    assert not any("index" in name for name in own.state_dict())


# Weights from files.

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
    found = made(grey)
    for a, b in zip([*found.maps, found.pooled], [*expected.maps, expected.pooled], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_grey_weights_serve_colours(tmp_path: Path) -> None:
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
    assert other.body.layers[3].blocks[0].attn.window_size == (4, 4)  # of 2 x 2 in the file
    assert torch.equal(other.body.layers[0].blocks[0].mlp.fc1.weight, source.body.layers[0].blocks[0].mlp.fc1.weight)


@torch.no_grad()
def test_a_file_of_a_whole_model_with_a_classifier_serves(tmp_path: Path) -> None:
    source = encoder("resnet_nano")
    tensors = {f"encoder.body.{key}": value for key, value in source.body.state_dict().items()}
    tensors |= {"decoders.lungs.head.weight": torch.ones(3), "encoder.body.fc.weight": torch.ones(5, 64)}
    save_file(tensors, tmp_path / "run.safetensors")
    made = encoder("resnet_nano", seed=7, weights=str(tmp_path / "run.safetensors"))
    for key, value in source.body.state_dict().items():
        assert torch.equal(made.body.state_dict()[key], value)


@torch.no_grad()
def test_what_a_file_lacks_is_told_and_keeps_its_initial_weights(
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

    def of_an_original(tensors: dict[str, Tensor], body: nn.Module) -> dict[str, Tensor]:  # as timm 1.0.16 has it
        found = convert(tensors, body)
        pattern = r"layers.(\d).downsample"
        return {re.sub(pattern, lambda m: f"layers.{int(m[1]) + 1}.downsample", key): found[key] for key in found}

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
    """Something that a weights file must not bring to life."""


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
    ("missing.pth", "missing.pth is no file; expected '', 'timm', or the path of a weights file"),
    ("", "is no file"),  # the folder itself
    ("notes.txt", r"expected .safetensors, .pth, .pt, .bin; got '.txt'"),
    (
        "object.pth",
        "Cannot read weights file .*object.pth: it holds something else than tensors; save its tensors alone",
    ),
    ("broken.safetensors", "Cannot read weights file .*broken.safetensors"),
    ("broken.pt", "Cannot read weights file .*broken.pt"),
    ("empty.pth", "Cannot read weights file .*empty.pth"),
    ("list.pth", "holds no tensors by name but a list; save a state dict"),
    ("other.safetensors", "has 0 of the 70 tensors of encoder 'resnet_nano', expected at least 90%; name the encoder"),
    ("little.safetensors", r"has 15 of the 70 .*first missing: conv1\.0\.weight"),
    (
        "own.pth",
        r"for each of the tasks lungs, kind, expected one; save .*, each tensor encoder\.own\.lungs\.body\.NAME",
    ),
]


def test_files_that_do_not_serve_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path)
    for name, message in BAD_FILES:
        with pytest.raises(MtfedError, match=message):
            Encoder("resnet_nano", 32, 1, weights=str(tmp_path / name))
    for name in ("vit_nano_patch8", "swin_mini", "pvt_mini"):  # whose files timm converts
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
    with pytest.raises(MtfedError, match="'vit_tiny_patch16_224' cannot be had: no route to host; download them where"):
        Encoder("vit_tiny_patch16_224", 32, 1, weights="timm")
    monkeypatch.setattr(timm, "create_model", published)
    made = Encoder("vit_tiny_patch16_224", 32, 1, weights="timm")
    assert torch.all(made.body.pos_embed == 3.0)
    assert asked == {"num_classes": 0, "in_chans": 1, "img_size": 32, "dynamic_img_size": True}


# Names and sizes.


@timm.models.register_model
def mute_for_tests(pretrained: bool = False, in_chans: int = 3, **settings: Any) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(in_chans, 4, 3))
    model.feature_info = [{"num_chs": 4, "reduction": 1, "module": "0"}] * 4  # and no forward_intermediates
    return model


REFUSED = [
    (("vit_tinny_patch16_224", 64, 1), "Unknown encoder .*; nearest in timm: .*vit_tiny_patch16_224"),
    (("resnet3d_11", 32, 1, 3), "Unknown encoder of volumes 'resnet3d_11'; did you mean 'resnet3d_1"),
    (("resnet_mini", 32, 1, 3), "'resnet_mini' is for flat images; set dimensions = 2, or choose one of vit3d_mini"),
    (("resnet3d_mini", 32, 1), "'resnet3d_mini' is for volumes; set dimensions = 3, or choose a timm model"),
    (("vit_tiny_patch16_224", 8, 1), "cannot take images of 8 px: its finest maps have one pixel for 16; choose a mul"),
    (("vit_nano_patch8", 60, 1), "cannot take images of 60 px: .* choose a multiple of 8"),
    (("resnet_nano", 30, 1), "cannot take images of 30 px: .* choose a multiple of 4"),
    (("swin_mini", 62, 1), "cannot take images of 62 px"),
    (("pvt_mini", 16, 1), "cannot take images of 16 px: .*; choose another image-size"),
    (("vit3d_mini_patch8", 20, 1, 3), "cannot take images of 20 px: .* choose a multiple of 8"),
    (("vit3d_mini_patch8", 4, 1, 3), "cannot take images of 4 px"),
    (("resnet3d_mini", 18, 1, 3), "cannot take images of 18 px: .* choose a multiple of 4"),
    (("levit_128s", 224, 1), "Encoder 'levit_128s' gives 3 feature maps, decoders read 4; choose a ViT, Swin, PVT or"),
    (("pit_ti_224", 224, 1), "Encoder 'pit_ti_224' gives 3 feature maps"),
    (("nest_tiny", 32, 1), "Encoder 'nest_tiny' gives 3 feature maps"),  # of whatever size
    (("mute_for_tests", 32, 1), "'mute_for_tests' gives no feature maps .*; choose a ViT, Swin, PVT or ConvNet"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_encoders_that_cannot_be_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(MtfedError, match=message):
        Encoder(*arguments)


def test_a_volume_that_patches_do_not_fit_is_refused() -> None:
    with pytest.raises(MtfedError, match="a volume whose sides 8 divides, got 16x12x16"):
        encoder("vit3d_mini_patch8")(torch.zeros(1, 1, 16, 12, 16))


@pytest.mark.parametrize(
    ("name", "size", "transformer"),
    [
        ("lcnet_035", 32, False),
        ("eva02_tiny_patch14_224", 28, True),
        ("twins_pcpvt_small", 32, True),
        ("cait_xxs24_224", 32, True),
    ],
)
@torch.no_grad()
def test_other_models_of_timm_give_maps_but_no_stages(name: str, size: int, transformer: bool) -> None:
    made = Encoder(name, size, 1).eval()
    features = made(image(2, size))
    assert len(features.maps) == 4 and features.pooled.shape == (2, made.dim)
    assert made.is_transformer is transformer
    for call in (lambda: made.stages(image(2, size)), lambda: made.features(image(2, size), features.maps)):
        with pytest.raises(MtfedError, match=f"{name}.* shows no maps inside its stages; choose a ResNet, ConvNeXt"):
            call()


# Norms.


@pytest.mark.parametrize("name", ["resnet_nano", "efficientnet_b0", "regnetx_002", "mobilenetv2_035"])
def test_one_small_image_trains(name: str) -> None:
    torch.manual_seed(0)
    made = Encoder(name, 32, 1).train()
    features = made(image(2, 32, batch=1))
    assert features.maps[-1].shape[2:] == (1, 1)
    (features.pooled.square().sum() + features.maps[0].square().sum()).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in made.parameters())
    assert all(tensor.isfinite().all() for tensor in made.state_dict().values())
    norms = [m for m in made.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(isinstance(norm, BatchNorm) for norm in norms)


@torch.no_grad()
def test_norms_with_an_activation_stay_as_they_are() -> None:
    theirs = timm.layers.BatchNormAct2d(4, eps=1e-3, momentum=0.3, act_layer=nn.PReLU, drop_layer=nn.Hardtanh)
    disturb(theirs)
    pair = [nn.Sequential(theirs), with_our_norms(nn.Sequential(deepcopy(theirs)))]
    assert type(pair[1][0]) is BatchNormAct
    for training in (True, False):
        first, second = (one.train(training)(image(2, 5, 4)) for one in pair)
        assert torch.equal(first, second) and first.min() < 0 < first.max()
        states = [one.state_dict() for one in pair]
        assert list(states[0]) == list(states[1]) and "0.act.weight" in states[0]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    single = image(2, 1, 4, batch=1)
    pair[0].eval(), pair[1].train()
    torch.testing.assert_close(pair[1](single), pair[0](single))


# Axes.


class Reader(nn.Module):
    """An encoder and linear readings of everything it gives, before and after its blocks."""

    def __init__(self, made: Encoder) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[made.dims]
        self.encoder = made
        self.levels = nn.ModuleList(conv(width, 2, 1) for width in made.channels)
        self.head = nn.Linear(made.dim, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        features, stages = self.encoder(x), self.encoder.stages(x)
        read = [level(side) for level, pair in zip(self.levels, stages, strict=True) for side in pair]
        again = self.encoder.features(x, features.maps)
        return [*read, self.head(features.pooled), self.head(again.pooled)]


def reader_axes(model: Reader, read: bool = True) -> tuple[AxisGraph, list[Label]]:
    builder = AxisGraphBuilder(model)
    maps, pooled = label_body(builder, "encoder.body", model.encoder, read)
    for index, label in enumerate(maps):
        builder.label_map(f"levels.{index}", model, label, None)
    builder.label_map("head", model, pooled, None)
    return builder.build(), [*maps, pooled]


AXES = {  # image size, free axes, kinds of the streams that the maps and the pooled features are of
    "vit_nano_patch8": (32, 9, ["perm"]),
    "vit3d_mini_patch8": (16, 9, ["perm"]),
    "resnet_nano": (32, 10, ["perm"] * 4),
    "resnet_mini": (32, 14, ["perm"] * 4),
    "resnet3d_mini": (32, 8, ["perm"] * 4),
    "swin_mini": (32, 16, []),
    "pvt_mini": (32, 16, []),
    "swin3d_mini": (16, 16, []),
}


@pytest.mark.parametrize("name", AXES)
def test_axes_of_bodies_are_symmetries(name: str) -> None:
    size, count, kinds = AXES[name]
    model = Reader(encoder(name, size=size))
    graph, read = reader_axes(model)
    streams = list(dict.fromkeys(label for label in read if label))
    assert [graph.axes[label].kind for label in streams] == kinds
    x = image(model.encoder.dims, size, batch=1)
    changes = check_symmetry(model, graph, (x,))
    assert len(changes) == count and set(streams) <= set(changes)
    unread = reader_axes(model, read=False)[0]
    assert {unread.axes[label].kind for label in streams} <= {"frozen"}
    assert {label for label, axis in unread.axes.items() if axis.kind != "frozen"} <= set(changes) - set(streams)


ALONE: dict[str, tuple[dict[str, Any], int, list[str]]] = {  # settings, free axes, kinds of the streams
    "bottlenecks": ({}, 15, ["perm"] * 5),
    "basic blocks": ({"block": timm.models.resnet.BasicBlock, "stem_width": 2, "stem_type": "deep"}, 11, ["perm"] * 4),
    "deep stem, pooled shortcuts": ({"stem_type": "deep_tiered", "stem_width": 8, "avg_down": True}, 16, ["perm"] * 4),
    "groups of channels": ({"cardinality": 2, "base_width": 64}, 5, ["perm"] * 5),
    "norms of groups": ({"norm_layer": lambda width, **_: nn.GroupNorm(2, width)}, 15, ["grouped"] * 5),
    "weighted channels": ({"block_args": {"attn_layer": "se"}}, 10, ["frozen"] * 5),
    "weighted neighbours": ({"block_args": {"attn_layer": "eca"}}, 10, ["frozen"] * 5),
    "learned slopes": ({"act_layer": lambda inplace: nn.PReLU()}, 10, ["frozen"] * 5),
    "replaced pooling": ({"replace_stem_pool": True}, 16, ["perm"] * 6),
    "smoothed strides": ({"aa_layer": timm.layers.BlurPool2d}, 11, ["frozen"] + ["perm"] * 4),
    "no classifier": ({"num_classes": 0}, 10, ["frozen"] * 5),
}


@pytest.mark.parametrize("name", ALONE)
def test_axes_of_a_residual_network_alone_are_symmetries(name: str) -> None:
    settings, count, kinds = ALONE[name]
    torch.manual_seed(0)
    defaults = {"block": timm.models.resnet.Bottleneck, "layers": (1, 2, 1, 1), "channels": (4, 8, 8, 12)}
    model = timm.models.ResNet(**(defaults | {"num_classes": 3, "in_chans": 1} | settings))
    graph = derive_axes(model)
    changes = check_symmetry(model, graph, (image(2, 32, batch=1),))
    streams = [axis.kind for label, axis in graph.axes.items() if "." not in label]
    assert (len(changes), streams) == (count, kinds)


@pytest.mark.parametrize(("name", "count"), [("vgg", 0), ("convnext_atto", 12)])
def test_a_body_that_is_not_understood_shows_the_inside_of_its_mlps_alone(name: str, count: int) -> None:
    if name == "vgg":  # one long sequence, maps of which are read in its middle
        body = timm.models.VGG([4, 4, "M", 8, "M", 8, "M", 8, "M"], num_classes=0, in_chans=1, mlp_ratio=0.001)
    else:
        body = Encoder(name, 32, 1).body
    builder = AxisGraphBuilder(body)
    stub = SimpleNamespace(body=body, channels=[4] * 4)
    assert label_body(builder, "", stub, readers_known=True) == ([None] * 4, None)
    assert [label.rpartition(".")[2] for label in builder.build().axes] == ["hidden"] * count


def test_inner_channels_may_grow_and_streams_may_not() -> None:
    axes = reader_axes(Reader(encoder("resnet_nano")))[0].axes
    growable = {label for label, axis in axes.items() if axis.growable}
    assert growable == {f"encoder.body.layer{i}.0.conv1" for i in (1, 2, 3, 4)} | {
        "encoder.body.conv1.0",
        "encoder.body.conv1.3",
    }
    assert axes["encoder.body.layer2.0.conv1"].readers == ("encoder.body.layer2.0.conv2.weight",)


def test_a_label_on_the_wrong_stream_is_caught() -> None:
    model = Reader(encoder("resnet_nano"))
    graph = reader_axes(model)[0]
    name = "encoder.body.layer2.0.downsample.0.weight"  # reads the stem's stream
    spoiled = AxisGraph({key: spec for key, spec in graph.tensors.items() if key != name}, graph.axes)
    with pytest.raises(SymmetryError, match=r"Axis 'encoder\.body\.stem' is no symmetry"):
        check_symmetry(model, spoiled, (image(2, 32),))
