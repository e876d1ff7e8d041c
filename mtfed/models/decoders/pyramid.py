"""Decoders of one answer a pixel or voxel, from all feature maps and the image itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...tasks import Task
from ..encoders import Encoder, Features
from .layers import CONVOLUTIONS, block, resize, upsample

STRIDES = (4, 8, 16, 32)  # of the U-Net's levels


def output_channels(task: Task) -> int:
    """Return how many numbers a voxel: the dose, or a logit a class."""
    return 1 if task.kind == "dose" else len(task.classes)


def project(channels: int, width: int, dims: int) -> nn.Sequential:
    """Return what brings a feature map to the decoder's width.

    GroupNorm with one group here and in all blocks: it needs no running statistics, which sites with other scanners
    would disagree on.
    """
    return nn.Sequential(nn.GroupNorm(1, channels), CONVOLUTIONS[dims](channels, width, 1))


class MLPDecoder(nn.Module):
    """Logits (B, K, *S) by a sum of all maps.

    Our design: every map is projected to one width and brought to the finest stride, as in SegFormer's all-MLP
    decoder (Xie et al., 2021); the sum is upsampled step by step, and at stride 2 meets a convolution of the image,
    as in UNETR (Hatamizadeh et al., 2022), for the outlines that patches lose.
    """

    def __init__(self, task: Task, encoder: Encoder, width: int) -> None:
        super().__init__()
        dims = encoder.dims
        self.levels = nn.ModuleList(project(channels, width, dims) for channels in encoder.channels)
        self.detail = block(encoder.image_channels, width, stride=2, dims=dims)
        steps = max(min(encoder.strides).bit_length() - 2, 0)  # from the finest stride down to 2
        self.up = nn.ModuleList(block(width, width, dims=dims) for _ in range(steps))
        self.fuse = block(width, width, dims=dims)
        self.head = CONVOLUTIONS[dims](width, output_channels(task), 1)

    def forward(self, features: Features) -> Tensor:
        finest = max((level.shape[2:] for level in features.maps), key=lambda size: size[0])
        projected = [resize(level(x), finest) for level, x in zip(self.levels, features.maps, strict=True)]
        x = sum(projected[1:], start=projected[0])
        for step in self.up:
            x = step(upsample(x))
        detail = self.detail(features.image)
        x = self.fuse(resize(x, detail.shape[2:]) + detail)
        return resize(self.head(x), features.image.shape[2:])


class UNetDecoder(nn.Module):
    """Logits (B, K, *S) by the ascending half of a U-Net (Ronneberger et al., 2015), the encoder being its other half.

    Our design: the maps are projected to one width and brought to strides 4, 8, 16 and 32, which those of a plain ViT
    all have to be (as ViTDet does, Li et al., 2022); a level joins what comes up with its skip by two convolutions.
    The last two skips, at strides 2 and 1, are convolutions of the image, half and a quarter as wide.
    """

    def __init__(self, task: Task, encoder: Encoder, width: int) -> None:
        super().__init__()
        dims = encoder.dims
        half, quarter = max(width // 2, 1), max(width // 4, 1)
        self.levels = nn.ModuleList(project(channels, width, dims) for channels in encoder.channels)
        self.stem = nn.ModuleList(
            [block(encoder.image_channels, quarter, dims=dims), block(quarter, half, stride=2, dims=dims)]
        )
        joints = [(width, width, width)] * 3 + [(width, half, half), (half, quarter, quarter)]
        self.up = nn.ModuleList(
            nn.Sequential(block(below + skip, out, dims=dims), block(out, out, dims=dims))
            for below, skip, out in joints
        )
        self.head = CONVOLUTIONS[dims](quarter, output_channels(task), 1)

    def forward(self, features: Features) -> Tensor:
        whole = self.stem[0](features.image)
        sizes = [[-(-side // stride) for side in whole.shape[2:]] for stride in STRIDES]
        skips = [whole, self.stem[1](whole)]
        skips += [resize(level(x), s) for level, x, s in zip(self.levels, features.maps, sizes, strict=True)]
        x = skips.pop()
        for step, skip in zip(self.up, reversed(skips), strict=True):
            x = step(torch.cat([resize(x, skip.shape[2:]), skip], dim=1))
        return self.head(x)
