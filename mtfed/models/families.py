"""What encoders of one architecture have in common: how their stages hold maps, and how a map is pooled.

A new architecture is a row of :data:`FAMILIES`, and of :data:`.axes.encoders.BODIES` for its axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..startup import import_timm
from .volumes import VolumeResNet, VolumeSwin, VolumeTransformer

timm = import_timm()
# Attention between tokens that does not say so in full: of Twins and CaiT. What only weights channels ends alike.
ATTENTIONS = ("LocallyGroupedAttn", "GlobalSubSampleAttn", "TalkingHeadAttn", "ClassAttn")
NAMES = "a ResNet, ConvNeXt, plain ViT, Swin, PVT v2 or CoAtNet"  # those of FAMILIES, for people


@dataclass(frozen=True)
class Family:
    """An architecture.

    ``pool`` gives the pooled features (B, D) that a body's own head would make of a last map (B, C, *s).
    """

    pool: Callable[[Any, Tensor], Tensor]
    tokens: bool  # whether blocks pass on (B, ..., C), perhaps with tokens before those of the map, or (B, C, *s)
    transformer: bool


def _pool_tokens(body: Any, last: Tensor) -> Tensor:
    """Norm and pool the tokens of a map; there is no class token in it, the mean stands in."""
    tokens = body.norm(last.flatten(2).mT)
    if body.attn_pool is not None:
        pooled = body.attn_pool(tokens)
    else:
        kind = "avg" if body.global_pool == "token" else body.global_pool
        pooled = timm.layers.global_pool_nlc(tokens, pool_type=kind, num_prefix_tokens=0)
    return body.head_drop(body.fc_norm(pooled))


def _pool_normed(body: Any, last: Tensor) -> Tensor:
    return body.forward_head(body.norm(last.movedim(1, -1)), pre_logits=True)


def _pool_map(body: Any, last: Tensor) -> Tensor:
    return body.forward_head(last, pre_logits=True)


def _pool_before_norm(body: Any, last: Tensor) -> Tensor:
    return body.forward_head(body.norm(last), pre_logits=True)


def _pool_convnext(body: Any, last: Tensor) -> Tensor:
    return body.forward_head(body.norm_pre(last), pre_logits=True)


FAMILIES: dict[type[nn.Module], Family] = {
    timm.models.VisionTransformer: Family(_pool_tokens, tokens=True, transformer=True),
    timm.models.SwinTransformer: Family(_pool_normed, tokens=True, transformer=True),
    timm.models.SwinTransformerV2: Family(_pool_normed, tokens=True, transformer=True),
    timm.models.PyramidVisionTransformerV2: Family(_pool_map, tokens=True, transformer=True),
    timm.models.ResNet: Family(_pool_map, tokens=False, transformer=False),
    timm.models.MaxxVit: Family(_pool_before_norm, tokens=False, transformer=True),
    timm.models.ConvNeXt: Family(_pool_convnext, tokens=False, transformer=False),
    VolumeTransformer: Family(_pool_tokens, tokens=True, transformer=True),
    VolumeSwin: Family(_pool_map, tokens=True, transformer=True),
    VolumeResNet: Family(_pool_map, tokens=False, transformer=False),
}


def family_of(body: nn.Module) -> Family | None:
    """Return the family of a body, by its class or the nearest one that it derives from."""
    return next((FAMILIES[kind] for kind in type(body).__mro__ if kind in FAMILIES), None)


def is_transformer(body: nn.Module) -> bool:
    """Say whether a body is a transformer: as its family is, or else by whether it has attention between tokens."""
    family = family_of(body)
    if family is not None:
        return family.transformer
    names = {type(module).__name__ for module in body.modules()}
    return any(name in ATTENTIONS or ("Attention" in name and "Pool" not in name) for name in names)


def run_stages(
    body: Any, stages: list[str], tokens: bool, forward: Callable[[], list[Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    """Return the maps before and after the last block of each stage.

    Args:
        body: an encoder's body.
        stages: paths of its stages, or of blocks of a body that has no stages.
        tokens: see :class:`Family`.
        forward: runs the body, and returns the maps after the stages.
    """
    taken: dict[str, Tensor] = {}
    taps = [_tap(body.get_submodule(stage), stage, taken) for stage in stages]
    try:
        after = forward()
    finally:
        for tap in taps:
            tap.remove()
    before = [taken[stage] for stage in stages]
    return [(_as_map(x, y) if tokens else x, y) for x, y in zip(before, after, strict=True)]


def _tap(stage: Any, name: str, taken: dict[str, Tensor]) -> torch.utils.hooks.RemovableHandle:
    """Keep what the last block of a stage adds to: what it reads, or where that has another size, its shortcut."""
    blocks = stage if isinstance(stage, nn.Sequential) else getattr(stage, "blocks", [stage])
    last = blocks[-1]
    shortcut = getattr(last, "downsample", None)
    if isinstance(shortcut, nn.Module):
        return shortcut.register_forward_hook(lambda module, inputs, output: taken.update({name: output}))
    return last.register_forward_pre_hook(lambda module, inputs: taken.update({name: inputs[0]}))


def _as_map(tokens: Tensor, like: Tensor) -> Tensor:
    """Return (B, ..., C) as a map (B, C, *s) of another one's size, without the tokens that come before those of it."""
    size = like.shape[2:]
    inside = tokens.flatten(1, -2)[:, -prod(size) :]
    return inside.mT.reshape(len(tokens), -1, *size).contiguous()
