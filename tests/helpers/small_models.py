"""Small models whose axes the tests derive, and their inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mtfed.config import Form
from mtfed.models.build import assemble
from mtfed.models.timm_library import timm

from .planted import TASKS

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


def vit(**settings: Any) -> nn.Module:
    return timm.models.VisionTransformer(**(VIT | settings))


def gated(model: nn.Module) -> nn.Module:
    for block in model.blocks:
        block.attn = timm.layers.Attention(24, num_heads=3, qkv_bias=True, gated=True)
    return model


def mtmedformer(encoder: str, size: int) -> nn.Module:
    return assemble("mtmedformer", TASKS, (Form(2, size),), encoder=encoder, decoder_width=8)


def convolutions(groups: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.GroupNorm(groups, 16), nn.GELU()),
        nn.Conv2d(16, 16, 3, groups=16), nn.ConvTranspose2d(16, 6, 2, 2), nn.PReLU(6), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(24, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 3),
    )  # fmt: skip


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 2))


def image(size: int, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def rows_of_tasks(size: int) -> tuple[Tensor, dict[str, Tensor]]:
    return image(size, 1), {"kind": torch.arange(2), "lungs": torch.tensor([1])}


class WindowModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = timm.models.swin_transformer.WindowAttention(12, num_heads=3, window_size=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x)


class SplitAttention(nn.Module):
    """Self-attention with separate maps for query, key and value."""

    def __init__(self, dim: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Skip(nn.Module):
    """A skip connection of a U-Net: the concatenation of an early map and an upsampled one."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 2, 2)
        self.up, self.join = nn.ConvTranspose2d(6, 5, 2, 2), nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        down = self.down(x).relu()
        return self.join(torch.cat([self.up(self.deep(down).relu()).relu(), down], dim=1))


def tokens() -> tuple[Tensor]:
    return (torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(0)),)
