"""Task decoders: what turns the encoder's features into one task's prediction."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..tasks import Task
from .encoders import Encoder, Features


class ClassificationDecoder(nn.Module):
    """Logits (B, K) from the pooled features."""

    def __init__(self, task: Task, encoder: Encoder, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(encoder.dim)
        self.head = nn.Linear(encoder.dim, len(task.classes))

    def forward(self, features: Features) -> Tensor:
        return self.head(self.norm(features.pooled))


class SegmentationDecoder(nn.Module):
    """Logits (B, K, S, S) from all feature maps and the image itself.

    Our design: every map is projected to one width and brought to the finest stride, as in SegFormer's all-MLP
    decoder (Xie et al., 2021); the sum is upsampled step by step, and at stride 2 meets a convolution of the image,
    as in UNETR (Hatamizadeh et al., 2022), for the outlines that patches lose. Normalisation is GroupNorm with one
    group: it needs no running statistics, which sites with other scanners would disagree on.
    """

    def __init__(self, task: Task, encoder: Encoder, width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(1, channels), nn.Conv2d(channels, width, 1)) for channels in encoder.channels
        )
        self.detail = block(encoder.image_channels, width, stride=2)
        steps = max(min(encoder.strides).bit_length() - 2, 0)  # from the finest stride down to 2
        self.up = nn.ModuleList(block(width, width) for _ in range(steps))
        self.fuse = block(width, width)
        self.head = nn.Conv2d(width, len(task.classes), 1)

    def forward(self, features: Features) -> Tensor:
        finest = max((level.shape[-2:] for level in features.maps), key=lambda size: size[0])
        projected = [resize(level(x), finest) for level, x in zip(self.levels, features.maps, strict=True)]
        x = sum(projected[1:], start=projected[0])
        for step in self.up:
            x = step(F.interpolate(x, scale_factor=2.0, mode="bilinear"))
        detail = self.detail(features.image)
        x = self.fuse(resize(x, detail.shape[-2:]) + detail)
        return resize(self.head(x), features.image.shape[-2:])


DECODERS: dict[str, type[nn.Module]] = {
    "classification": ClassificationDecoder,
    "segmentation": SegmentationDecoder,
}


def block(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution, normalised and activated."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False), nn.GroupNorm(1, width), nn.GELU()
    )


def resize(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize feature maps (B, C, H, W) bilinearly, or pass them on where the size is right."""
    return x if x.shape[-2:] == tuple(size) else F.interpolate(x, size=tuple(size), mode="bilinear")
