"""Task decoders: what turns the encoder's features into one task's prediction."""

from __future__ import annotations

from torch import nn

from .detection import CentreDecoder
from .heads import ClassificationDecoder, OrdinalDecoder, RegressionDecoder
from .pyramid import MLPDecoder, UNetDecoder

DENSE: dict[str, type[nn.Module]] = {"mlp": MLPDecoder, "unet": UNetDecoder}
# By kind of task, then by the name in its declaration.
DECODERS: dict[str, dict[str, type[nn.Module]]] = {
    "classification": {"linear": ClassificationDecoder},
    "multi-label": {"linear": ClassificationDecoder},
    "ordinal": {"coral": OrdinalDecoder},
    "regression": {"linear": RegressionDecoder},
    "segmentation": DENSE,
    "multi-label-segmentation": DENSE,
    "detection": {"centre": CentreDecoder},
    "dose": DENSE,
}
