"""What the record keeps of single test images, for people to look at: image, label and prediction.

``examples.npz`` holds for every task TASK that has labelled test images ``TASK.images`` (M, C, S, S) uint8,
``TASK.labels`` and ``TASK.shown`` (what the task's kind shows of a prediction), and of volumes ``TASK.slices`` (M,).
They are the server's own test images: an image never leaves a site.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..data.shard import Shard
from ..models.system import MultiTaskModel
from ..tasks.dose import STEPS
from ..tasks.kind import kind_of
from ..tasks.regression import from_units
from ..tasks.task import Task
from .run import Run

COUNT = {2: 8, 3: 4}  # by dimensions
SPREAD = 4  # parts that the values of a regression are divided in
Cut = Callable[[np.ndarray, np.ndarray], np.ndarray]  # an array (M, ...) of volumes, slices (M,) -> of slices


@dataclass(frozen=True)
class View:
    """How images of a kind are chosen, and cut where they are volumes."""

    holds: Callable[[Tensor, Task], Tensor]  # values (M, ...) -> (M, K) bool: what of K things an image shows
    depth: Callable[[Tensor], Tensor] | None = None  # values -> (M, S): how much of the label each slice holds
    cut: Cut = lambda array, slices: array
    plain: Callable[[Tensor, Task], Tensor] = lambda values, task: values


def save_examples(run: Run, model: MultiTaskModel, test: Shard, config: Config) -> None:
    """Keep the predictions on a few test images of every task; nothing is chosen by result.

    Every class has its share of them, however rare, and so have images without any.
    """
    kept = {
        f"{name}.{part}": array
        for name, task in config.tasks.items()
        if test.count(name)
        for part, array in examples(model, test, task, config).items()
    }
    np.savez_compressed(run.folder / "examples.npz", **kept)  # type: ignore[arg-type]


@torch.inference_mode()
def examples(model: MultiTaskModel, test: Shard, task: Task, config: Config) -> dict[str, np.ndarray]:
    """Return images, labels and what is shown of predictions, of some test images that have a label of a task."""
    model.eval()
    device, view = next(model.parameters()).device, VIEWS[task.kind]
    values = test.labels[task.name].values
    index = choose(view.holds(values, task), COUNT[config.dimensions])
    rows, values = test.labels[task.name].rows[index], values[index]
    shown = []
    for batch in test.batches(config.batch_size, rows, [task.name]):
        labelled = {task.name: batch.labels[task.name].rows.to(device)}
        outputs = model(batch.images.to(device), labelled)[task.name]
        shown.append(kind_of(task).show(outputs.float().cpu(), task))
    found = {
        "images": test.take(rows).numpy(),
        "labels": view.plain(values, task).numpy(),
        "shown": np.concatenate(shown),
    }
    if config.dimensions == 2:
        return found
    slices = np.full(len(rows), config.image_size // 2)
    if view.depth:
        held = view.depth(values)
        slices = torch.where(held.any(1), held.argmax(1), config.image_size // 2).numpy()
    return {
        "images": cut_maps(found["images"], slices),
        "labels": view.cut(found["labels"], slices),
        "shown": view.cut(found["shown"], slices),
        "slices": slices,
    }


def choose(holds: Tensor, count: int) -> Tensor:
    """Return the indices of so many images: as many for each thing that they show as can be.

    An image counts for the rarest thing that it shows; images that show none are a group of their own, with a third of
    another's share. Of a group, they are spread evenly over the order of the data.

    Args:
        holds: (M, K) bool, what of K things an image shows.
        count: of images; all, if there are fewer.

    Returns:
        (at most count,) int64, group by group.
    """
    often = holds.sum(0).double()
    rarest = torch.where(holds, often, torch.inf).argmin(1).masked_fill(~holds.any(1), holds.shape[1])
    found = rarest.unique()
    groups = {int(k): (rarest == k).nonzero().squeeze(1) for k in found[even(len(found), count)]}
    shares = dict.fromkeys(groups, 0)
    while sum(shares.values()) < min(count, sum(map(len, groups.values()))):
        left = [k for k, group in groups.items() if shares[k] < len(group)]
        shares[min(left, key=lambda k: shares[k] * (3 if k == holds.shape[1] else 1))] += 1
    return torch.cat([group[even(len(group), shares[k])] for k, group in groups.items()])


def even(length: int, count: int) -> Tensor:
    """Return at most ``count`` of the indices below ``length``, evenly spaced from the first to the last."""
    return torch.linspace(0, length - 1, min(count, length)).round().long()


def class_held(values: Tensor, task: Task) -> Tensor:
    """Return (M, K): an image's class."""
    return values[:, None] == torch.arange(len(task.classes))


def structures_held(values: Tensor, task: Task) -> Tensor:
    """Return (M, K): the structures of a mask, without the background."""
    return torch.stack([(values == k).flatten(1).any(1) for k in range(1, len(task.classes))], 1)


def boxes_held(values: Tensor, task: Task) -> Tensor:
    """Return (M, K): the classes of an image's boxes."""
    return (values[..., -1:] == torch.arange(len(task.classes))).any(1)


def parts_held(values: Tensor, task: Task) -> Tensor:
    """Return (M, SPREAD): in which part of all images an image is, by the mean of its numbers."""
    rank = values.nanmean(1).argsort().argsort()
    return F.one_hot(rank * SPREAD // len(values), SPREAD).bool()


def boxes_depth(values: Tensor) -> Tensor:
    """Return (M, S), at least 1 slice: 1 in the middle of a box, falling to 0 at its ends, added up over boxes."""
    low, extent, real = values[..., 2], values[..., 5], values[..., -1] >= 0
    last = int((low + extent).masked_fill(~real, 1).amax().ceil()) if values.shape[1] else 1
    away = (torch.arange(last) + 0.5 - (low + extent / 2)[..., None]).abs()  # (M, N, S)
    inside = (1 - away / (extent[..., None] / 2).clamp(min=0.5)).clamp(min=0)
    return (inside * real[..., None]).sum(1)


def cut_maps(array: np.ndarray, slices: np.ndarray) -> np.ndarray:
    """Return the slices (M, ..., S, S) of maps (M, ..., S, S, S)."""
    index = slices.reshape(-1, *(1,) * (array.ndim - 1))
    return np.take_along_axis(array, index, axis=-3).squeeze(-3)


def cut_boxes(array: np.ndarray, slices: np.ndarray) -> np.ndarray:
    """Return what boxes (M, N, x y z w h d class ...) leave in the slices, as (M, N, x y w h class ...)."""
    array = array.copy()
    low, extent, middle = array[..., 2], array[..., 5], slices[:, None] + 0.5
    array[..., 6][(middle < low) | (middle > low + extent)] = -1
    return np.delete(array, [2, 5], axis=-1)


def dose_in_gray(values: Tensor, task: Task) -> Tensor:
    """Return (M, *S) float16 in Gy, NaN where there can be none."""
    steps = values[:, 0]
    return torch.where(steps >= 0, from_units(steps / STEPS, task), torch.nan).half()


VIEWS = {
    "classification": View(class_held),
    "ordinal": View(class_held),
    "multi-label": View(lambda values, task: values == 1),
    "segmentation": View(structures_held, lambda values: (values > 0).flatten(2).sum(2), cut_maps),
    "multi-label-segmentation": View(
        lambda values, task: (values == 1).flatten(2).any(2), lambda values: (values == 1).sum((1, 3, 4)), cut_maps
    ),
    "detection": View(boxes_held, boxes_depth, cut_boxes),
    "regression": View(parts_held),
    "dose": View(
        lambda values, task: torch.ones(len(values), 1, dtype=torch.bool),
        lambda values: values[:, 0].clamp(min=0).sum((2, 3)),
        cut_maps,
        dose_in_gray,
    ),
}
