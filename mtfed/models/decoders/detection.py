"""The decoder of boxes: a map of centres, sizes and offsets at stride 4."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...tasks.task import Task
from ..encoders import FeatureInfo, Features
from .layers import CONVOLUTIONS, block, projections, steps_up, trunk

PRIOR = 0.1  # probability of a centre at every cell of an untrained map (Zhou et al., 2019)


class CentreDecoder(nn.Module):
    """Outputs (B, K + 2d, *s), see :mod:`mtfed.tasks.detection`, from all feature maps and the image itself.

    Our design, after the heads of Zhou et al. (Objects as Points, 2019): a :func:`~.layers.trunk` to stride 4 (from the
    patches of a plain ViT in one step if they are of 8 pixels, in two if of 16), where two strided convolutions of the
    image are added. Two heads of a 3x3 and a 1x1 convolution predict centres, and sizes with offsets. The stride is 4
    at every image size; below 64 px that leaves fewer than 16 cells per side, and boxes that are close compete for
    cells.
    """

    def __init__(self, task: Task, info: FeatureInfo, width: int) -> None:
        super().__init__()
        dims, convolution = info.dims, CONVOLUTIONS[info.dims]
        self.levels = projections(info, width)
        self.up = steps_up(info, width, stride=4)
        self.detail = nn.Sequential(
            block(info.image_channels, width, stride=2, dims=dims), block(width, width, stride=2, dims=dims)
        )
        self.fuse = block(width, width, dims=dims)
        self.centres = nn.Sequential(block(width, width, dims=dims), convolution(width, len(task.classes), 1))
        self.boxes = nn.Sequential(block(width, width, dims=dims), convolution(width, 2 * dims, 1))
        last = self.centres[-1]
        assert isinstance(last, nn.Conv2d | nn.Conv3d) and last.bias is not None
        nn.init.constant_(last.bias, math.log(PRIOR / (1 - PRIOR)))

    def forward(self, features: Features) -> Tensor:
        x = trunk(features, self.levels, self.up, self.detail, self.fuse)
        return torch.cat([self.centres(x), self.boxes(x)], 1)
