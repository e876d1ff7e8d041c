"""Layers of decoders, in two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
INTERPOLATIONS = {2: "bilinear", 3: "trilinear"}


def block(channels: int, width: int, stride: int = 1, dims: int = 2) -> nn.Sequential:
    """Return a 3x3 convolution (3x3x3 in three dimensions) with a norm and an activation."""
    return nn.Sequential(
        CONVOLUTIONS[dims](channels, width, 3, stride=stride, padding=1, bias=False), nn.GroupNorm(1, width), nn.GELU()
    )


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
