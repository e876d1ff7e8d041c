"""Boxes around lesions or organs, found as the peaks of a map of centres (Zhou et al., Objects as Points, 2019).

A decoder's outputs (M, K + 2d, *s) are, at every cell of a map of stride 4: a logit for each class of a box's centre
being there, the logarithm of its sides in strides, and where the centre lies from the middle of the cell, in strides;
both of the latter x first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..data.source import Source
from ..errors import MtfedError
from . import boxes
from .average_precision import OVERLAPS, AveragePrecision, FreeResponse
from .classification import class_index
from .kind import Kind, Loss, Measure, random_signs, sigmoid_signs
from .task import Task

STRIDE = 4  # pixels of a cell
ALPHA, BETA = 2, 4  # of the focal loss, as in CornerNet
SHOWN = 20  # boxes an image that the record keeps


def read_boxes(cell: str, task: Task, source: Source) -> np.ndarray:
    """Return boxes in the pixels of the model's image and their classes, (N, 2d + 1) float32.

    A cell is "x,y,w,h,class; ..." or a JSON list of lists, in pixels of the original image; of a volume
    "x,y,z,w,h,d,class". The class, by name or index, may be left out where there is but one; "none" says that the image
    was looked at and holds nothing. What reaches past the image's edge is cut off.
    """
    dims = source.dimensions
    found = np.array([_read_box(fields, task, source) for fields in _split(cell, task, source)], float)
    found = found.reshape(-1, 2 * dims + 1)
    if not len(found):
        return found.astype(np.float32)
    inside = boxes.clip(torch.from_numpy(found[:, :-1]), source.letterbox.shape[::-1]).numpy()
    return np.concatenate([source.letterbox.move(inside), found[:, -1:]], axis=1).astype(np.float32)


def _split(cell: str, task: Task, source: Source) -> list[list[str]]:
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
            raise ValueError("it holds something else")
    except ValueError as error:
        raise _wrong(cell, f"a JSON list of lists: {error}", task, source) from None
    return [[str(field) for field in box] for box in listed]


def _read_box(fields: list[str], task: Task, source: Source) -> list[float]:
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
        raise _wrong(text, f"{form} with a size above 0", task, source)
    if any(x >= side or x + extent <= 0 for x, extent, side in zip(corner, size, sides, strict=True)):
        raise _wrong(text, f"within the image of {' x '.join(map(str, sides))} pixels", task, source)
    try:
        return [*box, float(class_index(name[0], task)) if name else 0.0]
    except MtfedError as error:
        raise MtfedError(f"Image {source.where}: box {text!r}: {error}") from None


def _wrong(text: str, expected: str, task: Task, source: Source) -> MtfedError:
    return MtfedError(
        f"Image {source.where}: box {text!r} of task {task.name} should be {expected}; "
        "join boxes by ';', and write 'none' where there is none to find."
    )


def stack_boxes(labels: Sequence[np.ndarray]) -> np.ndarray:
    """Return labels (N_i, 2d + 1) as one array (M, max N_i, 2d + 1), padded with class -1."""
    most = max(len(label) for label in labels)
    return np.stack([np.pad(x, ((0, most - len(x)), (0, 0)), constant_values=-1) for x in labels])


def decode(outputs: Tensor, stride: int = STRIDE, most: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    """Return the boxes at the highest peaks of the maps of centres: cells that no neighbour exceeds.

    Args:
        outputs: of a decoder, (M, K + 2d, *s).
        stride: of its map in pixels.
        most: boxes an image.

    Returns:
        Boxes (M, P, 2d) in pixels, cut off at the map's edge; scores (M, P), falling; and classes (M, P), -1 with score
        0 where an image has fewer peaks.
    """
    shape = outputs.shape[2:]
    dims = len(shape)
    heat, sizes, offsets = outputs.float().split([outputs.shape[1] - 2 * dims, dims, dims], 1)
    pool = F.max_pool2d if dims == 2 else F.max_pool3d
    logits = heat.masked_fill(heat < pool(heat, 3, 1, 1), -torch.inf).flatten(1)
    best, index = logits.topk(min(most, logits.shape[1]))  # (M, P)
    classes, cell = index // shape.numel(), index % shape.numel()
    cells = torch.stack([axis.to(cell.device)[cell] for axis in _grid(shape)], -1)  # (M, P, d), x first
    size = boxes.at(sizes, cells).clamp(max=float(np.log(2 * max(shape)))).exp() * stride
    centre = (cells + 0.5 + boxes.at(offsets, cells)) * stride
    found = boxes.clip(torch.cat([centre - size / 2, size], -1), [side * stride for side in shape[::-1]])
    return found, best.sigmoid(), classes.masked_fill(best == -torch.inf, -1)


def _grid(shape: Sequence[int]) -> list[Tensor]:
    """Return the coordinates (P,) of a flattened map's cells, x first."""
    return [axis.flatten() for axis in torch.meshgrid(*map(torch.arange, shape), indexing="ij")][::-1]


def focal(task: Task, config: Config) -> Loss:
    """Return the focal loss of the maps of centres, whose penalty is less around a centre (Law and Deng, eq. 1).

    Of each image summed over cells and divided by its number of boxes, or by 1 where there are none; mean over images.
    """

    def loss(outputs: Tensor, values: Tensor) -> Tensor:
        heat = outputs[:, : len(task.classes)].float()
        shape = heat.shape[2:]
        truth = boxes.draw(values, boxes.place(values, shape, STRIDE), len(task.classes), shape, STRIDE)
        p = heat.sigmoid()
        centres = (1 - p) ** ALPHA * F.logsigmoid(heat)
        others = (1 - truth) ** BETA * p**ALPHA * F.logsigmoid(-heat)
        return (-torch.where(truth == 1, centres, others).flatten(1).sum(1) / count(values)).mean()

    return loss


def distance(part: int) -> Callable[[Task, Config], Loss]:
    """Return the L1 distance at the boxes' cells: of sizes (0) or offsets (1).

    Summed over axes, mean over the boxes of an image, and over images.
    """

    def make(task: Task, config: Config) -> Loss:
        def loss(outputs: Tensor, values: Tensor) -> Tensor:
            shape = outputs.shape[2:]
            maps = outputs[:, len(task.classes) :].float().chunk(2, 1)[part]
            cells, real = boxes.place(values, shape, STRIDE), values[..., -1] >= 0
            away = (boxes.at(maps, cells) - encode(values, cells)[part]).abs().sum(-1)
            return ((away * real).sum(1) / count(values)).mean()

        return loss

    return make


def count(values: Tensor) -> Tensor:
    """Return the number of boxes of each image (M,), at least 1."""
    return (values[..., -1] >= 0).sum(1).clamp_min(1)


def encode(values: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the outputs should say at the boxes' cells (M, N, d): logarithms of sizes, and offsets, in strides.

    Logarithms, since a quarter more or less spoils the overlap of a small box as much as of a large one.
    """
    corner, size = values[..., :-1].chunk(2, -1)
    return (size.clamp_min(1e-3) / STRIDE).log(), (corner + size / 2) / STRIDE - cells - 0.5


def signs(outputs: Tensor, values: Tensor, task: Task) -> Tensor:
    """Return signs with the curvature of binary cross-entropy on the maps, and 1 for sizes and offsets at the boxes.

    Each as its term counts among those of the loss, which divides by an image's number of boxes. The focal loss thus
    has the curvature of its cross-entropy, and a distance that of half its square (our design).
    """
    weights = {term: weight / task.weight for weight, term in task.terms}
    shape, classes = outputs.shape[2:], len(task.classes)
    cells, real = boxes.place(values, shape, STRIDE), values[..., -1] >= 0
    seen = outputs.new_zeros(len(outputs), shape.numel())
    seen.scatter_reduce_(1, boxes.flat(cells, shape), real.to(seen.dtype), "amax")
    each = random_signs(outputs[:, classes:]) * seen.view(-1, 1, *shape)
    parts = [sigmoid_signs(outputs[:, :classes]), *each.chunk(2, 1)]
    scale = count(values).to(outputs.dtype).rsqrt().view(-1, *[1] * (outputs.ndim - 1))
    counts = (weights.get(term, 0.0) for term in ("focal", "size", "offset"))
    return torch.cat([part * scale * weight**0.5 for part, weight in zip(parts, counts, strict=True)], 1)


def show(outputs: Tensor, task: Task) -> np.ndarray:
    """Return the best boxes of every image with class and score, (M, 20, 2d + 2); class -1 where there are fewer."""
    found, scores, classes = decode(outputs, most=SHOWN)
    return torch.cat([found, classes[..., None], scores[..., None]], -1).numpy()


def _found(task: Task, outputs: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    return *decode(outputs), values


KIND = Kind(
    read=read_boxes,
    stack=stack_boxes,
    signs=signs,
    losses={"focal": focal, "size": distance(0), "offset": distance(1)},
    measures={
        "ap50": Measure(lambda task: AveragePrecision(len(task.classes), (0.5,)), _found),
        "map": Measure(lambda task: AveragePrecision(len(task.classes), OVERLAPS), _found),
        "froc": Measure(lambda task: FreeResponse(len(task.classes)), _found),
    },
    show=show,
)
