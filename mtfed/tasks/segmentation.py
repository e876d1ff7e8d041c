"""One class for each pixel or voxel; the first class is the background."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..errors import LabelError
from .classification import cross_entropy, focal
from .curvature_factors import softmax_factor
from .kind import AdditiveMetric, Kind, LabelSource, LossSettings, mean_metric
from .task import Task

WHITE = (255, 65535)  # white in 8 and 16 bits: most tools mark the second of two classes with it
SMOOTH = 1e-5  # voxels, against 0 / 0 if a structure is neither present nor predicted; as in MONAI's Dice


def read_mask(cell: str, task: Task, source: LabelSource) -> np.ndarray:
    """Return a mask of class indices, (S, S) or (S, S, S) uint8."""
    raw = source.array(cell, "mask")
    array = as_indices(raw, len(task.classes))
    if array.ndim != source.dimensions or array.dtype.kind not in "uib" or not in_range(array, len(task.classes)):
        raise LabelError(
            f"Mask {cell} of site {source.site} should be one channel of class indices below {len(task.classes)} "
            f"({', '.join(task.classes)}), it has shape {list(array.shape)}, type {array.dtype} and values up to "
            f"{array.max(initial=0)}; save class indices, such as 0 and 1.",
            "values" if array.shape == source.letterbox.shape else "misfit",
        )
    return source.fit(array.astype(np.uint8), f"mask {cell}", nearest=True)


def as_indices(array: np.ndarray, classes: int) -> np.ndarray:
    """Return class indices as integers if they were saved as floats, or if 1 of two classes was saved as white."""
    if array.dtype.kind == "f" and (abs(array) < 2**31).all() and (array == np.round(array)).all():
        array = array.astype(np.int32)
    if classes == 2 and array.dtype.kind in "ui" and (white := array.max()) in WHITE:
        low = array == 0
        if low.any() and (low | (array == white)).all():
            return (array != 0).astype(np.uint8)
    return array


def in_range(array: np.ndarray, classes: int) -> bool:
    """Return whether all class indices belong to classes."""
    return array.min(initial=0) >= 0 and array.max(initial=0) < classes


def _class_counts(label: np.ndarray, task: Task, raw: np.ndarray | None) -> dict[str, int]:
    """Return the pixels of each structure, in the mask's file, because small structures may be lost in the model's."""
    indices = label if raw is None else as_indices(raw, len(task.classes)).astype(np.uint8)
    counts = np.bincount(indices.ravel(), minlength=len(task.classes))
    return {name: int(n) for name, n in zip(task.structures, counts[1:], strict=True) if n}


def dice_loss(task: Task, settings: LossSettings, logits: Tensor, values: Tensor) -> Tensor:
    """Return one minus the soft Dice (Milletari et al., 3DV 2016), mean over images and structures.

    The background is most of an image, and its Dice would hide that of the structures. The order of operations is that
    of MONAI's ``DiceLoss``, so that results are equal bit for bit.
    """
    p = logits.softmax(1)[:, 1:]
    truth = torch.zeros(logits.shape, device=logits.device).scatter_(1, values.long().unsqueeze(1), 1)[:, 1:]
    axes = tuple(range(2, logits.ndim))
    both = (p * truth).sum(axes)
    false_positives, false_negatives = p.sum(axes) - both, truth.sum(axes) - both
    numerator = 2 * both + SMOOTH
    denominator = 2 * (both + false_positives * 0.5 + false_negatives * 0.5) + SMOOTH
    return (1 - numerator / denominator).mean()


def dice(both: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    """Return twice the shared area over the sum of both areas."""
    return 2 * both / (predicted + true)


def iou(both: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    """Return the shared area over the union of both areas."""
    return both / (predicted + true - both)


def overlap_metric(
    ratio: Callable[[Tensor, Tensor, Tensor], Tensor], masks: Callable[[Task, Tensor, Tensor], tuple[Tensor, Tensor]]
) -> AdditiveMetric:
    """Return the mean overlap of predicted and true masks as a metric.

    An image without the structure counts 1 if none is predicted (0 / 0), else 0, because a false alarm has to cost
    something.

    Args:
        ratio: :func:`dice` or :func:`iou`, of the areas in both masks, in the predicted and in the true one.
        masks: outputs and values -> predicted and true masks (N, V) bool.
    """

    def overlaps(task: Task, outputs: Tensor, values: Tensor) -> Tensor:
        predicted, true = masks(task, outputs, values)
        return ratio((predicted & true).sum(1), predicted.sum(1), true.sum(1)).nan_to_num(1.0)

    return mean_metric(overlaps)


def structure_masks(task: Task, logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the predicted and the true mask of every structure of every image, (N, V) bool."""
    maps = (logits.argmax(1), values)
    predicted, true = (torch.stack([x == k for k in range(1, len(task.classes))], 1) for x in maps)
    return predicted.flatten(2).flatten(0, 1), true.flatten(2).flatten(0, 1)


KIND = Kind(
    read=read_mask,
    class_counts=_class_counts,
    masks=lambda label, task: np.stack([label == k for k in range(1, len(task.classes))]),
    losses={"dice": dice_loss, "cross-entropy": cross_entropy, "focal": focal},
    metrics={"dice": overlap_metric(dice, structure_masks), "iou": overlap_metric(iou, structure_masks)},
    # The loss is a mean over pixels, and so is its curvature. For Dice we use that of cross-entropy (our design).
    curvature_factor=lambda logits, values, task: softmax_factor(logits) / logits[0, 0].numel() ** 0.5,
    show=lambda logits, task: logits.argmax(1).byte().numpy(),
)
