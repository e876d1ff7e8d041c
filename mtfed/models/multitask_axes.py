"""The axes of the project's own models: an encoder and every decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..startup import import_timm
from ..strategies.axes import Axis
from .chain_axes import chain
from .decoders import ClassificationDecoder, SegmentationDecoder
from .mtmedformer import MTMedFormer
from .sketch import Label, Sketch, describe, describes, join
from .transformer_axes import plain_transformer

timm = import_timm()


@describes(MTMedFormer)
def mtmedformer(sketch: Sketch, path: str, module: Any) -> None:
    """Label the encoder and every decoder; a residual stream that some decoder reads unexplained is frozen."""
    body, at = module.encoder.body, join(path, "encoder.body")
    if type(body) is timm.models.vision_transformer.VisionTransformer:
        read = all(type(decoder) in DECODERS for decoder in module.decoders.values())
        pooled = plain_transformer(sketch, at, body, read)
        maps: list[Label] = [pooled] * len(module.encoder.channels)
    else:
        describe(sketch, at, body)
        pooled, maps = None, [None] * len(module.encoder.channels)
    for task, decoder in module.decoders.items():
        name = join(path, f"decoders.{task}")
        if type(decoder) in DECODERS:
            DECODERS[type(decoder)](sketch, name, decoder, maps, pooled)
        else:
            describe(sketch, name, decoder)


def classification_decoder(sketch: Sketch, path: str, module: Any, maps: Sequence[Label], pooled: Label) -> None:
    """Label a norm and a linear head on the pooled features; classes stay."""
    sketch.vectors(f"{path}.norm", pooled)
    sketch.map(f"{path}.head", module, pooled, None)


def segmentation_decoder(sketch: Sketch, path: str, module: Any, maps: Sequence[Label], pooled: Label) -> None:
    """Label the all-MLP decoder: the levels write one sum, and the last step up and the detail write another."""
    width = module.head.in_channels
    label: Label = sketch.axis(f"{path}.levels", Axis(width))
    for index, level in enumerate(module.levels):
        chain(sketch, f"{path}.levels.{index}", level, maps[index], label)
    for index, step in enumerate(module.up):
        written = sketch.axis(f"{path}.up.{index}", Axis(width))
        chain(sketch, f"{path}.up.{index}", step, label, written)
        label = written
    chain(sketch, f"{path}.detail", module.detail, None, label)
    written = sketch.axis(f"{path}.fuse", Axis(width))
    chain(sketch, f"{path}.fuse", module.fuse, label, written)
    sketch.map(f"{path}.head", module.head, written, None)


DECODERS = {ClassificationDecoder: classification_decoder, SegmentationDecoder: segmentation_decoder}
