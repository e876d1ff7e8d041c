"""Families of encoders, one for each architecture: how stages represent maps, and how the last map is pooled.

A new architecture is a row of :data:`FAMILIES`, and a case of :func:`.axes.encoders.label_body` for its axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from .timm_library import timm
from .volumes import VolumeResNet, VolumeSwin, VolumeTransformer

# Classes of attention between tokens whose names do not contain "Attention", of Twins and CaiT. (Names that end in
# "Attn" alone may also be attention over channels.)
TOKEN_ATTENTIONS = ("LocallyGroupedAttn", "GlobalSubSampleAttn", "TalkingHeadAttn", "ClassAttn")
StageMaps = list[tuple[Tensor, Tensor]]  # maps (B, C_i, *s) before and after the last block of each stage
FAMILY_NAMES = "a ResNet, ConvNeXt, plain ViT, Swin, PVT v2 or CoAtNet"  # for error messages


@dataclass(frozen=True)
class Family:
    """An architecture."""

    pool: Callable[[Any, Tensor], Tensor]  # body, its last map (B, C, *s) -> pooled features (B, D) of its own head
    # Whether blocks output tokens (B, ..., C), possibly with extra tokens before those of the map, instead of maps.
    tokens: bool
    transformer: bool  # whether the architecture is a transformer


def _pool_tokens(body: Any, last: Tensor) -> Tensor:
    """Normalise and pool the tokens of a map. It has no class token, so the mean takes its place."""
    tokens = body.norm(last.flatten(2).mT)
    if body.attn_pool is not None:
        return body.head_drop(body.fc_norm(body.attn_pool(tokens)))
    pool_type = "avg" if body.global_pool == "token" else body.global_pool
    pooled = timm.layers.global_pool_nlc(tokens, pool_type=pool_type, num_prefix_tokens=0)
    return body.head_drop(body.fc_norm(pooled))


def _pool_map(body: Any, last: Tensor) -> Tensor:
    return body.forward_head(last, pre_logits=True)


def _pool_swin(body: Any, last: Tensor) -> Tensor:
    return _pool_map(body, body.norm(last.movedim(1, -1)))


FAMILIES: dict[type[nn.Module], Family] = {
    timm.models.VisionTransformer: Family(_pool_tokens, tokens=True, transformer=True),
    timm.models.SwinTransformer: Family(_pool_swin, tokens=True, transformer=True),
    timm.models.SwinTransformerV2: Family(_pool_swin, tokens=True, transformer=True),
    timm.models.PyramidVisionTransformerV2: Family(_pool_map, tokens=True, transformer=True),
    timm.models.ResNet: Family(_pool_map, tokens=False, transformer=False),
    timm.models.MaxxVit: Family(lambda body, x: _pool_map(body, body.norm(x)), tokens=False, transformer=True),
    timm.models.ConvNeXt: Family(lambda body, x: _pool_map(body, body.norm_pre(x)), tokens=False, transformer=False),
    VolumeTransformer: Family(_pool_tokens, tokens=True, transformer=True),
    VolumeSwin: Family(_pool_map, tokens=True, transformer=True),
    VolumeResNet: Family(_pool_map, tokens=False, transformer=False),
}


def family_of(body: nn.Module) -> Family | None:
    """Return the family of a body's class, or of its nearest base class that has one."""
    return next((FAMILIES[base] for base in type(body).__mro__ if base in FAMILIES), None)


def is_transformer(body: nn.Module) -> bool:
    """Return whether a body's family is a transformer or, without a family, whether it has attention between tokens."""
    if (family := family_of(body)) is not None:
        return family.transformer
    names = {type(module).__name__ for module in body.modules()}
    return any(name in TOKEN_ATTENTIONS or ("Attention" in name and "Pool" not in name) for name in names)


def run_stages(body: Any, stages: list[str], tokens: bool, forward: Callable[[], list[Tensor]]) -> StageMaps:
    """Return the maps before and after the last block of each stage.

    ``stages`` are the paths of the body's stages, or of blocks if it has no stages; for ``tokens`` see :class:`Family`.
    ``forward`` runs the body and returns the maps after the stages.
    """
    captured: dict[str, Tensor] = {}
    hooks = [_capture(body.get_submodule(stage), stage, captured) for stage in stages]
    try:
        after = forward()
    finally:
        for hook in hooks:
            hook.remove()
    before = [captured[stage] for stage in stages]
    return [(_as_map(x, y) if tokens else x, y) for x, y in zip(before, after, strict=True)]


def _capture(stage: Any, name: str, captured: dict[str, Tensor]) -> torch.utils.hooks.RemovableHandle:
    """Capture what the last block of a stage adds to: its input or, if that has another size, its shortcut's output."""
    blocks = stage if isinstance(stage, nn.Sequential) else getattr(stage, "blocks", [stage])
    last = blocks[-1]
    shortcut = getattr(last, "downsample", None)
    if isinstance(shortcut, nn.Module):
        return shortcut.register_forward_hook(lambda module, inputs, output: captured.update({name: output}))
    return last.register_forward_pre_hook(lambda module, inputs: captured.update({name: inputs[0]}))


def _as_map(tokens: Tensor, like: Tensor) -> Tensor:
    """Return tokens (B, ..., C) as a map (B, C, *s) of the size of ``like``, without extra tokens before the map's."""
    size = like.shape[2:]
    inside = tokens.flatten(1, -2)[:, -prod(size) :]
    return inside.mT.reshape(len(tokens), -1, *size).contiguous()
