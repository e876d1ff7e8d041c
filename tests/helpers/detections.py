"""Random boxes, and outputs of a detector that predict them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mtfed.tasks import boxes
from mtfed.tasks.detection import STRIDE, encode, stack_boxes
from mtfed.tasks.task import Task

LESIONS = Task(name="lesions", kind="detection", classes="lesion")

CELLS = Task(name="cells", kind="detection", classes="red, white, platelet")


def boxes_of(
    rng: np.random.Generator, images: int, max_boxes: int, dims: int, side: float, classes: int, min_boxes: int = 0
) -> np.ndarray:
    """Return random boxes within an image, padded: (M, N, 2d + 1)."""
    labels = []
    for _ in range(images):
        count = int(rng.integers(min_boxes, max_boxes + 1))
        size = rng.uniform(0.05, 0.4, (count, dims)) * side
        corner = rng.uniform(0, 1, (count, dims)) * (side - size)
        labels.append(np.hstack([corner, size, rng.integers(0, classes, (count, 1))]).astype(np.float32))
    return stack_boxes(labels)


def truth_of(values: Tensor, classes: int, shape: tuple[int, ...]) -> Tensor:
    """Return outputs that predict the labels."""
    cells = boxes.assign_cells(values, shape, STRIDE)
    heat = boxes.centre_maps(values, cells, classes, shape, STRIDE)
    regressed = torch.zeros(len(values), 2 * len(shape), math.prod(shape))
    targets = torch.cat(encode(values, cells), -1)
    for m, n in (values[..., -1] >= 0).nonzero().tolist():
        regressed[m, :, boxes.flat_index(cells, shape)[m, n]] = targets[m, n]
    return torch.cat([torch.logit(heat.clamp(1e-6, 1 - 1e-6)), regressed.unflatten(2, shape)], 1)
