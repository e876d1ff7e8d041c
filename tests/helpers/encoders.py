"""Encoders of every architecture, with noise on their weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mtfed.models.encoders import Encoder

HALVING = [4, 8, 16, 32]

ENCODERS = {  # dimensions, image size, another one, strides, channels of the maps, whether it is a transformer
    "vit_nano_patch8": (2, 32, 48, [8] * 4, [64] * 4, True),
    "vit_mini_patch8": (2, 64, 32, [8] * 4, [96] * 4, True),
    "vit_tiny_patch16_224": (2, 32, 48, [16] * 4, [192] * 4, True),  # a class token, twelve blocks
    "deit_tiny_distilled_patch16_224": (2, 32, 48, [16] * 4, [192] * 4, True),
    "swin_mini": (2, 64, 32, HALVING, [24, 48, 96, 192], True),
    "pvt_mini": (2, 64, 96, HALVING, [16, 32, 64, 128], True),
    "resnet_nano": (2, 32, 64, HALVING, [8, 16, 32, 64], False),
    "resnet_mini": (2, 64, 32, HALVING, [16, 32, 64, 128], False),
    "convnext_atto": (2, 64, 32, HALVING, [40, 80, 160, 320], False),
    "vit3d_mini_patch8": (3, 16, 32, [8] * 4, [96] * 4, True),
    "swin3d_mini": (3, 32, 64, HALVING, [24, 48, 96, 192], True),
    "resnet3d_mini": (3, 32, 64, HALVING, [16, 32, 64, 128], False),
}

CLASS_TOKENS = {"vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"}


def encoder(name: str, channels: int = 1, size: int | None = None, seed: int = 0, **settings: Any) -> Encoder:
    """An encoder in evaluation mode, with noise on its weights: what starts as zero or one would hide mistakes."""
    torch.manual_seed(seed)
    dimensions, first = ENCODERS[name][:2]
    made = Encoder(name, size or first, channels, dimensions, **settings)
    if not settings.get("weights"):
        disturb(made)
    return made.eval()


@torch.no_grad()
def disturb(module: nn.Module) -> None:
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.05 * torch.rand_like(tensor)


def image(dimensions: int, size: int, channels: int = 1, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, *[size] * dimensions, generator=torch.Generator().manual_seed(1))
