"""Shared transformer encoders: any timm model by name, with features at several scales."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MtfedError
from ..startup import import_timm

timm = import_timm()


@dataclass
class Features:
    """What an encoder hands to the decoders."""

    image: Tensor  # (B, C, S, S), the normalised input
    maps: list[Tensor]  # from fine to coarse, (B, C_i, S / stride_i, S / stride_i)
    pooled: Tensor  # (B, D)

    def rows(self, index: Tensor) -> Features:
        """Return the features of some samples of the batch."""
        return Features(self.image[index], [level[index] for level in self.maps], self.pooled[index])


class Encoder(nn.Module):
    """A timm backbone seen as four feature maps and a pooled vector.

    A plain ViT gives four evenly spaced blocks, all at the stride of its patch; a hierarchical model its stages.

    Args:
        name: timm model name.
        image_size: side of the square input in pixels.
        channels: 1 or 3.
    """

    def __init__(self, name: str, image_size: int, channels: int) -> None:
        super().__init__()
        self.body = create_backbone(name, image_size, channels)
        levels = self.body.feature_info
        levels = levels if isinstance(levels, list) else levels.info
        self.indices = [round((i + 1) * len(levels) / 4) - 1 for i in range(4)] if len(levels) > 4 else None
        chosen = levels if self.indices is None else [levels[i] for i in self.indices]
        self.channels = [int(level["num_chs"]) for level in chosen]
        self.strides = [int(level["reduction"]) for level in chosen]
        self.image_channels = channels
        self.dim = int(self.body.head_hidden_size)

    def forward(self, image: Tensor) -> Features:
        final, maps = self.body.forward_intermediates(image, indices=self.indices, output_fmt="NCHW")
        return Features(image, maps, self.body.forward_head(final, pre_logits=True))


def create_backbone(name: str, image_size: int, channels: int) -> Any:  # timm's models share methods, not a type
    """Create a timm model without its classifier, for any input size it can take; errors name the model."""
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        raise MtfedError(f"Unknown encoder {name!r}; nearest in timm: {', '.join(near) or 'none'}.")
    settings: dict[str, Any] = {"num_classes": 0, "in_chans": channels}
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if cfg is None or cfg.fixed_input_size:
        settings["img_size"] = image_size
    try:
        body = timm.create_model(name, pretrained=False, **settings)
        with torch.no_grad():  # a size that does not fit fails here, not in a hospital's first step
            body.eval().forward_intermediates(torch.zeros(1, channels, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise MtfedError(
            f"Encoder {name!r} cannot take images of {image_size} px: {error}; choose another image-size."
        ) from error
    except (AttributeError, TypeError) as error:
        raise MtfedError(
            f"Encoder {name!r} gives no feature maps ({error}); choose a ViT, Swin, PVT or ConvNet."
        ) from error
    return body.train()


def _small_vit(width: int, settings: dict[str, Any]) -> nn.Module:
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        settings.pop(name, None)
    defaults = {
        "img_size": 64,
        "patch_size": 8,
        "embed_dim": width,
        "depth": 4,
        "num_heads": 4,
        "mlp_ratio": 4,
        "global_pool": "avg",
        "class_token": False,
    }
    return timm.models.VisionTransformer(**(defaults | settings))


@timm.models.register_model
def vit_mini_patch8(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Build a ViT for 64 px images on two cores: patch 8, width 96, 4 blocks of 4 heads, 0.46 M parameters."""
    return _small_vit(96, settings)


@timm.models.register_model
def vit_nano_patch8(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Build a ViT for trials and tests: patch 8, width 64, 4 blocks of 4 heads, 0.2 M parameters."""
    return _small_vit(64, settings)
