"""Maps, stages and features of every architecture, and encoders that are refused."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.encoders import CLASS_TOKENS, ENCODERS, encoder, image
from mtfed.errors import MtfedError
from mtfed.models.encoders import Encoder, Features
from mtfed.models.timm_library import timm
from mtfed.models.volumes import _attend

torch.set_num_threads(1)


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
def test_in_a_stage_of_one_block_the_shortcut_is_the_map_before(name: str) -> None:
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
    sum((before * after).sum() for before, after in made.stages(x)).backward()  # no map is overwritten


def test_rows_select_all_features() -> None:
    features = Features(torch.arange(3.0), [torch.arange(3.0), torch.arange(3.0) + 1], torch.arange(3.0) + 2)
    some = features.rows(torch.tensor([2, 0]))
    assert [x.tolist() for x in (some.image, *some.maps, some.pooled)] == [[2, 0], [2, 0], [3, 1], [4, 2]]


@pytest.mark.parametrize(("name", "width"), [("vit_mini_patch8", 96), ("vit_nano_patch8", 64)])
@pytest.mark.parametrize(("size", "channels"), [(32, 1), (64, 3)])
@torch.no_grad()
def test_plain_transformers_equal_those_of_timm(name: str, width: int, size: int, channels: int) -> None:
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
    (("nest_tiny", 32, 1), "Encoder 'nest_tiny' gives 3 feature maps"),  # at any size
    (("mute_for_tests", 32, 1), "'mute_for_tests' gives no feature maps .*; choose a ViT, Swin, PVT or ConvNet"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_impossible_encoders_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(MtfedError, match=message):
        Encoder(*arguments)


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
