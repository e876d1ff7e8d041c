"""What decoders of maps have in common: all feature maps summed and upsampled, and joined with the image itself.

Every map is projected to one width and brought to the finest stride, as in SegFormer's all-MLP decoder (Xie et al.,
2021); the sum is upsampled step by step to a stride of the decoder's choice, and there meets convolutions of the image,
as in UNETR (Hatamizadeh et al., 2022), for the outlines that patches lose.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..encoders import Encoder, Features
from .layers import CONVOLUTIONS, block, resize, upsample


def projections(encoder: Encoder, width: int) -> nn.ModuleList:
    """Return what brings each feature map to the decoder's width.

    GroupNorm with one group here and in all blocks: it needs no running statistics, which sites with other scanners
    would disagree on.
    """
    return nn.ModuleList(
        nn.Sequential(nn.GroupNorm(1, channels), CONVOLUTIONS[encoder.dims](channels, width, 1))
        for channels in encoder.channels
    )


def steps_up(encoder: Encoder, width: int, stride: int) -> nn.ModuleList:
    """Return a block for each doubling from the finest stride of the maps to a finer one, a power of two."""
    steps = max(min(encoder.strides).bit_length() - stride.bit_length(), 0)
    return nn.ModuleList(block(width, width, dims=encoder.dims) for _ in range(steps))


def trunk(features: Features, levels: nn.ModuleList, up: nn.ModuleList, detail: nn.Module, fuse: nn.Module) -> Tensor:
    """Return one map (B, width, *s) of all maps and the image, of the size of ``detail(image)``.

    Args:
        features: of an encoder.
        levels: :func:`projections` of its maps.
        up: :func:`steps_up`; what is finer then is resized.
        detail: brings the image to the width and the stride.
        fuse: has the last word.
    """
    finest = max((level.shape[2:] for level in features.maps), key=lambda size: size[0])
    projected = [resize(level(x), finest) for level, x in zip(levels, features.maps, strict=True)]
    x = sum(projected[1:], start=projected[0])
    for step in up:
        x = step(upsample(x))
    beside = detail(features.image)
    return fuse(resize(x, beside.shape[2:]) + beside)
