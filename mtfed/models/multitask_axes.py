"""The axes of the project's own models: a sharing scheme over an encoder, and every task's decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ..strategies.axes import Axis
from .chain_axes import chain
from .decoders.detection import CentreDecoder
from .decoders.detection_axes import centre_decoder, trunk_axes
from .decoders.heads import ClassificationDecoder, OrdinalDecoder, RegressionDecoder
from .decoders.pyramid import MLPDecoder, UNetDecoder
from .sharing_axes import scheme_axes
from .sketch import Label, Sketch, describe, describes, join
from .system import MultiTaskModel


@describes(MultiTaskModel)
def multi_task_model(sketch: Sketch, path: str, module: Any) -> None:
    """Label the encoder and every decoder; what a decoder reads that nobody understands is frozen."""
    features = scheme_axes(sketch, join(path, "encoder"), module.encoder)
    for task, decoder in module.decoders.items():
        maps, pooled = features[task]
        name = join(path, f"decoders.{task}")
        if type(decoder) in DECODERS:
            DECODERS[type(decoder)](sketch, name, decoder, maps, pooled)
        else:
            describe(sketch, name, decoder)
            for label in (*maps, pooled):
                sketch.change(label, kind="frozen")


def pooled_decoder(sketch: Sketch, path: str, module: Any, maps: Sequence[Label], pooled: Label) -> None:
    """Label a norm and a linear head on the pooled features; what the head gives stays."""
    sketch.vectors(f"{path}.norm", pooled)
    sketch.map(f"{path}.head", module.head, pooled, None)


def mlp_decoder(sketch: Sketch, path: str, module: Any, maps: Sequence[Label], pooled: Label) -> None:
    """Label the all-MLP decoder: its trunk, and its head."""
    sketch.map(f"{path}.head", module.head, trunk_axes(sketch, path, module, maps), None)


def unet_decoder(sketch: Sketch, path: str, module: Any, maps: Sequence[Label], pooled: Label) -> None:
    """Label the U-Net: every skip writes an axis of its own, and a step reads what comes up beside its skip."""
    skips: list[str] = []
    label: Label = None
    for index, step in enumerate(module.stem):
        written = sketch.axis(f"{path}.stem.{index}", Axis(step[0].out_channels))
        chain(sketch, f"{path}.stem.{index}", step, label, written)
        skips.append(written)
        label = written
    for index, level in enumerate(module.levels):
        skips.append(sketch.axis(f"{path}.levels.{index}", Axis(level[-1].out_channels)))
        chain(sketch, f"{path}.levels.{index}", level, maps[index], skips[-1])
    below = skips.pop()
    for index, (step, skip) in enumerate(zip(module.up, reversed(skips), strict=True)):
        written = sketch.axis(f"{path}.up.{index}", Axis(step[-1][0].out_channels))
        chain(sketch, f"{path}.up.{index}", step, f"{below}+{skip}", written)
        below = written
    sketch.map(f"{path}.head", module.head, below, None)


DECODERS: dict[type[nn.Module], Callable[[Sketch, str, Any, Sequence[Label], Label], None]] = {
    ClassificationDecoder: pooled_decoder,
    OrdinalDecoder: pooled_decoder,
    RegressionDecoder: pooled_decoder,
    MLPDecoder: mlp_decoder,
    UNetDecoder: unet_decoder,
    CentreDecoder: centre_decoder,
}
