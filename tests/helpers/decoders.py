"""Tasks and encoders for tests of decoders."""

from __future__ import annotations

from mtfed.tasks.specs import KIND_SPECS
from mtfed.tasks.task import Task

CLASSES = ("one", "two", "three")
RANGED = {"regression", "dose"}
ENCODERS = {  # name -> dimensions, side of its image
    "vit_nano_patch8": (2, 40),  # a plain transformer, whose maps all have stride 8
    "pvt_v2_b0": (2, 40),  # a hierarchical one; 32 does not divide 40
    "resnet_mini": (2, 32),
    "vit3d_mini_patch4": (3, 8),
    "resnet3d_mini": (3, 16),
}
PAIRS = [(kind, name) for kind, row in KIND_SPECS.items() for name in row.decoders]


def declare(kind: str, decoder: str = "") -> Task:
    name = f"{kind}_{decoder}" if decoder else kind
    return Task(name=name, kind=kind, classes=CLASSES, decoder=decoder, range=(0, 8) if kind in RANGED else ())
