"""Layers of decoders, in two and three dimensions, and the trunk that decoders of maps have in common.

The trunk sums all feature maps, upsamples the sum, and adds features of the image. Every map is projected to one width
and resized to the finest stride, as in SegFormer's all-MLP decoder (Xie et al., 2021). The sum is upsampled step by
step to a stride that the decoder chooses. There, convolutions of the image are added, as in UNETR (Hatamizadeh et al.,
2022), because patches lose outlines.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders import FeatureInfo, Features

CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
INTERPOLATIONS = {2: "bilinear", 3: "trilinear"}


def block(channels: int, width: int, stride: int = 1, dims: int = 2) -> nn.Sequential:
    """Return a 3x3 convolution (3x3x3 in three dimensions) with a norm and an activation."""
    convolution = CONVOLUTIONS[dims](channels, width, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(1, width), nn.GELU())


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize feature maps (B, C, *s) to (B, C, *S).

    Interpolation is linear. If every axis shrinks to half or less, areas are averaged instead, because interpolation
    would ignore most of the map.
    """
    current, size = tuple(x.shape[2:]), tuple(size)
    if current == size:
        return x
    shrinks = all(2 * new <= old for old, new in zip(current, size, strict=True))
    return F.interpolate(x, size=size, mode="area" if shrinks else INTERPOLATIONS[len(size)])


def upsample(x: Tensor) -> Tensor:
    """Double the size of feature maps (B, C, *s) by linear interpolation."""
    return F.interpolate(x, scale_factor=2.0, mode=INTERPOLATIONS[x.ndim - 2])


def projections(info: FeatureInfo, width: int) -> nn.ModuleList:
    """Return the projections of each feature map to the decoder's width.

    The norm here and in all blocks is GroupNorm with one group: it needs no running statistics, which would differ
    between sites with different scanners.
    """
    return nn.ModuleList(
        nn.Sequential(nn.GroupNorm(1, channels), CONVOLUTIONS[info.dims](channels, width, 1))
        for channels in info.channels
    )


def steps_up(info: FeatureInfo, width: int, stride: int) -> nn.ModuleList:
    """Return a block for each doubling of the resolution, from the finest stride of the maps to ``stride``."""
    steps = max(min(info.strides).bit_length() - stride.bit_length(), 0)
    return nn.ModuleList(block(width, width, dims=info.dims) for _ in range(steps))


def trunk(features: Features, levels: nn.ModuleList, up: nn.ModuleList, detail: nn.Module, fuse: nn.Module) -> Tensor:
    """Return one map (B, width, *s) from all maps and the image; it has the size of ``detail(image)``.

    Args:
        features: features of an encoder or a sharing scheme.
        levels: :func:`projections` of its maps.
        up: :func:`steps_up`; a result of another size than ``detail(image)`` is resized.
        detail: computes features of the image, of the decoder's width and stride.
        fuse: the last block.
    """
    finest = max((level.shape[2:] for level in features.maps), key=lambda size: size[0])
    projected = [resize(level(x), finest) for level, x in zip(levels, features.maps, strict=True)]
    x = sum(projected[1:], start=projected[0])
    for step in up:
        x = step(upsample(x))
    image_features = detail(features.image)
    return fuse(resize(x, image_features.shape[2:]) + image_features)
