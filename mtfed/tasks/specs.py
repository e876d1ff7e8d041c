"""Task kinds and metrics as tables without torch, so that a config can be checked quickly.

A kind of task is a row of :data:`KIND_SPECS` and an implementation (:class:`mtfed.tasks.kind.Kind`). The implementation
of a built-in kind is ``KIND`` in the module of this package that is named after the kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MetricSpec:
    """How a metric is read and written."""

    title: str
    description: str
    higher_is_better: bool = True
    in_units: bool = False  # an error in the task's unit, and at most as large as its range; else a share


@dataclass(frozen=True)
class KindSpec:
    """What tasks of a kind may declare, and the properties of the kind that other modules depend on."""

    cell: str  # what a cell of the manifest contains
    losses: tuple[str, ...]  # the terms that a loss can be a sum of
    metrics: tuple[str, ...]  # the first one decides (best round, early stopping) unless a task names others
    decoders: tuple[str, ...]  # the first is the default
    default_loss: str = ""  # empty: the first term
    min_classes: int = 1
    has_range: bool = False  # values lie in a range that the task declares
    has_background: bool = False  # the first class is the background
    by_class: bool = False  # an image has exactly one class, so patients can be dealt evenly by class
    in_files: bool = False  # a cell is the path of a file
    geometry: Literal["", "map", "boxes"] = ""  # form of a label that has to move with the image
    output_channels: int = 0  # channels of a plain decoder; 0: one for each class
    unit: str = ""  # unit of errors
    every_image: bool = False  # needs no label: every image is trained on, and the manifest has no column
    gallery: str = ""  # drawing of the report's examples (mtfed.report.galleries); empty: the one named after the kind


METRIC_SPECS = {
    "auc": MetricSpec(
        "AUC",
        "probability that an image of a class is scored higher than an image of another class; 1 is perfect, 0.5 is "
        "guessing",
    ),
    "accuracy": MetricSpec(
        "Accuracy",
        "share of images whose most probable class is the true one; if every label is judged separately, the share of "
        "labels that are judged correctly",
    ),
    "kappa": MetricSpec(
        "Kappa",
        "agreement of predicted and true class beyond chance, with a larger penalty for classes further away "
        "(quadratic weights); 1 is perfect, 0 is chance",
    ),
    "mae": MetricSpec(
        "MAE",
        "mean absolute error, in the task's own unit, or in classes if they are ordered",
        higher_is_better=False,
        in_units=True,
    ),
    "dice": MetricSpec(
        "Dice", "overlap of predicted and true area: twice the shared area over the sum of both areas; 1 is perfect"
    ),
    "iou": MetricSpec(
        "IoU", "overlap of predicted and true area: the shared area over the union of both areas; 1 is perfect"
    ),
    "ap50": MetricSpec(
        "AP50",
        "average precision of boxes; a box counts as found if its intersection over union is at least 0.5; 1 is "
        "perfect",
    ),
    "map": MetricSpec("mAP", "as AP50, mean over thresholds of intersection over union from 0.5 to 0.95"),
    "froc": MetricSpec("FROC", "share of the true boxes that are found, mean over 1/4 to 8 false alarms per image"),
    "r2": MetricSpec(
        "R²",
        "share of the variance of the true values that the predictions explain; 1 is perfect, 0 is as good as always "
        "predicting the mean, and below 0 is worse",
    ),
    "dose-score": MetricSpec(
        "Dose score",
        "mean absolute difference of predicted and planned dose, where dose is possible",
        higher_is_better=False,
        in_units=True,
    ),
    "dvh-score": MetricSpec(
        "DVH score",
        "mean absolute difference of the doses by which a plan is judged, such as the minimum dose of 95 % of a target",
        higher_is_better=False,
        in_units=True,
    ),
    "retrieval": MetricSpec(
        "Retrieval",
        "share of images whose second view is more similar to the first than the second views of all other images in "
        "the batch; 1 is perfect, and guessing finds one in as many as a batch has images",
    ),
}

NO_CELL = "nothing, because the kind needs no labels: it is trained on every image"

KIND_SPECS = {
    "classification": KindSpec(
        "a class, by name or index",
        losses=("cross-entropy", "focal"),
        metrics=("auc", "accuracy"),
        decoders=("linear",),
        min_classes=2,
        by_class=True,
    ),
    "multi-label": KindSpec(
        "the classes that are present, 'effusion; mass', or 'none'",
        losses=("cross-entropy", "focal"),
        metrics=("auc", "accuracy"),
        decoders=("linear",),
    ),
    "ordinal": KindSpec(
        "a class, by name or index; the classes are declared in their order",
        losses=("coral",),
        metrics=("kappa", "mae", "accuracy", "auc"),
        decoders=("coral",),
        min_classes=2,
        by_class=True,
        unit="classes",
    ),
    "segmentation": KindSpec(
        "the path of a mask of class indices",
        losses=("dice", "cross-entropy", "focal"),
        default_loss="dice + cross-entropy",
        metrics=("dice", "iou"),
        decoders=("mlp", "unet"),
        min_classes=2,
        has_background=True,
        in_files=True,
        geometry="map",
    ),
    "multi-label-segmentation": KindSpec(
        "the path of an .npz, or of a folder, with a mask for each structure; masks may overlap",
        losses=("dice", "cross-entropy", "focal"),
        default_loss="dice + cross-entropy",
        metrics=("dice", "iou"),
        decoders=("mlp", "unet"),
        in_files=True,
        geometry="map",
    ),
    "detection": KindSpec(
        "boxes 'x,y,w,h,class; ...' in pixels of the image, or 'none'",
        losses=("focal", "size", "offset"),
        default_loss="focal + size + offset",
        metrics=("ap50", "map", "froc"),
        decoders=("centre",),
        geometry="boxes",
    ),
    "regression": KindSpec(
        "a number, or one for each class, '2.5; 1'",
        losses=("huber", "l1", "mse"),
        metrics=("mae", "r2"),
        decoders=("linear",),
        has_range=True,
    ),
    "dose": KindSpec(
        "the path of an .npz, or of a folder, with the dose, where dose is possible, spacing, and a mask for each "
        "structure",
        losses=("l1", "mse", "dvh"),
        metrics=("dose-score", "dvh-score"),
        decoders=("mlp", "unet"),
        has_range=True,
        in_files=True,
        geometry="map",
        output_channels=1,
        unit="Gy",
    ),
    "reconstruction": KindSpec(
        NO_CELL,
        losses=("l1", "mse"),
        metrics=("r2",),
        decoders=("patches",),
        min_classes=0,
        every_image=True,
    ),
    "orientation": KindSpec(
        NO_CELL,
        losses=("cross-entropy",),
        metrics=("accuracy",),
        decoders=("linear",),
        min_classes=0,
        every_image=True,
    ),
    "views": KindSpec(
        NO_CELL,
        losses=("nt-xent", "vicreg", "simsiam"),
        metrics=("retrieval",),
        decoders=("projector",),
        min_classes=0,
        every_image=True,
    ),
}


def lower_is_better(metric: str) -> bool:
    """Return whether a metric is an error, so that lower is better; an unknown metric is not."""
    return metric in METRIC_SPECS and not METRIC_SPECS[metric].higher_is_better
