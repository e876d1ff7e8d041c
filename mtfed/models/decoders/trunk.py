"""The common part of decoders that output maps: sum all feature maps, upsample the sum, and add features of the image.

Every map is projected to one width and resized to the finest stride, as in SegFormer's all-MLP decoder (Xie et al.,
2021). The sum is upsampled step by step to a stride that the decoder chooses. There, convolutions of the image are
added, as in UNETR (Hatamizadeh et al., 2022), because patches lose outlines.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..encoders import Encoder, Features
from .layers import CONVOLUTIONS, block, resize, upsample


def projections(encoder: Encoder, width: int) -> nn.ModuleList:
    """Return the projections of each feature map to the decoder's width.

    The norm here and in all blocks is GroupNorm with one group: it needs no running statistics, which would differ
    between sites with different scanners.
    """
    return nn.ModuleList(
        nn.Sequential(nn.GroupNorm(1, channels), CONVOLUTIONS[encoder.dims](channels, width, 1))
        for channels in encoder.channels
    )


def steps_up(encoder: Encoder, width: int, stride: int) -> nn.ModuleList:
    """Return a block for each doubling of the resolution, from the finest stride of the maps to ``stride``."""
    steps = max(min(encoder.strides).bit_length() - stride.bit_length(), 0)
    return nn.ModuleList(block(width, width, dims=encoder.dims) for _ in range(steps))


def trunk(features: Features, levels: nn.ModuleList, up: nn.ModuleList, detail: nn.Module, fuse: nn.Module) -> Tensor:
    """Return one map (B, width, *s) from all maps and the image; it has the size of ``detail(image)``.

    Args:
        features: of an encoder.
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
