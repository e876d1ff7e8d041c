"""Task decoders: modules that turn the encoder's features into the prediction of one task."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ...errors import MtfedError, unknown
from ...tasks.specs import KIND_SPECS
from .detection import CentreDecoder
from .heads import ClassificationDecoder, OrdinalDecoder, RegressionDecoder
from .pretext import OrientationDecoder, PatchDecoder, ProjectionDecoder
from .pyramid import MLPDecoder, UNetDecoder

# A decoder is called with a task, the form of its features, and its width; it turns Features into outputs (B, ...).
MAP_DECODERS: dict[str, type[nn.Module]] = {"mlp": MLPDecoder, "unet": UNetDecoder}
# By kind of task, then by the name that a task declares.
DECODERS: dict[str, dict[str, type[nn.Module]]] = {
    "classification": {"linear": ClassificationDecoder},
    "multi-label": {"linear": ClassificationDecoder},
    "ordinal": {"coral": OrdinalDecoder},
    "regression": {"linear": RegressionDecoder},
    "segmentation": dict(MAP_DECODERS),
    "multi-label-segmentation": dict(MAP_DECODERS),
    "detection": {"centre": CentreDecoder},
    "dose": dict(MAP_DECODERS),
    "reconstruction": {"patches": PatchDecoder},
    "orientation": {"linear": OrientationDecoder},
    "views": {"projector": ProjectionDecoder},
}


def register_decoder(kind: str, name: str, decoder: type[nn.Module]) -> None:
    """Make a decoder available to the tasks of a kind, under a name that they can declare.

    The axes of its weights that may be permuted are described with :func:`mtfed.models.axes.describes`; without a
    description they are left as they are.

    Raises:
        MtfedError: if there is no such kind, or the name is taken.
    """
    if kind not in KIND_SPECS:
        raise unknown("kind of task", kind, KIND_SPECS)
    decoders = DECODERS.setdefault(kind, {})
    if name in decoders:
        raise MtfedError(f"Expected a new name for a decoder of {kind} tasks, got {name!r}; choose another.")
    decoders[name] = decoder
    if name not in KIND_SPECS[kind].decoders:
        KIND_SPECS[kind] = replace(KIND_SPECS[kind], decoders=(*KIND_SPECS[kind].decoders, name))
