"""The axes of the project's own models: a sharing scheme over an encoder, and one decoder per task."""

from __future__ import annotations

from typing import Any

from ..system import MultiTaskModel
from .builder import AxisGraphBuilder, describe, describes, join
from .decoders import DECODERS
from .sharing import label_sharing


@describes(MultiTaskModel)
def label_multi_task_model(builder: AxisGraphBuilder, path: str, module: Any) -> None:
    """Label the encoder and every decoder. A decoder of an unknown type freezes the features that it reads."""
    features = label_sharing(builder, join(path, "encoder"), module.encoder)
    for task, decoder in module.decoders.items():
        maps, pooled = features[task]
        name = join(path, f"decoders.{task}")
        if type(decoder) in DECODERS:
            DECODERS[type(decoder)](builder, name, decoder, maps, pooled)
        else:
            describe(builder, name, decoder)
            for label in (*maps, pooled):
                builder.restrict(label, kind="frozen")
