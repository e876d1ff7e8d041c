"""Decoders of the kinds of task that need no labels: small, because only the encoder is kept after the training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...tasks.orientation import symmetries
from ...tasks.task import Task
from ...tasks.views import PROJECTION
from ..encoders import FeatureInfo, Features
from .layers import CONVOLUTIONS, resize

HIDDEN = 256  # width between the two layers of a projector
PREDICTOR_HIDDEN = 64  # and of SimSiam's predictor, which is narrow in the middle, as in the paper


class PatchDecoder(nn.Module):
    """Images (B, C, *S) from the last feature map, by a 1x1 convolution and a pixel shuffle.

    This is the head of SimMIM (Xie et al., CVPR 2022), which suits plain and hierarchical encoders. The norm stands for
    that at the end of SimMIM's encoders, which a feature map has not passed.
    """

    def __init__(self, task: Task, info: FeatureInfo, width: int) -> None:
        super().__init__()
        self.stride, self.channels = info.strides[-1], info.image_channels
        outputs = self.channels * self.stride**info.dims
        last = info.channels[-1]
        self.head = nn.Sequential(nn.GroupNorm(1, last), CONVOLUTIONS[info.dims](last, outputs, 1))

    def forward(self, features: Features) -> Tensor:
        return resize(shuffle(self.head(features.maps[-1]), self.stride), features.image.shape[2:])


def shuffle(x: Tensor, stride: int) -> Tensor:
    """Return maps (B, C stride^d, *s) as maps (B, C, *(s stride)), whose blocks of pixels were channels."""
    size = x.shape[2:]
    dims = len(size)
    blocks = x.unflatten(1, (-1, *(stride,) * dims))  # (B, C, *(stride,) * d, *s)
    order = [axis for i in range(dims) for axis in (2 + dims + i, 2 + i)]
    return blocks.permute(0, 1, *order).reshape(len(x), -1, *(side * stride for side in size))


class OrientationDecoder(nn.Module):
    """Logits (B, K) of the symmetries of the square (K = 8) or the cube (K = 48), from the pooled features."""

    def __init__(self, task: Task, info: FeatureInfo, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(info.dim)
        self.head = nn.Linear(info.dim, len(symmetries(info.dims)))

    def forward(self, features: Features) -> Tensor:
        return self.head(self.norm(features.pooled))


class ProjectionDecoder(nn.Module):
    """Projections (B, D) of the pooled features; with the loss ``simsiam`` also predictions from them, (B, 2 D)."""

    def __init__(self, task: Task, info: FeatureInfo, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(info.dim)
        self.projector = mlp(info.dim, HIDDEN)
        predicts = any(term == "simsiam" for _, term in task.terms)
        self.predictor = mlp(PROJECTION, PREDICTOR_HIDDEN) if predicts else None

    def forward(self, features: Features) -> Tensor:
        projection = self.projector(self.norm(features.pooled))
        return projection if self.predictor is None else torch.cat([projection, self.predictor(projection)], 1)


def mlp(inputs: int, hidden: int) -> nn.Sequential:
    """Return two linear layers that end in a projection."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, PROJECTION))
