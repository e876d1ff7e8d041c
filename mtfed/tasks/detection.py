"""Boxes around lesions or organs, found as the peaks of a map of centres (Zhou et al., Objects as Points, 2019).

At every cell of a map of stride 4, a decoder's outputs (M, K + 2d, *s) are a logit for each class of whether a box's
centre is there, the logarithm of the box's sides in strides, and the offset of its centre from the middle of the cell
in strides, both with x first.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import LabelError
from . import boxes
from .average_precision import OVERLAPS, detection_metric, free_response, mean_average_precision
from .classification import class_index
from .curvature_factors import random_signs, sigmoid_factor
from .kind import Kind, LabelSource, LossSettings
from .task import Task

STRIDE = 4  # pixels of a cell
ALPHA, BETA = 2, 4  # exponents of the focal loss, as in CornerNet
SHOWN = 20  # boxes per image in the record


def read_boxes(cell: str, task: Task, source: LabelSource) -> np.ndarray:
    """Return boxes in the pixels of the model's image and their classes, (N, 2d + 1) float32.

    A cell is "x,y,w,h,class; ..." or a JSON list of lists, in pixels of the original image; for a volume
    "x,y,z,w,h,d,class". The class, by name or index, may be left out if there is only one. "none" means that the image
    was examined and contains nothing. Parts of a box beyond the image's edge are cut off.
    """
    dims = source.dimensions
    listed = np.array([_read_box(fields, task, source) for fields in _split(cell, task, source)], float)
    listed = listed.reshape(-1, 2 * dims + 1)
    if not len(listed):
        return listed.astype(np.float32)
    inside = boxes.clip(torch.from_numpy(listed[:, :-1]), source.letterbox.shape[::-1]).numpy()
    return np.concatenate([source.letterbox.move(inside), listed[:, -1:]], axis=1).astype(np.float32)


def _split(cell: str, task: Task, source: LabelSource) -> list[list[str]]:
    """Return the fields of every box as text."""
    if cell.strip() == "none":
        return []
    if not cell.lstrip().startswith("["):
        listed = [box.split(",") for box in cell.split(";") if box.strip()]
        if not listed:
            raise _wrong(cell, "at least one box", task, source)
        return [[field.strip() for field in box] for box in listed]
    try:
        listed = json.loads(cell)
        if not all(isinstance(box, list) for box in listed):
            raise ValueError("it contains something else")
    except ValueError as error:
        raise _wrong(cell, f"a JSON list of lists: {error}", task, source) from None
    return [[str(field) for field in box] for box in listed]


def _read_box(fields: list[str], task: Task, source: LabelSource) -> list[float]:
    """Return a box in pixels of the original image and its class."""
    dims, text = source.dimensions, ",".join(fields)
    numbers, name = fields[: 2 * dims], fields[2 * dims :]
    form = ",".join("xyz"[:dims] + "whd"[:dims])
    if len(numbers) < 2 * dims or len(name) > 1 or (not name and len(task.classes) > 1):
        raise _wrong(text, f"{form},class" if len(task.classes) > 1 else form, task, source)
    try:
        box = [float(number) for number in numbers]
    except ValueError:
        raise _wrong(text, f"{form} in numbers", task, source) from None
    corner, size, sides = box[:dims], box[dims:], source.letterbox.shape[::-1]
    if not all(np.isfinite(box)):
        raise _wrong(text, f"{form} in finite numbers", task, source)
    if min(size) <= 0:
        raise _wrong(text, f"{form} with a size above 0", task, source, "range")
    if any(x >= side or x + extent <= 0 for x, extent, side in zip(corner, size, sides, strict=True)):
        raise _wrong(text, f"within the image of {' x '.join(map(str, sides))} pixels", task, source, "range")
    try:
        return [*box, float(class_index(name[0], task)) if name else 0.0]
    except LabelError as error:
        raise LabelError(f"Image {source.where}: box {text!r}: {error}", error.fault) from None


def _wrong(text: str, expected: str, task: Task, source: LabelSource, fault: str = "wrong") -> LabelError:
    return LabelError(
        f"Image {source.where}: box {text!r} of task {task.name} should be {expected}; "
        "join boxes by ';', and write 'none' if there is nothing to find.",
        fault,
    )


def stack_boxes(labels: Sequence[np.ndarray]) -> np.ndarray:
    """Return labels (N_i, 2d + 1) as one array (M, max N_i, 2d + 1), padded with class -1."""
    longest = max(len(label) for label in labels)
    return np.stack([np.pad(x, ((0, longest - len(x)), (0, 0)), constant_values=-1) for x in labels])


def decode(outputs: Tensor, stride: int = STRIDE, max_boxes: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    """Return the boxes at the highest peaks of the maps of centres: cells that no neighbour exceeds.

    Args:
        outputs: outputs of a decoder, (M, K + 2d, *s).
        stride: stride of the decoder's map in pixels.
        max_boxes: boxes per image.

    Returns:
        Boxes (M, P, 2d) in pixels, cut off at the map's edge; scores (M, P), falling; and classes (M, P), -1 with score
        0 if an image has fewer peaks.
    """
    shape = outputs.shape[2:]
    dims = len(shape)
    heat, sizes, offsets = outputs.float().split([outputs.shape[1] - 2 * dims, dims, dims], 1)
    pool = F.max_pool2d if dims == 2 else F.max_pool3d
    logits = heat.masked_fill(heat < pool(heat, 3, 1, 1), -torch.inf).flatten(1)
    best, index = logits.topk(min(max_boxes, logits.shape[1]))  # (M, P)
    classes, cell = index // shape.numel(), index % shape.numel()
    grid = torch.meshgrid(*(torch.arange(side, device=cell.device) for side in shape), indexing="ij")
    cells = torch.stack([axis.flatten()[cell] for axis in reversed(grid)], -1)  # (M, P, d), x first
    size = boxes.gather_cells(sizes, cells).clamp(max=float(np.log(2 * max(shape)))).exp() * stride
    centre = (cells + 0.5 + boxes.gather_cells(offsets, cells)) * stride
    decoded = boxes.clip(torch.cat([centre - size / 2, size], -1), [side * stride for side in shape[::-1]])
    return decoded, best.sigmoid(), classes.masked_fill(best == -torch.inf, -1)


def focal(task: Task, settings: LossSettings, outputs: Tensor, values: Tensor) -> Tensor:
    """Return the focal loss of the maps of centres, with a smaller penalty around a centre (Law and Deng, eq. 1).

    It is summed over the cells of an image, divided by its number of boxes, or by 1 if it has none; mean over images.
    """
    heat = outputs[:, : len(task.classes)].float()
    shape = heat.shape[2:]
    truth = boxes.centre_maps(values, boxes.assign_cells(values, shape, STRIDE), len(task.classes), shape, STRIDE)
    p = heat.sigmoid()
    centres = (1 - p) ** ALPHA * F.logsigmoid(heat)
    others = (1 - truth) ** BETA * p**ALPHA * F.logsigmoid(-heat)
    return (-torch.where(truth == 1, centres, others).flatten(1).sum(1) / count(values)).mean()


def distance(part: int, task: Task, settings: LossSettings, outputs: Tensor, values: Tensor) -> Tensor:
    """Return the L1 distance at the boxes' cells: of sizes (0) or offsets (1).

    Summed over axes, mean over the boxes of an image, and over images.
    """
    maps = outputs[:, len(task.classes) :].float().chunk(2, 1)[part]
    cells, real = boxes.assign_cells(values, outputs.shape[2:], STRIDE), values[..., -1] >= 0
    distances = (boxes.gather_cells(maps, cells) - encode(values, cells)[part]).abs().sum(-1)
    return ((distances * real).sum(1) / count(values)).mean()


def count(values: Tensor) -> Tensor:
    """Return the number of boxes of each image (M,), at least 1."""
    return (values[..., -1] >= 0).sum(1).clamp_min(1)


def encode(values: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Return the target outputs at the boxes' cells (M, N, d): logarithms of sizes, and offsets, in strides.

    Logarithms, because a relative error of size reduces the overlap of a small box as much as that of a large one.
    """
    corner, size = values[..., :-1].chunk(2, -1)
    return (size.clamp_min(1e-3) / STRIDE).log(), (corner + size / 2) / STRIDE - cells - 0.5


def curvature_factor(outputs: Tensor, values: Tensor, task: Task) -> Tensor:
    """Return a factor with the curvature of binary cross-entropy on the maps, and 1 for sizes and offsets at the boxes.

    Each part is weighted as its term in the loss, which divides by an image's number of boxes. The focal loss thus has
    the curvature of its cross-entropy, and a distance has that of half its square (our design).
    """
    weights = {term: weight / task.weight for weight, term in task.terms}
    shape, classes = outputs.shape[2:], len(task.classes)
    cells, real = boxes.assign_cells(values, shape, STRIDE), values[..., -1] >= 0
    centres = outputs.new_zeros(len(outputs), shape.numel())
    centres.scatter_reduce_(1, boxes.flat_index(cells, shape), real.to(centres.dtype), "amax")
    each = random_signs(outputs[:, classes:]) * centres.view(-1, 1, *shape)
    parts = [sigmoid_factor(outputs[:, :classes]), *each.chunk(2, 1)]
    scale = count(values).to(outputs.dtype).rsqrt().view(-1, *[1] * (outputs.ndim - 1))
    term_weights = (weights.get(term, 0.0) for term in ("focal", "size", "offset"))
    return torch.cat([part * scale * weight**0.5 for part, weight in zip(parts, term_weights, strict=True)], 1)


def show(outputs: Tensor, task: Task) -> np.ndarray:
    """Return the best boxes of every image with class and score, (M, 20, 2d + 2); class -1 if there are fewer."""
    decoded, scores, classes = decode(outputs, max_boxes=SHOWN)
    return torch.cat([decoded, classes[..., None], scores[..., None]], -1).numpy()


def slice_weights(values: Tensor, task: Task) -> Tensor:
    """Return (M, S), at least 1 slice: 1 in the middle of a box, falling to 0 at its ends, summed over boxes."""
    low, extent, real = values[..., 2], values[..., 5], values[..., -1] >= 0
    last = int((low + extent).masked_fill(~real, 1).amax().ceil()) if values.shape[1] else 1
    distance = (torch.arange(last) + 0.5 - (low + extent / 2)[..., None]).abs()  # (M, N, S)
    inside = (1 - distance / (extent[..., None] / 2).clamp(min=0.5)).clamp(min=0)
    return (inside * real[..., None]).sum(1)


KIND = Kind(
    read=read_boxes,
    stack=stack_boxes,
    class_counts=lambda label, task, raw: dict(Counter(task.classes[int(index)] for index in label[:, -1])),
    losses={"focal": focal, "size": partial(distance, 0), "offset": partial(distance, 1)},
    metrics={
        "ap50": detection_metric(decode, mean_average_precision),
        "map": detection_metric(decode, mean_average_precision, OVERLAPS),
        "froc": detection_metric(decode, free_response),
    },
    curvature_factor=curvature_factor,
    show=show,
    contents=lambda values, task: (values[..., -1:] == torch.arange(len(task.classes))).any(1),
    slice_weights=slice_weights,
)
