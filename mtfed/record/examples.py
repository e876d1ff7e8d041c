"""Some test images with labels and predictions, which the record keeps for people to look at.

``examples.npz`` contains, for every task TASK that has labelled test images, ``TASK.images`` (M, C, S, S) uint8,
``TASK.labels`` and ``TASK.shown`` (what the task's kind shows of a prediction), and for volumes ``TASK.slices`` (M,).
They are the server's own test images: an image never leaves a site.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..data.shard import Shard
from ..learning.device import to_device
from ..learning.pretext import add_pretext, same_copies
from ..models.system import MultiTaskModel
from ..tasks.kind import kind_of
from ..tasks.task import Task
from .run import Run

COUNT = {2: 8, 3: 4}  # images of a task, by dimensions


def save_examples(run: Run, model: MultiTaskModel, test: Shard, config: Config) -> None:
    """Save labels and predictions of a few test images of every task; none is chosen by its result.

    Every class gets its share of them, however rare it is, and so do images without any class.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, task in config.tasks.items():
        if test.count(name):
            arrays |= {f"{name}.{part}": array for part, array in examples(model, test, task, config).items()}
    np.savez_compressed(run.folder / "examples.npz", **arrays)  # type: ignore[arg-type]


@torch.inference_mode()
def examples(model: MultiTaskModel, test: Shard, task: Task, config: Config) -> dict[str, np.ndarray]:
    """Return images, labels and what is shown of predictions, of some test images with a label of a task.

    The images of a pretext task are the copies that it makes of some test images.
    """
    model.eval()
    device, kind = next(model.parameters()).device, kind_of(task)
    values = test.labels[task.name].values
    index = choose(contents(values, task), COUNT[task.dimensions])
    rows, values = test.labels[task.name].rows[index], values[index]
    images, shown = test.take(rows).numpy(), []
    with same_copies(config.tasks, device):
        for batch in test.batches(len(rows) if kind.pretext else config.batch_size, rows, [task.name]):
            if kind.pretext:
                batch = add_pretext(batch, config.tasks)
                values, images = batch.labels[task.name].values[: len(rows)], as_pixels(batch.images)[: len(rows)]
            batch = to_device(batch, device)
            outputs = model(batch.images, {task.name: batch.labels[task.name].rows}, batch.words)[task.name]
            shown.append(kind.show(outputs.float().cpu(), task)[: len(rows)])
    arrays = {"images": images, "labels": kind.show_values(values, task).numpy(), "shown": np.concatenate(shown)}
    if task.dimensions == 2:
        return arrays
    slices = best_slices(values, task, config.form_of(task.name).size // 2)
    cut = {"map": cut_maps, "boxes": cut_boxes}.get(task.spec.geometry, lambda array, slices: array)
    if kind.pretext:
        cut = cut_images
    cuts = {"images": cut_maps, "labels": cut, "shown": cut}
    return {part: cuts[part](array, slices) for part, array in arrays.items()} | {"slices": slices}


def as_pixels(images: Tensor) -> np.ndarray:
    """Return normalised images (M, C, *S) as uint8, each from its darkest to its brightest value."""
    low, high = images.flatten(1).aminmax(dim=1)
    shape = (-1, *[1] * (images.ndim - 1))
    shares = (images - low.view(shape)) / (high - low).view(shape).clamp_min(1e-6)
    return (255 * shares).round().byte().numpy()


def contents(values: Tensor, task: Task) -> Tensor:
    """Return (M, K) bool: which of K things each image shows; a single thing if the kind does not distinguish them."""
    kind = kind_of(task)
    if kind.contents:
        return kind.contents(values, task)
    if kind.masks:
        masks = (kind.masks(label, task) for label in values.numpy())
        return torch.from_numpy(np.stack([of_image.reshape(len(of_image), -1).any(1) for of_image in masks]))
    return torch.ones(len(values), 1, dtype=torch.bool)


def best_slices(values: Tensor, task: Task, middle: int) -> np.ndarray:
    """Return for each volume the slice (M,) that contains most of its label, or the middle one if none contains any."""
    kind = kind_of(task)
    if kind.slice_weights:
        weights = kind.slice_weights(values, task)
    elif kind.masks:
        weights = torch.from_numpy(np.stack([kind.masks(label, task).sum((0, 2, 3)) for label in values.numpy()]))
    else:
        return np.full(len(values), middle)
    return torch.where(weights.any(1), weights.argmax(1), middle).numpy()


def choose(shows: Tensor, count: int) -> Tensor:
    """Return the indices of some images, with as many as possible for each thing that they show.

    An image counts for the rarest thing that it shows. Images that show nothing are a group of their own, with a third
    of the share of another group. The images of a group are spread evenly over the order of the data.

    Args:
        shows: (M, K) bool, which of K things each image shows.
        count: number of images; all, if there are fewer.

    Returns:
        (at most count,) int64, group by group.
    """
    frequency = shows.sum(0).double()
    rarest = torch.where(shows, frequency, torch.inf).argmin(1).masked_fill(~shows.any(1), shows.shape[1])
    things = rarest.unique()
    groups = {int(k): (rarest == k).nonzero().squeeze(1) for k in things[even(len(things), count)]}
    shares = dict.fromkeys(groups, 0)
    while sum(shares.values()) < min(count, sum(map(len, groups.values()))):
        left = [k for k, group in groups.items() if shares[k] < len(group)]
        shares[min(left, key=lambda k: shares[k] * (3 if k == shows.shape[1] else 1))] += 1
    return torch.cat([group[even(len(group), shares[k])] for k, group in groups.items()])


def even(length: int, count: int) -> Tensor:
    """Return at most ``count`` of the indices below ``length``, evenly spaced from the first to the last."""
    return torch.linspace(0, length - 1, min(count, length)).round().long()


def cut_maps(array: np.ndarray, slices: np.ndarray) -> np.ndarray:
    """Return the slices (M, ..., S, S) of maps (M, ..., S, S, S)."""
    index = slices.reshape(-1, *(1,) * (array.ndim - 1))
    return np.take_along_axis(array, index, axis=-3).squeeze(-3)


def cut_images(array: np.ndarray, slices: np.ndarray) -> np.ndarray:
    """Return the slices of an array if it holds volumes, and the array itself if it holds a number for each volume."""
    return cut_maps(array, slices) if array.ndim > 3 else array


def cut_boxes(array: np.ndarray, slices: np.ndarray) -> np.ndarray:
    """Return the cross-sections (M, N, x y w h class ...) of boxes (M, N, x y z w h d class ...) with the slices."""
    array = array.copy()
    low, extent, middle = array[..., 2], array[..., 5], slices[:, None] + 0.5
    array[..., 6][(middle < low) | (middle > low + extent)] = -1
    return np.delete(array, [2, 5], axis=-1)
