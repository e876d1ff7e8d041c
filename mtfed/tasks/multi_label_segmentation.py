"""A mask for each structure; masks may overlap, and a structure may be unmarked in some images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..data.formats import suffix_of
from ..data.source import Source
from ..errors import MtfedError
from .kind import Kind, Loss, Measure, sigmoid_signs
from .multi_label import focal_terms, known_mean
from .segmentation import as_indices, in_range, mean_metric
from .task import Task

UNMARKED = 255
SMOOTH = 1e-5  # voxels, against 0 / 0 where a structure is neither there nor predicted; as in MONAI's Dice


def read_masks(cell: str, task: Task, source: Source) -> np.ndarray:
    """Return (K, *S) uint8 of an .npz or a folder: 1 within a structure, 0 outside, 255 where it is not marked."""
    masks = structures(read_arrays(cell, task, source), cell, task, source)
    if not masks:
        raise MtfedError(
            f"Expected arrays called {', '.join(task.classes)} in {cell} of site {source.data.key}, found none; leave "
            "the cell empty where nothing is marked."
        )
    unmarked = np.full_like(next(iter(masks.values())), UNMARKED)
    return np.stack([masks.get(name, unmarked) for name in task.classes])


def read_arrays(cell: str, task: Task, source: Source) -> Mapping[str, np.ndarray]:
    """Return the arrays of the .npz that a cell names, or of the folder, in which each file is one."""
    if suffix_of(cell) not in (".npz", ""):
        raise MtfedError(
            f"Image {source.where}: label {cell!r} of {task.name} should be the path of an .npz file, or of a folder "
            "with a file for each structure."
        )
    return source.arrays(cell, task.name)


def structures(arrays: Mapping[str, np.ndarray], cell: str, task: Task, source: Source) -> dict[str, np.ndarray]:
    """Return the masks of the task's structures that are there, (*S) uint8 of 0 and 1, in the frame."""
    masks = {}
    for name in task.classes:
        if name in arrays:
            # In an .npz a mask's type is its author's choice; in a file of its own it is often the tool's.
            mask = arrays[name] if suffix_of(cell) else as_indices(arrays[name], 2)
            kind = mask.dtype.kind
            if kind not in "bui" or not in_range(mask, 2):
                most = f" and values up to {mask.max(initial=0)}" if kind in "buif" else ""
                raise MtfedError(
                    f"Mask {name} in {cell} of site {source.data.key} should be of false and true, or of 0 and 1; it "
                    f"has type {mask.dtype}{most}; save it as such."
                )
            masks[name] = source.fit(mask.astype(np.uint8), f"mask {name} in {cell}", nearest=True)
    return masks


def dice(task: Task, config: Config) -> Loss:
    """Return one minus the soft Dice of every marked structure, mean over each image's and then over images."""

    def loss(logits: Tensor, values: Tensor) -> Tensor:
        p, truth = logits.sigmoid().flatten(2), (values == 1).flatten(2).to(logits)
        both, either = (p * truth).sum(2), p.sum(2) + truth.sum(2)
        return known_mean(1 - (2 * both + SMOOTH) / (either + SMOOTH), marked(values))

    return loss


def cross_entropy(task: Task, config: Config) -> Loss:
    """Return the binary cross-entropy, mean over voxels, an image's marked structures, and images."""

    def loss(logits: Tensor, values: Tensor) -> Tensor:
        terms = F.binary_cross_entropy_with_logits(logits, (values == 1).to(logits), reduction="none")
        return known_mean(terms, marked(values))

    return loss


def focal(task: Task, config: Config) -> Loss:
    """Return the focal loss, mean as cross-entropy."""

    def loss(logits: Tensor, values: Tensor) -> Tensor:
        return known_mean(focal_terms(logits, (values == 1).to(logits), config.focal_gamma), marked(values))

    return loss


def marked(values: Tensor) -> Tensor:
    """Return (M, K): whether a structure is marked in an image."""
    return values.flatten(2)[..., 0] != UNMARKED


def _dice(both: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return 2 * both / (first + second)


def _iou(both: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return both / (first + second - both)


def overlaps(logits: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    """Return how many voxels every marked structure of every image has in both, predicted, and true; each (N,)."""
    known = marked(values)
    first, second = (logits > 0).flatten(2)[known], (values == 1).flatten(2)[known]
    return (first & second).sum(1), first.sum(1), second.sum(1)


def _measure(overlap: Callable[..., Tensor]) -> Measure:
    def per_structure(task: Task, logits: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        # Where a structure is not there, 1 if none is predicted (0 / 0), else 0: a false alarm must cost something.
        return (overlap(*overlaps(logits, values)).nan_to_num(1.0),)

    return Measure(mean_metric(), per_structure)


def _signs(logits: Tensor, values: Tensor, task: Task) -> Tensor:
    """Return those of cross-entropy, for all losses alike (our design)."""
    known = marked(values)
    each = known.sum(1, keepdim=True).clamp(min=1) * logits[0, 0].numel()
    scale = (known / each.sqrt()).reshape(*known.shape, *(1,) * (logits.ndim - 2))
    return sigmoid_signs(logits) * scale


KIND = Kind(
    read=read_masks,
    signs=_signs,
    losses={"dice": dice, "cross-entropy": cross_entropy, "focal": focal},
    measures={"dice": _measure(_dice), "iou": _measure(_iou)},
    show=lambda logits, task: (logits > 0).byte().numpy(),
)
