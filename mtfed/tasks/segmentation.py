"""One class a pixel or voxel; the first class is the background."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..data.source import Source
from ..errors import MtfedError
from ..lean import lean_import
from .classification import cross_entropy, focal
from .kind import Kind, Loss, Measure, softmax_signs
from .task import Task

if TYPE_CHECKING:
    from torchmetrics import Metric


WHITE = (255, 65535)  # of 8 and of 16 bits: what most tools mark the second of two classes with


def read_mask(cell: str, task: Task, source: Source) -> np.ndarray:
    """Return a mask of class indices, (S, S) or (S, S, S) uint8."""
    array = as_indices(source.array(cell, "mask"), len(task.classes))
    if array.ndim != source.dimensions or array.dtype.kind not in "uib" or not in_range(array, len(task.classes)):
        raise MtfedError(
            f"Mask {cell} of site {source.data.key} should be one channel of class indices below {len(task.classes)} "
            f"({', '.join(task.classes)}), it has shape {list(array.shape)}, type {array.dtype} and values up to "
            f"{array.max(initial=0)}; save class indices, as 0 and 1."
        )
    return source.fit(array.astype(np.uint8), f"mask {cell}", nearest=True)


def as_indices(array: np.ndarray, classes: int) -> np.ndarray:
    """Return class indices as whole numbers, where they were saved as floats, or 1 of two classes as white."""
    if array.dtype.kind == "f" and (abs(array) < 2**31).all() and (array == np.round(array)).all():
        array = array.astype(np.int32)
    if classes == 2 and array.dtype.kind in "ui" and (white := array.max()) in WHITE:
        low = array == 0
        if low.any() and (low | (array == white)).all():
            return (array != 0).astype(np.uint8)
    return array


def in_range(array: np.ndarray, classes: int) -> bool:
    """Say whether all class indices are of the classes."""
    return array.min(initial=0) >= 0 and array.max(initial=0) < classes


def dice(task: Task, config: Config) -> Loss:
    """Return one minus the soft Dice (Milletari et al., 3DV 2016), mean over images and structures, by MONAI."""
    # Background is most of an image; its Dice would hide the structures'.
    loss = lean_import("monai.losses").DiceLoss(include_background=False, to_onehot_y=True, softmax=True)
    return lambda logits, values: loss(logits, values.unsqueeze(1))


def mean_metric(higher_is_better: bool = True) -> Callable[[Task], Metric]:
    """Return the mean as a metric, which by itself does not know which way is up.

    NaN is left out: it is an image that cannot be judged. Outputs that are not finite come this far in no metric.
    """

    def make(task: Task) -> Metric:
        mean = lean_import("torchmetrics.aggregation").MeanMetric
        return type("Mean", (mean,), {"higher_is_better": higher_is_better})(nan_strategy="ignore")

    return make


def _overlap(kind: str) -> Callable[[Task, Tensor, Tensor], tuple[Tensor, ...]]:
    def per_image(task: Task, logits: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        one_hot = [F.one_hot(x.long(), len(task.classes)).movedim(-1, 1) for x in (logits.argmax(1), values)]
        overlap = getattr(lean_import("monai.metrics"), f"compute_{kind}")
        # An image without the structure counts 1 if none is predicted, else 0: a false alarm must cost something.
        return (overlap(*one_hot, include_background=False, ignore_empty=False),)

    return per_image


KIND = Kind(
    read=read_mask,
    # The loss is a mean over pixels, and so is its curvature. Dice has that of its cross-entropy (our design).
    signs=lambda logits, values, task: softmax_signs(logits) / logits[0, 0].numel() ** 0.5,
    losses={"dice": dice, "cross-entropy": cross_entropy, "focal": focal},
    measures={kind: Measure(mean_metric(), _overlap(kind)) for kind in ("dice", "iou")},
    show=lambda logits, task: logits.argmax(1).byte().numpy(),
)
