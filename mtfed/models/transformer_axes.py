"""The axes of timm's attention, MLPs and plain vision transformer.

``residual`` is the label of the stream that a module reads and adds to.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..startup import import_timm
from ..strategies.axes import Axis, Circuit, Piece
from .sketch import Label, Sketch, describes, join
from .volumes import VolumeTransformer

timm = import_timm()
Places = tuple[tuple[str, int | None], ...]
FUSED: Places = (("qkv", 0), ("qkv", 1), ("qkv", 2))
# Where attention keeps query, key and value: the map's name, and the index in it of one that is fused.
ATTENTIONS: dict[type[nn.Module], Places] = {
    timm.layers.Attention: FUSED,
    timm.models.swin_transformer.WindowAttention: FUSED,
    timm.models.pvt_v2.Attention: (("q", None), ("kv", 0), ("kv", 1)),
}
# Those whose heads need not add up to the stream's width; timm's plain attention needed it in some versions.
FREE_WIDTH = {timm.models.swin_transformer.WindowAttention} | (
    {timm.layers.Attention} if hasattr(timm.layers.Attention(4, num_heads=1), "attn_dim") else set()
)
# MLPs whose hidden layer is ``fold`` maps in one tensor, the parts of which are multiplied with each other.
MLPS: dict[type[nn.Module], int] = {
    timm.layers.Mlp: 1, timm.layers.ConvMlp: 1, timm.layers.GlobalResponseNormMlp: 1, timm.layers.SwiGLU: 1,
    timm.models.pvt_v2.MlpWithDepthwiseConv: 1, timm.layers.GluMlp: 2,
}  # fmt: skip


@describes(*MLPS)
def mlp(sketch: Sketch, path: str, module: Any, residual: Label = None) -> None:
    """Label the hidden units of an MLP."""
    size = sketch.shapes[f"{path}.fc2.weight"][1]
    hidden = sketch.axis(f"{path}.hidden", Axis(size, growable=True))
    if (fold := MLPS[type(module)]) > 1:
        inputs = sketch.shapes[f"{path}.fc1.weight"][1:]
        sketch.mark(f"{path}.fc1.weight", None, hidden, residual, view=(fold, size, *inputs))
        sketch.mark(f"{path}.fc1.bias", None, hidden, view=(fold, size))
    else:
        for name in ("fc1", "fc1_g", "fc1_x"):
            sketch.map(f"{path}.{name}", module, residual, hidden)
    sketch.vectors(f"{path}.dwconv", hidden)
    for name in ("norm", "grn"):
        if hasattr(module, name):
            sketch.norm(f"{path}.{name}", getattr(module, name), hidden)
    sketch.map(f"{path}.fc2", module, hidden, residual)


@describes(*ATTENTIONS)
def attention(sketch: Sketch, path: str, module: Any, residual: Label = None, places: Places | None = None) -> None:
    """Label the heads of self-attention, and the inner axes that have no basis of their own.

    ``places`` is for attention that :data:`ATTENTIONS` does not have, because its library may not be imported yet.
    """
    outputs, width = sketch.shapes[f"{path}.proj.weight"]
    heads, label, places = module.num_heads, f"{path}.heads", places or ATTENTIONS[type(module)]
    head = (heads, width // heads)
    for name, index in dict(places).items():
        lead = () if index is None else (sketch.shapes[f"{path}.{name}.weight"][0] // width,)
        labels = (*(None for _ in lead), label, None)
        sketch.mark(f"{path}.{name}.weight", *labels, residual, view=(*lead, *head, outputs))
        sketch.mark(f"{path}.{name}.bias", *labels, view=(*lead, *head))
    sketch.mark(f"{path}.proj.weight", residual, label, view=(outputs, *head))
    sketch.mark(f"{path}.proj.bias", residual)
    sketch.read(f"{path}.proj.weight", label)
    sketch.mark(f"{path}.relative_position_bias_table", None, label)
    circuits = {
        "query and key": Circuit(*(_pieces(sketch, path, *place) for place in places[:2])),
        "value and output": Circuit(_pieces(sketch, path, *places[2]), (Piece(f"{path}.proj.weight"),)),
    }
    growable = type(module) in FREE_WIDTH
    if type(module) is timm.layers.Attention:  # its options, each of which gives an inner axis a basis
        if not isinstance(module.q_norm, nn.Identity):  # the same inside every head
            for name in ("q_norm", "k_norm"):
                sketch.vectors(f"{path}.{name}", None)
            del circuits["query and key"]
        if not isinstance(module.norm, nn.Identity) or getattr(module, "gate", None) is not None:
            for kind in ("weight", "bias"):
                sketch.mark(f"{path}.norm.{kind}", label, view=head)
            sketch.mark(f"{path}.gate.weight", label, None, residual, view=(*head, outputs))
            sketch.mark(f"{path}.gate.bias", label, view=head)
            growable = isinstance(module.norm, nn.Identity)  # else it runs over all heads at once
            del circuits["value and output"]
    sketch.axis(label, Axis(heads, "heads", circuits=tuple(circuits.values()), growable=growable))


def _pieces(sketch: Sketch, path: str, name: str, part: int | None) -> tuple[Piece, ...]:
    return tuple(Piece(at, part) for at in (f"{path}.{name}.weight", f"{path}.{name}.bias") if at in sketch.tensors)


@describes(timm.models.vision_transformer.VisionTransformer, VolumeTransformer)
def plain_transformer(sketch: Sketch, path: str, module: Any, read: bool = False) -> str:
    """Label a plain vision transformer and return its residual stream's label.

    The stream can be permuted if all of the transformer is understood, and everyone who reads it is: its own head,
    or, with ``read``, whoever asked.
    """
    residual = sketch.axis(join(path, "residual"), Axis(module.embed_dim))
    for name in ("cls_token", "reg_token", "pos_embed"):
        sketch.mark(join(path, name), None, None, residual)
    sketch.map(join(path, "patch_embed.proj"), module, None, residual)
    for name in ("patch_embed.norm", "norm_pre", "norm", "fc_norm"):
        sketch.vectors(join(path, name), residual)
    for index, block in enumerate(module.blocks):
        at = join(path, f"blocks.{index}")
        for name in ("norm1", "norm2", "ls1", "ls2"):
            sketch.vectors(f"{at}.{name}", residual)
        for name, describe, known in (("attn", attention, ATTENTIONS), ("mlp", mlp, MLPS)):
            part = getattr(block, name, None)
            if type(part) in known:
                describe(sketch, f"{at}.{name}", part, residual)
    sketch.map(join(path, "head"), module, residual, None)
    whole = all(name in sketch.tensors for name in sketch.shapes if name.startswith(path))
    if not whole or not (read or (isinstance(module.head, nn.Linear) and not path)):
        sketch.change(residual, kind="frozen")
    return residual
