"""The axes of Medformer.

One residual stream runs through tokens, latents, words and queries, so all of them share one axis. The latents are a
set: attention treats them alike, so their order is an axis of its own, which their positions share. Each patch
embedding has an axis in its stem.
"""

from __future__ import annotations

from typing import Any

from ...strategies.axes import Axis
from ..medformer import Medformer
from ..patches import PatchEmbedding
from .builder import AxisGraphBuilder, Label, join
from .chains import label_chain
from .encoders import FeatureLabels
from .transformers import Maps, label_attention, label_mlp

CROSS: Maps = (("q", None), ("kv", 0), ("kv", 1))


def label_medformer(builder: AxisGraphBuilder, path: str, scheme: Medformer) -> dict[str, FeatureLabels]:
    """Label all tensors and return, by task, the labels of the maps and pooled features that its decoder reads."""
    residual = builder.add_axis(join(path, "residual"), Axis(scheme.width))
    latents = builder.add_axis(join(path, "latents"), Axis(len(scheme.latents)))
    builder.label(join(path, "latents"), latents, residual)
    builder.label(join(path, "points"), latents)
    for name in ("dimensionality", "modality", "body_part", "task_latents"):
        for key in getattr(scheme, name):
            builder.label(join(path, f"{name}.{key}"), residual)
    stems = {
        name: _label_patches(builder, join(path, f"patches.{name}"), embedding, residual)
        for name, embedding in scheme.patches.items()
    }
    _label_cross_attention(builder, join(path, "reader"), scheme.reader, residual)
    for index, block in enumerate(scheme.blocks):
        block_path = join(path, f"blocks.{index}")
        for name in ("norm1", "norm2", "ls1", "ls2"):
            builder.label_vectors(f"{block_path}.{name}", residual)
        label_attention(builder, f"{block_path}.attn", block.attn, residual)
        label_mlp(builder, f"{block_path}.mlp", block.mlp, residual)
    for index, layer in enumerate(scheme.writer):
        _label_cross_attention(builder, join(path, f"writer.{index}"), layer, residual)
    if not all(name in builder.tensors for name in builder.shapes if name.startswith(path + ".")):
        builder.restrict(residual, axis_type="frozen")
    return {
        task: ([stems[f"{dimensions}d"], residual, residual, residual], residual)
        for task, dimensions in scheme.dimensions.items()
    }


def _label_patches(builder: AxisGraphBuilder, path: str, embedding: Any, residual: Label) -> str:
    assert isinstance(embedding, PatchEmbedding)
    stem = builder.add_axis(f"{path}.stem", Axis(embedding.info.channels[0]))
    label_chain(builder, f"{path}.stem", embedding.stem, None, stem)
    builder.label_map(f"{path}.tokens", embedding.tokens, stem, residual)
    builder.label_map(f"{path}.positions", embedding.positions, None, residual)
    return stem


def _label_cross_attention(builder: AxisGraphBuilder, path: str, block: Any, residual: Label) -> None:
    for name in ("norm", "context_norm", "mlp_norm"):
        builder.label_vectors(f"{path}.{name}", residual)
    label_attention(builder, f"{path}.attention", block.attention, residual, CROSS)
    label_mlp(builder, f"{path}.mlp", block.mlp, residual)
