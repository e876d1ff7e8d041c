"""MTAN: tasks share an encoder's features, and each task looks at them through its own soft masks.

Liu, Johns, Davison, "End-to-end multi-task learning with attention", CVPR 2019 (arXiv:1803.10704), in the authors'
version for a ResNet. With p_i and u_i the encoder's maps before and after the last block of stage i, and
for every task t

    a_1^t = A_1^t(p_1) * u_1
    a_i^t = A_i^t([p_i ; g_{i-1}^t]) * u_i,    g_i^t = pool(E_i(a_i^t))

A_i^t belongs to a task: 1x1 convolution to a quarter of the channels, BatchNorm, ReLU, 1x1 convolution back, BatchNorm,
sigmoid. E_i is shared by the tasks: a residual bottleneck from the channels of stage i to those of stage i + 1.
``pool`` is a max-pooling if the next stage is coarser. The authors dilate the last stages; this version does not.

Differences from the paper: its decoders read only a_4^t; here they also read a_1^t to a_3^t, because all decoders of
this package get the earlier maps. On a transformer, the same layers run over its maps of tokens.

Known weakness: the batch norms of the E_i keep one running statistic for all tasks, as in the authors' code. Training
therefore normalises a task by its own images and evaluation by the mixture, which hurts if tasks have different images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..strategies.wire import DECODER
from .decoders.layers import CONVOLUTIONS
from .encoders import Encoder, Features
from .norms import BatchNorm
from .sharing import Sharing, max_pool_to, select_rows


class Bottleneck(nn.Module):
    """ResNet's residual bottleneck (He et al., CVPR 2016) on (B, C, *S) maps, which changes their channels."""

    def __init__(self, channels: int, out: int, dims: int) -> None:
        super().__init__()
        conv, inner = CONVOLUTIONS[dims], max(out // 4, 1)
        self.residual = nn.Sequential(
            conv(channels, inner, 1, bias=False), BatchNorm(inner), nn.ReLU(),
            conv(inner, inner, 3, padding=1, bias=False), BatchNorm(inner), nn.ReLU(),
            conv(inner, out, 1, bias=False), BatchNorm(out),
        )  # fmt: skip
        self.shortcut = nn.Sequential(conv(channels, out, 1, bias=False), BatchNorm(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.shortcut(x))


class TaskAttention(Sharing):
    """MTAN's sharing scheme; a task is computed only for its own images."""

    owners: ClassVar[Mapping[str, str]] = {"attention": DECODER}

    def __init__(self, encoder: Encoder, tasks: Iterable[str]) -> None:
        super().__init__(encoder, tasks)
        encoder.family()  # an encoder without stages fails here instead of in a site's first step
        channels, dims = encoder.channels, encoder.dims
        inputs = [channels[0], *(2 * c for c in channels[1:])]  # half of them come from the previous stage
        self.attention: Any = nn.ModuleDict()
        for task in self.tasks:
            self.attention[task] = nn.ModuleList(make_mask(*c, dims) for c in zip(inputs, channels, strict=True))
        self.bottlenecks = nn.ModuleList(Bottleneck(c, out, dims) for c, out in pairwise(channels))

    def forward(self, image: Tensor, rows: Mapping[str, Tensor], words: Tensor | None = None) -> dict[str, Features]:
        stages = self.encoder.stages(image)
        features = {}
        for task, index in rows.items():
            maps: list[Tensor] = []  # a_i
            for i, (before, after) in enumerate(stages):  # p_i and u_i
                own = select_rows(before, index)
                if maps:
                    own = torch.cat([own, max_pool_to(self.bottlenecks[i - 1](maps[-1]), own.shape[2:])], dim=1)
                maps.append(self.attention[task][i](own) * select_rows(after, index))
            features[task] = self.encoder.features(select_rows(image, index), maps)
        return features


def make_mask(channels: int, out: int, dims: int) -> nn.Sequential:
    """Return A, which computes a mask over ``out`` channels."""
    conv, hidden = CONVOLUTIONS[dims], max(out // 4, 1)
    return nn.Sequential(
        conv(channels, hidden, 1), BatchNorm(hidden), nn.ReLU(), conv(hidden, out, 1), BatchNorm(out), nn.Sigmoid()
    )
