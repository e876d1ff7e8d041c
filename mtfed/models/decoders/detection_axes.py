"""The axes of the decoder of boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...strategies.axes import Axis
from ..chain_axes import chain
from ..sketch import Label, Sketch


def centre_decoder(sketch: Sketch, path: str, module: Any, maps: Sequence[Label], pooled: Label) -> None:
    """Label the levels, which write one sum, the last step up and the detail, which write another, and both heads."""
    width = module.levels[0][-1].out_channels
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
    chain(sketch, f"{path}.centres", module.centres, written, None)
    chain(sketch, f"{path}.boxes", module.boxes, written, None)
