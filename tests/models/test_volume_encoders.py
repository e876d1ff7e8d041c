"""Encoders of volumes against MONAI's models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.encoders import HALVING, disturb, encoder, image
from mtfed.errors import MtfedError
from mtfed.models.families import FAMILIES, family_of
from mtfed.models.volumes import VOLUMES, VolumeResNet, VolumeSwin, build_volume_body

torch.set_num_threads(1)

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


def test_a_volume_that_patches_do_not_fit_is_refused() -> None:
    with pytest.raises(MtfedError, match="a volume whose sides 8 divides, got 16x12x16"):
        encoder("vit3d_mini_patch8")(torch.zeros(1, 1, 16, 12, 16))
