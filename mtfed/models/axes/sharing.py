"""The axes of sharing schemes and of the features that they pass to each task's decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...strategies.axes import Axis
from ..ctan import BottleneckAttention, CrossTaskAttention, StageAttention
from ..medformer import Medformer
from ..mtan import TaskAttention
from ..sharing import HardSharing, SeparateEncoders, Sharing
from .builder import AxisGraphBuilder, Label, describe, join
from .chains import label_chain
from .encoders import FeatureLabels, label_body
from .medformer import CROSS, label_medformer
from .transformers import label_attention


def label_sharing(builder: AxisGraphBuilder, path: str, scheme: Sharing) -> dict[str, FeatureLabels]:
    """Label a sharing scheme and return, by task, the labels of the maps and pooled features that its decoder reads.

    The caller has to label the decoders' tensors that read these features, or freeze the axes.
    """
    if type(scheme) in SCHEME_LABELS:
        return SCHEME_LABELS[type(scheme)](builder, path, scheme)
    describe(builder, path, scheme)
    return dict.fromkeys(scheme.tasks, ([None] * 4, None))


def label_hard_sharing(builder: AxisGraphBuilder, path: str, scheme: Any) -> dict[str, FeatureLabels]:
    """Label the encoder, whose features all tasks read."""
    return dict.fromkeys(scheme.tasks, label_body(builder, join(path, "body"), scheme.encoder, readers_known=True))


def label_separate_encoders(builder: AxisGraphBuilder, path: str, scheme: Any) -> dict[str, FeatureLabels]:
    """Label each task's encoder."""
    return {
        task: label_body(builder, join(path, f"own.{task}.body"), encoder, readers_known=True)
        for task, encoder in scheme.own.items()
    }


def label_task_attention(builder: AxisGraphBuilder, path: str, scheme: Any) -> dict[str, FeatureLabels]:
    """Label MTAN. A mask has the units of the map that it masks; a bottleneck writes an axis that the masks read."""
    maps, pooled = label_body(builder, join(path, "body"), scheme.encoder, readers_known=True)
    inputs: list[Label] = [maps[0]]
    for i, bottleneck in enumerate(scheme.bottlenecks):
        own_path, channels = join(path, f"bottlenecks.{i}"), scheme.encoder.channels[i + 1]
        written = builder.add_axis(f"{own_path}.out", Axis(channels))
        for name in ("residual", "shortcut"):
            label_chain(builder, f"{own_path}.{name}", getattr(bottleneck, name), maps[i], written)
        encoder_map = maps[i + 1] or builder.add_axis(f"{own_path}.beside", Axis(channels, "frozen"))
        inputs.append(f"{encoder_map}+{written}")
    for task, masks in scheme.attention.items():
        for i, mask in enumerate(masks):
            label_chain(builder, join(path, f"attention.{task}.{i}"), mask, inputs[i], maps[i])
    return dict.fromkeys(scheme.tasks, (maps, pooled))


def label_cross_task_attention(builder: AxisGraphBuilder, path: str, scheme: Any) -> dict[str, FeatureLabels]:
    """Label CTAN.

    A task reads every task's features of a stage with the same weights, so the features of all tasks share one axis
    per stage. So do their tokens.
    """
    maps, pooled = label_body(builder, join(path, "body"), scheme.encoder, readers_known=True)
    crossed: list[Label] = []  # axes that the streams of several tasks read and write
    if scheme.in_encoder:
        crossed += [*maps, *(join(path, f"codes.{i}") for i in range(len(maps)))]
    if scheme.at_bottleneck:
        crossed += [maps[-1], join(path, "tokens")]
    for task, stream in scheme.cross.items():
        own_path = join(path, f"cross.{task}")
        for i, stage in enumerate(stream.stages if scheme.in_encoder else ()):
            before = maps[i - 1] if i else None
            _label_stage(builder, f"{own_path}.stages.{i}", stage, before, maps[i], join(path, f"codes.{i}"))
        if scheme.at_bottleneck:
            _label_bottleneck(builder, f"{own_path}.bottleneck", stream.bottleneck, maps[-1], join(path, "tokens"))
    # A site without task b trains through cross.b with the weights that it received and does not return them. They
    # read units in the server's order, so permuting what the site returns would change the function that it trained.
    for label in crossed if len(scheme.tasks) > 1 else ():
        builder.restrict(label, axis_type="frozen")
    return dict.fromkeys(scheme.tasks, (maps, pooled))


def _label_stage(
    builder: AxisGraphBuilder, path: str, stage: StageAttention, before: Label, level: Label, code: str
) -> None:
    hidden = stage.present.out_channels
    if code not in builder.axes:
        builder.add_axis(code, Axis(hidden))
    heard = builder.add_axis(f"{path}.heard", Axis(hidden))
    maps = {
        "present": (level, code), "past": (before, code), "own": (code, level), "gate": (code, heard),
        "gate_other": (code, heard), "value": (code, heard), "heard": (heard, level),
    }  # fmt: skip
    for name, (inputs, outputs) in maps.items():
        builder.label_map(f"{path}.{name}", stage, inputs, outputs)
    builder.label_norm(f"{path}.norm", stage.norm, code)


def _label_bottleneck(
    builder: AxisGraphBuilder, path: str, module: BottleneckAttention, level: Label, tokens: str
) -> None:
    if tokens not in builder.axes:
        builder.add_axis(tokens, Axis(module.embed.out_features))
    builder.label_map(f"{path}.embed", module.embed, level, tokens)
    for name in ("norm", "mlp_norm", "out_norm"):
        builder.label_vectors(f"{path}.{name}", tokens)
    label_attention(builder, f"{path}.attention", module.attention, tokens, CROSS)
    label_chain(builder, f"{path}.mlp", module.mlp, tokens, tokens)
    builder.label_map(f"{path}.out", module.out, tokens, level)


SCHEME_LABELS: dict[type[Sharing], Callable[[AxisGraphBuilder, str, Any], dict[str, FeatureLabels]]] = {
    HardSharing: label_hard_sharing,
    SeparateEncoders: label_separate_encoders,
    TaskAttention: label_task_attention,
    CrossTaskAttention: label_cross_task_attention,
    Medformer: label_medformer,
}
