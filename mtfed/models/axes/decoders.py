"""The axes of the project's own models: a sharing scheme over an encoder, and one decoder per task.

The outputs of decoders have a fixed meaning and are not permuted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ...strategies.axes import Axis
from ..decoders.detection import CentreDecoder
from ..decoders.heads import ClassificationDecoder, OrdinalDecoder, RegressionDecoder
from ..decoders.pretext import OrientationDecoder, PatchDecoder, ProjectionDecoder
from ..decoders.pyramid import MLPDecoder, UNetDecoder
from ..system import MultiTaskModel
from .builder import AxisGraphBuilder, Label, describe, describes, join
from .chains import label_chain
from .sharing import label_sharing

Maps = Sequence[Label]  # labels of the feature maps that a decoder reads


def label_pooled_decoder(builder: AxisGraphBuilder, path: str, module: Any, maps: Maps, pooled: Label) -> None:
    """Label a norm and a linear head on the pooled features."""
    builder.label_vectors(f"{path}.norm", pooled)
    builder.label_map(f"{path}.head", module.head, pooled, None)


def label_mlp_decoder(builder: AxisGraphBuilder, path: str, module: Any, maps: Maps, pooled: Label) -> None:
    """Label the all-MLP decoder: its trunk and its head."""
    builder.label_map(f"{path}.head", module.head, label_trunk(builder, path, module, maps), None)


def label_unet_decoder(builder: AxisGraphBuilder, path: str, module: Any, maps: Maps, pooled: Label) -> None:
    """Label the U-Net: every skip connection has its own axis; each step up reads the level below and its skip."""
    skips: list[str] = []
    label: Label = None
    for index, step in enumerate(module.stem):
        written = builder.add_axis(f"{path}.stem.{index}", Axis(step[0].out_channels))
        label_chain(builder, f"{path}.stem.{index}", step, label, written)
        skips.append(written)
        label = written
    for index, level in enumerate(module.levels):
        skips.append(builder.add_axis(f"{path}.levels.{index}", Axis(level[-1].out_channels)))
        label_chain(builder, f"{path}.levels.{index}", level, maps[index], skips[-1])
    below = skips.pop()
    for index, (step, skip) in enumerate(zip(module.up, reversed(skips), strict=True)):
        written = builder.add_axis(f"{path}.up.{index}", Axis(step[-1][0].out_channels))
        label_chain(builder, f"{path}.up.{index}", step, f"{below}+{skip}", written)
        below = written
    builder.label_map(f"{path}.head", module.head, below, None)


def label_centre_decoder(builder: AxisGraphBuilder, path: str, module: Any, maps: Maps, pooled: Label) -> None:
    """Label the detection decoder: its trunk and both heads."""
    fused = label_trunk(builder, path, module, maps)
    label_chain(builder, f"{path}.centres", module.centres, fused, None)
    label_chain(builder, f"{path}.boxes", module.boxes, fused, None)


def label_patch_decoder(builder: AxisGraphBuilder, path: str, module: Any, maps: Maps, pooled: Label) -> None:
    """Label the norm and the convolution on the last feature map."""
    label_chain(builder, f"{path}.head", module.head, maps[-1], None)


def label_projection_decoder(builder: AxisGraphBuilder, path: str, module: Any, maps: Maps, pooled: Label) -> None:
    """Label a norm, the projector and the predictor; projections are outputs, and are not permuted."""
    builder.label_vectors(f"{path}.norm", pooled)
    label_chain(builder, f"{path}.projector", module.projector, pooled, None)
    if module.predictor is not None:
        label_chain(builder, f"{path}.predictor", module.predictor, None, None)


def label_trunk(builder: AxisGraphBuilder, path: str, module: Any, maps: Maps) -> str:
    """Label a decoder's trunk and return the label of its fused output.

    The outputs of all levels are added, so they share one axis; the last step up and the detail branch share another.
    The decoder has the parts of :func:`mtfed.models.decoders.layers.trunk`.
    """
    width = module.levels[0][-1].out_channels
    label: Label = builder.add_axis(f"{path}.levels", Axis(width))
    for index, level in enumerate(module.levels):
        label_chain(builder, f"{path}.levels.{index}", level, maps[index], label)
    for index, step in enumerate(module.up):
        written = builder.add_axis(f"{path}.up.{index}", Axis(width))
        label_chain(builder, f"{path}.up.{index}", step, label, written)
        label = written
    label_chain(builder, f"{path}.detail", module.detail, None, label)
    fused = builder.add_axis(f"{path}.fuse", Axis(width))
    label_chain(builder, f"{path}.fuse", module.fuse, label, fused)
    return fused


DECODER_LABELS: dict[type[nn.Module], Callable[[AxisGraphBuilder, str, Any, Maps, Label], None]] = {
    ClassificationDecoder: label_pooled_decoder,
    OrdinalDecoder: label_pooled_decoder,
    RegressionDecoder: label_pooled_decoder,
    MLPDecoder: label_mlp_decoder,
    UNetDecoder: label_unet_decoder,
    CentreDecoder: label_centre_decoder,
    PatchDecoder: label_patch_decoder,
    OrientationDecoder: label_pooled_decoder,
    ProjectionDecoder: label_projection_decoder,
}


@describes(MultiTaskModel)
def label_multi_task_model(builder: AxisGraphBuilder, path: str, module: Any) -> None:
    """Label the encoder and every decoder. A decoder of an unknown type freezes the features that it reads."""
    features = label_sharing(builder, join(path, "encoder"), module.encoder)
    for task, decoder in module.decoders.items():
        maps, pooled = features[task]
        name = join(path, f"decoders.{task}")
        if type(decoder) in DECODER_LABELS:
            DECODER_LABELS[type(decoder)](builder, name, decoder, maps, pooled)
        else:
            describe(builder, name, decoder)
            for label in (*maps, pooled):
                builder.restrict(label, axis_type="frozen")
