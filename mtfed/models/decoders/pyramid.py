"""Decoders of one prediction for each pixel or voxel, from all feature maps and the image itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...tasks.task import Task
from ..encoders import FeatureInfo, Features
from .layers import CONVOLUTIONS, block, projections, resize, steps_up, trunk

STRIDES = (4, 8, 16, 32)  # strides of the U-Net's levels


class MLPDecoder(nn.Module):
    """Outputs (B, K, *S) from a sum of all maps.

    Our design: a :func:`~.layers.trunk` to stride 2, where a convolution of the image is added, and a 1x1 convolution.
    """

    def __init__(self, task: Task, info: FeatureInfo, width: int) -> None:
        super().__init__()
        dims = info.dims
        self.levels = projections(info, width)
        self.detail = block(info.image_channels, width, stride=2, dims=dims)
        self.up = steps_up(info, width, stride=2)
        self.fuse = block(width, width, dims=dims)
        self.head = CONVOLUTIONS[dims](width, task.output_channels, 1)

    def forward(self, features: Features) -> Tensor:
        x = trunk(features, self.levels, self.up, self.detail, self.fuse)
        return resize(self.head(x), features.image.shape[2:])


class UNetDecoder(nn.Module):
    """Outputs (B, K, *S) from the ascending half of a U-Net (Ronneberger et al., 2015); the encoder is its other half.

    Our design: the maps are projected to one width and resized to strides 4, 8, 16 and 32, which all maps of a plain
    ViT need (as in ViTDet, Li et al., 2022). Each level joins the map from below with its skip by two convolutions. The
    last two skips, at strides 2 and 1, are convolutions of the image, half and a quarter as wide.
    """

    def __init__(self, task: Task, info: FeatureInfo, width: int) -> None:
        super().__init__()
        dims, half, quarter = info.dims, max(width // 2, 1), max(width // 4, 1)
        self.levels = projections(info, width)
        self.stem = nn.ModuleList([block(info.image_channels, quarter, dims=dims)])
        self.stem.append(block(quarter, half, stride=2, dims=dims))
        joints = [(width, width, width)] * 3 + [(width, half, half), (half, quarter, quarter)]
        self.up = nn.ModuleList(
            nn.Sequential(block(below + skip, out, dims=dims), block(out, out, dims=dims))
            for below, skip, out in joints
        )
        self.head = CONVOLUTIONS[dims](quarter, task.output_channels, 1)

    def forward(self, features: Features) -> Tensor:
        whole = self.stem[0](features.image)
        sizes = [[-(-side // stride) for side in whole.shape[2:]] for stride in STRIDES]
        skips = [whole, self.stem[1](whole)]
        skips += [resize(level(x), s) for level, x, s in zip(self.levels, features.maps, sizes, strict=True)]
        x = skips.pop()
        for step, skip in zip(self.up, reversed(skips), strict=True):
            x = step(torch.cat([resize(x, skip.shape[2:]), skip], dim=1))
        return self.head(x)
