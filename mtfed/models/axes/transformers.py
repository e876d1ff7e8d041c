"""The axes of timm's attention, MLPs and plain vision transformer.

``residual`` is the label of the residual stream that a module reads and adds to.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ...strategies.axes import Axis, Circuit, Piece
from ..timm_library import timm
from ..volumes import VolumeTransformer
from .builder import AxisGraphBuilder, Label, describes, join

Maps = tuple[tuple[str, int | None], ...]  # for query, key and value: the map's name, and its index in a fused map
FUSED: Maps = (("qkv", 0), ("qkv", 1), ("qkv", 2))
ATTENTIONS: dict[type[nn.Module], Maps] = {
    timm.layers.Attention: FUSED,
    timm.models.swin_transformer.WindowAttention: FUSED,
    timm.models.pvt_v2.Attention: (("q", None), ("kv", 0), ("kv", 1)),
}
# Attention whose heads need not add up to the stream's width. timm's plain attention required it in some versions.
FREE_WIDTH = {timm.models.swin_transformer.WindowAttention} | (
    {timm.layers.Attention} if hasattr(timm.layers.Attention(4, num_heads=1), "attn_dim") else set()
)
PLAIN_TRANSFORMERS: tuple[type[nn.Module], ...] = (timm.models.VisionTransformer, VolumeTransformer)
# MLPs, and how many maps their first tensor fuses; the outputs of fused maps are multiplied with each other.
MLPS: dict[type[nn.Module], int] = {
    timm.layers.Mlp: 1, timm.layers.ConvMlp: 1, timm.layers.GlobalResponseNormMlp: 1, timm.layers.SwiGLU: 1,
    timm.models.pvt_v2.MlpWithDepthwiseConv: 1, timm.layers.GluMlp: 2,
}  # fmt: skip


@describes(*MLPS)
def label_mlp(builder: AxisGraphBuilder, path: str, module: Any, residual: Label = None) -> None:
    """Label the hidden units of an MLP."""
    size = builder.shapes[f"{path}.fc2.weight"][1]
    hidden = builder.add_axis(f"{path}.hidden", Axis(size, growable=True))
    if (fold := MLPS[type(module)]) > 1:
        inputs = builder.shapes[f"{path}.fc1.weight"][1:]
        builder.label(f"{path}.fc1.weight", None, hidden, residual, view=(fold, size, *inputs))
        builder.label(f"{path}.fc1.bias", None, hidden, view=(fold, size))
    else:
        for name in ("fc1", "fc1_g", "fc1_x"):
            builder.label_map(f"{path}.{name}", module, residual, hidden)
    builder.label_vectors(f"{path}.dwconv", hidden)
    for name in ("norm", "grn"):
        if hasattr(module, name):
            builder.label_norm(f"{path}.{name}", getattr(module, name), hidden)
    builder.label_map(f"{path}.fc2", module, hidden, residual)


@describes(*ATTENTIONS)
def label_attention(
    builder: AxisGraphBuilder, path: str, module: Any, residual: Label = None, maps: Maps | None = None
) -> None:
    """Label the heads of self-attention, and declare the inner axes that have no basis of their own.

    ``maps`` is for attention that :data:`ATTENTIONS` cannot list because its library may not be imported yet.
    """
    outputs, width = builder.shapes[f"{path}.proj.weight"]
    heads, label, maps = module.num_heads, f"{path}.heads", maps or ATTENTIONS[type(module)]
    head = (heads, width // heads)
    for name, index in dict(maps).items():
        lead = () if index is None else (builder.shapes[f"{path}.{name}.weight"][0] // width,)
        labels = (*(None for _ in lead), label, None)
        builder.label(f"{path}.{name}.weight", *labels, residual, view=(*lead, *head, outputs))
        builder.label(f"{path}.{name}.bias", *labels, view=(*lead, *head))
    builder.label(f"{path}.proj.weight", residual, label, view=(outputs, *head))
    builder.label(f"{path}.proj.bias", residual)
    builder.add_reader(f"{path}.proj.weight", label)
    builder.label(f"{path}.relative_position_bias_table", None, label)
    circuits = {
        "query and key": Circuit(*(_pieces(builder, path, *entry) for entry in maps[:2])),
        "value and output": Circuit(_pieces(builder, path, *maps[2]), (Piece(f"{path}.proj.weight"),)),
    }
    growable = type(module) in FREE_WIDTH
    if type(module) is timm.layers.Attention:  # its options, each of which gives an inner axis a basis
        if not isinstance(module.q_norm, nn.Identity):  # one norm for all heads
            for name in ("q_norm", "k_norm"):
                builder.label_vectors(f"{path}.{name}", None)
            del circuits["query and key"]
        if not isinstance(module.norm, nn.Identity) or getattr(module, "gate", None) is not None:
            for name in ("weight", "bias"):
                builder.label(f"{path}.norm.{name}", label, view=head)
            builder.label(f"{path}.gate.weight", label, None, residual, view=(*head, outputs))
            builder.label(f"{path}.gate.bias", label, view=head)
            growable = isinstance(module.norm, nn.Identity)  # any other norm runs over all heads at once
            del circuits["value and output"]
    builder.add_axis(label, Axis(heads, "heads", circuits=tuple(circuits.values()), growable=growable))


def _pieces(builder: AxisGraphBuilder, path: str, map_name: str, part: int | None) -> tuple[Piece, ...]:
    names = (f"{path}.{map_name}.weight", f"{path}.{map_name}.bias")
    return tuple(Piece(name, part) for name in names if name in builder.tensors)


@describes(*PLAIN_TRANSFORMERS)
def label_transformer(builder: AxisGraphBuilder, path: str, module: Any, readers_known: bool = False) -> str:
    """Label a plain vision transformer and return the label of its residual stream.

    The stream can be permuted only if every tensor of the transformer is labelled, and so is every reader of the
    stream: its own head or, with ``readers_known``, the tensors that the caller labels.
    """
    residual = builder.add_axis(join(path, "residual"), Axis(module.embed_dim))
    for name in ("cls_token", "reg_token", "pos_embed"):
        builder.label(join(path, name), None, None, residual)
    builder.label_map(join(path, "patch_embed.proj"), module, None, residual)
    for name in ("patch_embed.norm", "norm_pre", "norm", "fc_norm"):
        builder.label_vectors(join(path, name), residual)
    for index, block in enumerate(module.blocks):
        block_path = join(path, f"blocks.{index}")
        for name in ("norm1", "norm2", "ls1", "ls2"):
            builder.label_vectors(f"{block_path}.{name}", residual)
        for name, describer, known in (("attn", label_attention, ATTENTIONS), ("mlp", label_mlp, MLPS)):
            part = getattr(block, name, None)
            if type(part) in known:
                describer(builder, f"{block_path}.{name}", part, residual)
    builder.label_map(join(path, "head"), module, residual, None)
    is_complete = all(name in builder.tensors for name in builder.shapes if name.startswith(path))
    has_own_head = isinstance(module.head, nn.Linear) and not path
    if not is_complete or not (readers_known or has_own_head):
        builder.restrict(residual, axis_type="frozen")
    return residual
