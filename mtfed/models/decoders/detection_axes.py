"""The axes of the decoder of boxes, and of the trunk that other decoders have too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...strategies.axes import Axis
from ..chain_axes import chain
from ..sketch import Label, Sketch


def trunk_axes(sketch: Sketch, path: str, module: Any, maps: Sequence[Label]) -> str:
    """Label a decoder's trunk: the levels write one sum, the last step up and the detail another; return what is fused.

    Args:
        sketch: to write to.
        path: of the decoder.
        module: the decoder, with the parts of :func:`.trunk.trunk`.
        maps: labels of what the levels read.
    """
    width = module.levels[0][-1].out_channels
    label: Label = sketch.axis(f"{path}.levels", Axis(width))
    for index, level in enumerate(module.levels):
        chain(sketch, f"{path}.levels.{index}", level, maps[index], label)
    for index, step in enumerate(module.up):
        written = sketch.axis(f"{path}.up.{index}", Axis(width))
        chain(sketch, f"{path}.up.{index}", step, label, written)
        label = written
    chain(sketch, f"{path}.detail", module.detail, None, label)
    fused = sketch.axis(f"{path}.fuse", Axis(width))
    chain(sketch, f"{path}.fuse", module.fuse, label, fused)
    return fused


def centre_decoder(sketch: Sketch, path: str, module: Any, maps: Sequence[Label], pooled: Label) -> None:
    """Label the trunk, and both heads."""
    fused = trunk_axes(sketch, path, module, maps)
    chain(sketch, f"{path}.centres", module.centres, fused, None)
    chain(sketch, f"{path}.boxes", module.boxes, fused, None)
