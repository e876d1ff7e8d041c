"""What the tasks of each kind may declare: losses, metrics, decoders. Free of torch, so that a config can be checked fast.

A kind is a row of :data:`KIND_SPECS` here and a module of this package, which says how it is done (:mod:`.kind`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class KindSpec:
    """What the tasks of a kind may name."""

    label: str  # what a cell of the manifest holds
    losses: tuple[str, ...]  # the terms that a loss is made of
    loss: str  # the default
    metrics: tuple[str, ...]  # choices (best round, early stopping) go by the first, unless a task names others
    decoders: tuple[str, ...]  # the first is the default
    least_classes: int = 1
    ranged: bool = False  # has values between two ends, instead of classes alone
    by_class: bool = False  # an image has one class: patients are dealt evenly by it
    in_files: bool = False  # a cell is the path of a file
    geometry: Literal["", "map", "boxes"] = ""  # how a label lies in the image, and moves with it


KIND_SPECS = {
    "classification": KindSpec(
        "a class, by name or index",
        losses=("cross-entropy", "focal"),
        loss="cross-entropy",
        metrics=("auc", "accuracy"),
        decoders=("linear",),
        least_classes=2,
        by_class=True,
    ),
    "multi-label": KindSpec(
        "the classes that are present, 'effusion; mass', or 'none'",
        losses=("cross-entropy", "focal"),
        loss="cross-entropy",
        metrics=("auc", "accuracy"),
        decoders=("linear",),
    ),
    "ordinal": KindSpec(
        "a class, by name or index, of classes in their order",
        losses=("coral",),
        loss="coral",
        metrics=("kappa", "mae", "accuracy"),
        decoders=("coral",),
        least_classes=2,
        by_class=True,
    ),
    "segmentation": KindSpec(
        "the path of a mask of class indices",
        losses=("dice", "cross-entropy", "focal"),
        loss="dice + cross-entropy",
        metrics=("dice", "iou"),
        decoders=("mlp", "unet"),
        least_classes=2,
        in_files=True,
        geometry="map",
    ),
    "multi-label-segmentation": KindSpec(
        "the path of an .npz, or of a folder, with a mask for each structure, which may overlap",
        losses=("dice", "cross-entropy", "focal"),
        loss="dice + cross-entropy",
        metrics=("dice", "iou"),
        decoders=("mlp", "unet"),
        in_files=True,
        geometry="map",
    ),
    "detection": KindSpec(
        "boxes 'x,y,w,h,class; ...' in pixels of the image, or 'none'",
        losses=("focal", "size", "offset"),
        loss="focal + size + offset",
        metrics=("ap50", "map", "froc"),
        decoders=("centre",),
        geometry="boxes",
    ),
    "regression": KindSpec(
        "a number, or one for each class, '2.5; 1'",
        losses=("huber", "l1", "mse"),
        loss="huber",
        metrics=("mae", "r2"),
        decoders=("linear",),
        ranged=True,
    ),
    "dose": KindSpec(
        "the path of an .npz, or of a folder, with dose, where it can be, spacing, and a mask for each structure",
        losses=("l1", "mse", "dvh"),
        loss="l1",
        metrics=("dose-score", "dvh-score"),
        decoders=("mlp", "unet"),
        ranged=True,
        in_files=True,
        geometry="map",
    ),
}
LOWER_IS_BETTER = frozenset({"mae", "dose-score", "dvh-score"})  # of all metrics
