"""A mask for each structure; masks may overlap, and a structure may be unmarked in some images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ..errors import LabelError
from .curvature_factors import sigmoid_factor
from .kind import Kind, LabelSource, LossSettings
from .multi_label import focal_terms, known_mean
from .segmentation import SMOOTH, as_indices, dice, in_range, iou, overlap_metric
from .task import Task

UNMARKED = 255


def read_masks(cell: str, task: Task, source: LabelSource) -> np.ndarray:
    """Return (K, *S) uint8 of an .npz or a folder: 1 within a structure, 0 outside, 255 if it is not marked."""
    masks = structure_masks(read_arrays(cell, task, source), cell, task, source)
    if not masks:
        raise LabelError(
            f"Expected arrays called {', '.join(task.classes)} in {cell} of site {source.site}, found none; leave "
            "the cell empty if nothing is marked."
        )
    unmarked = np.full_like(next(iter(masks.values())), UNMARKED)
    return np.stack([masks.get(name, unmarked) for name in task.classes])


def read_arrays(cell: str, task: Task, source: LabelSource) -> Mapping[str, np.ndarray]:
    """Return the arrays of the .npz that a cell names, or of the folder, in which each file is an array."""
    if not source.container(cell):
        raise LabelError(
            f"Image {source.where}: label {cell!r} of {task.name} should be the path of an .npz file, or of a folder "
            "with a file for each structure.",
            "unreadable",
        )
    return source.arrays(cell, task.name)


def structure_masks(
    arrays: Mapping[str, np.ndarray], cell: str, task: Task, source: LabelSource
) -> dict[str, np.ndarray]:
    """Return the masks of those structures of a task that are among the arrays, (*S) uint8 of 0 and 1."""
    masks = {}
    for name in task.classes:
        if name in arrays:
            # The type of a mask in an .npz is its author's choice; that of a file is often the choice of a tool.
            mask = arrays[name] if source.container(cell) == "archive" else as_indices(arrays[name], 2)
            code = mask.dtype.kind
            if code not in "bui" or not in_range(mask, 2):
                maximum = f" and values up to {mask.max(initial=0)}" if code in "buif" else ""
                raise LabelError(
                    f"Mask {name} in {cell} of site {source.site} should contain false and true, or 0 and 1; it "
                    f"has type {mask.dtype}{maximum}; save it as such.",
                    "values" if mask.shape == source.letterbox.shape else "misfit",
                )
            masks[name] = source.fit(mask.astype(np.uint8), f"mask {name} in {cell}", nearest=True)
    return masks


def _class_counts(label: np.ndarray, task: Task, raw: np.ndarray | None) -> dict[str, int]:
    """Return the pixels of each structure."""
    counts = {name: int((mask == 1).sum()) for name, mask in zip(task.classes, label, strict=True)}
    return {name: count for name, count in counts.items() if count}


def dice_loss(task: Task, settings: LossSettings, logits: Tensor, values: Tensor) -> Tensor:
    """Return one minus the soft Dice, mean over the marked structures of an image, and over images."""
    p, truth = logits.sigmoid().flatten(2), (values == 1).flatten(2).to(logits)
    both, either = (p * truth).sum(2), p.sum(2) + truth.sum(2)
    return known_mean(1 - (2 * both + SMOOTH) / (either + SMOOTH), marked(values))


def cross_entropy(task: Task, settings: LossSettings, logits: Tensor, values: Tensor) -> Tensor:
    """Return the binary cross-entropy, mean over voxels, the marked structures of an image, and images."""
    terms = F.binary_cross_entropy_with_logits(logits, (values == 1).to(logits), reduction="none")
    return known_mean(terms, marked(values))


def focal(task: Task, settings: LossSettings, logits: Tensor, values: Tensor) -> Tensor:
    """Return the focal loss, with the same means as cross-entropy."""
    return known_mean(focal_terms(logits, (values == 1).to(logits), settings.focal_gamma), marked(values))


def marked(values: Tensor) -> Tensor:
    """Return (M, K): whether a structure is marked in an image."""
    return values.flatten(2)[..., 0] != UNMARKED


def marked_masks(task: Task, logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the predicted and the true mask of every marked structure of every image, (N, V) bool."""
    known = marked(values)
    return (logits > 0).flatten(2)[known], (values == 1).flatten(2)[known]


def _curvature_factor(logits: Tensor, values: Tensor, task: Task) -> Tensor:
    """Return the factor of cross-entropy, for all losses (our design)."""
    known = marked(values)
    each = known.sum(1, keepdim=True).clamp(min=1) * logits[0, 0].numel()
    scale = (known / each.sqrt()).reshape(*known.shape, *(1,) * (logits.ndim - 2))
    return sigmoid_factor(logits) * scale


KIND = Kind(
    read=read_masks,
    class_counts=_class_counts,
    masks=lambda label, task: label == 1,
    losses={"dice": dice_loss, "cross-entropy": cross_entropy, "focal": focal},
    metrics={"dice": overlap_metric(dice, marked_masks), "iou": overlap_metric(iou, marked_masks)},
    curvature_factor=_curvature_factor,
    outside=lambda first: first.where(first == UNMARKED, 0),
    show=lambda logits, task: (logits > 0).byte().numpy(),
)
