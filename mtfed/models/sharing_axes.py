"""The axes of sharing schemes, and of the features that they give each task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..strategies.axes import Axis
from .chain_axes import chain
from .ctan import BottleneckAttention, CrossTaskAttention, StageAttention
from .encoder_axes import body_axes
from .mtan import TaskAttention
from .sharing import HardSharing, SeparateEncoders, Sharing
from .sketch import Label, Sketch, describe, join
from .transformer_axes import attention

Labels = tuple[Sequence[Label], Label]  # of four maps, and of the pooled features
UNKNOWN: Labels = ((None,) * 4, None)


def scheme_axes(sketch: Sketch, path: str, scheme: Sharing) -> dict[str, Labels]:
    """Label a sharing scheme, and return what each task's decoder reads: the labels of its maps, and of the pooled.

    Whoever calls labels what the decoders read these with, or freezes them.
    """
    if type(scheme) in SCHEMES:
        return SCHEMES[type(scheme)](sketch, path, scheme)
    describe(sketch, path, scheme)
    return dict.fromkeys(scheme.tasks, UNKNOWN)


def hard_sharing(sketch: Sketch, path: str, scheme: Any) -> dict[str, Labels]:
    """Label the encoder, whose features all tasks read."""
    return dict.fromkeys(scheme.tasks, body_axes(sketch, join(path, "body"), scheme.reads, read=True))


def separate_encoders(sketch: Sketch, path: str, scheme: Any) -> dict[str, Labels]:
    """Label each task's encoder."""
    return {
        task: body_axes(sketch, join(path, f"own.{task}.body"), encoder, read=True)
        for task, encoder in scheme.own.items()
    }


def task_attention(sketch: Sketch, path: str, scheme: Any) -> dict[str, Labels]:
    """Label MTAN: masks have the units of the maps that they mask, bottlenecks write an axis that the masks read."""
    maps, pooled = body_axes(sketch, join(path, "body"), scheme.reads, read=True)
    inputs: list[Label] = [maps[0]]
    for i, bottleneck in enumerate(scheme.bottlenecks):
        at, channels = join(path, f"bottlenecks.{i}"), scheme.reads.channels[i + 1]
        written = sketch.axis(f"{at}.out", Axis(channels))
        for name in ("residual", "shortcut"):
            chain(sketch, f"{at}.{name}", getattr(bottleneck, name), maps[i], written)
        beside = maps[i + 1] or sketch.axis(f"{at}.beside", Axis(channels, "frozen"))
        inputs.append(f"{beside}+{written}")
    for task, masks in scheme.attention.items():
        for i, mask in enumerate(masks):
            chain(sketch, join(path, f"attention.{task}.{i}"), mask, inputs[i], maps[i])
    return dict.fromkeys(scheme.tasks, (maps, pooled))


def cross_task_attention(sketch: Sketch, path: str, scheme: Any) -> dict[str, Labels]:
    """Label CTAN. A task reads what all tasks make of a stage with the same weights, so they have one axis for it, as
    they have for their tokens.
    """
    maps, pooled = body_axes(sketch, join(path, "body"), scheme.reads, read=True)
    crossed: list[Label] = []  # read and written by several tasks' streams
    if scheme.in_encoder:
        crossed += [*maps, *(join(path, f"codes.{i}") for i in range(len(maps)))]
    if scheme.at_bottleneck:
        crossed += [maps[-1], join(path, "tokens")]
    for task, stream in scheme.cross.items():
        at = join(path, f"cross.{task}")
        for i, stage in enumerate(stream.stages if scheme.in_encoder else ()):
            before = maps[i - 1] if i else None
            _stage(sketch, f"{at}.stages.{i}", stage, before, maps[i], join(path, f"codes.{i}"))
        if scheme.at_bottleneck:
            _bottleneck(sketch, f"{at}.bottleneck", stream.bottleneck, maps[-1], join(path, "tokens"))
    # A site without task b trains through cross.b as it was sent, and returns all but that. What cross.b reads is in
    # the server's order of units, so what the site returns, reordered, would be another function than it trained.
    for label in crossed if len(scheme.tasks) > 1 else ():
        sketch.change(label, kind="frozen")
    return dict.fromkeys(scheme.tasks, (maps, pooled))


def _stage(sketch: Sketch, path: str, stage: StageAttention, before: Label, level: Label, code: str) -> None:
    hidden = stage.present.out_channels
    if code not in sketch.axes:
        sketch.axis(code, Axis(hidden))
    heard = sketch.axis(f"{path}.heard", Axis(hidden))
    maps = {
        "present": (level, code), "past": (before, code), "own": (code, level), "gate": (code, heard),
        "gate_other": (code, heard), "value": (code, heard), "heard": (heard, level),
    }  # fmt: skip
    for name, (inputs, outputs) in maps.items():
        sketch.map(f"{path}.{name}", stage, inputs, outputs)
    sketch.norm(f"{path}.norm", stage.norm, code)


def _bottleneck(sketch: Sketch, path: str, module: BottleneckAttention, level: Label, tokens: str) -> None:
    if tokens not in sketch.axes:
        sketch.axis(tokens, Axis(module.embed.out_features))
    sketch.map(f"{path}.embed", module.embed, level, tokens)
    for name in ("norm", "mlp_norm", "out_norm"):
        sketch.vectors(f"{path}.{name}", tokens)
    places = ("q", None), ("kv", 0), ("kv", 1)
    attention(sketch, f"{path}.attention", module.attention, tokens, places)
    chain(sketch, f"{path}.mlp", module.mlp, tokens, tokens)
    sketch.map(f"{path}.out", module.out, tokens, level)


SCHEMES: dict[type[Sharing], Callable[[Sketch, str, Any], dict[str, Labels]]] = {
    HardSharing: hard_sharing,
    SeparateEncoders: separate_encoders,
    TaskAttention: task_attention,
    CrossTaskAttention: cross_task_attention,
}
