"""A site's images and labels in memory, ready for training."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..config import Config
from ..errors import MtfedError
from ..tasks import Task
from .manifest import Row, SiteData


@dataclass
class Labels:
    """The labels of one task: ``rows`` (M,) says which images carry one, ``values`` holds them.

    ``values`` is (M,) int64 for classification and (M, S, S) uint8 for segmentation.
    """

    rows: Tensor
    values: Tensor


@dataclass
class Batch:
    """Some images and the labels that they have; a task without any label in the batch is absent."""

    images: Tensor  # (B, C, S, S) float32, zero mean and unit deviation per image
    labels: dict[str, Labels]


@dataclass
class Shard:
    """The images (N, C, S, S) uint8 of one split of a site, and the labels of each task that it holds."""

    images: Tensor
    labels: dict[str, Labels]

    @classmethod
    def empty(cls) -> Shard:
        """Return a shard without images."""
        return cls(torch.empty((0, 1, 1, 1), dtype=torch.uint8), {})

    def __len__(self) -> int:
        return len(self.images)

    def count(self, task: str) -> int:
        """Return how many images carry a label of a task."""
        return len(self.labels[task].rows) if task in self.labels else 0

    def labelled(self, tasks: list[str]) -> Tensor:
        """Return which images carry a label of any of the tasks."""
        return torch.cat([self.labels[task].rows for task in tasks]).unique()

    def batches(self, size: int, order: Tensor | None = None, tasks: list[str] | None = None) -> Iterator[Batch]:
        """Yield the images in the given order (default: as they lie), with the labels of the given tasks."""
        order = torch.arange(len(self)) if order is None else order
        where = {
            task: self._positions(task) for task in (self.labels if tasks is None else tasks) if task in self.labels
        }
        for index in order.split(size):
            labels = {}
            for task, positions in where.items():
                found = positions[index]
                rows = (found >= 0).nonzero().squeeze(1)
                if len(rows):
                    labels[task] = Labels(rows, self.labels[task].values[found[rows]].long())
            yield Batch(standardise(self.images[index]), labels)

    def _positions(self, task: str) -> Tensor:
        """Return (N,) where an image's label lies among the task's values, -1 where it has none."""
        positions = torch.full((len(self),), -1)
        positions[self.labels[task].rows] = torch.arange(self.count(task))
        return positions


def standardise(images: Tensor) -> Tensor:
    """Return (B, C, H, W) images as float32 with zero mean and unit deviation, each by itself."""
    images = images.float()
    deviation, mean = torch.std_mean(images, dim=(1, 2, 3), keepdim=True, correction=0)
    return (images - mean) / deviation.clamp_min(1.0)


def load_shard(data: SiteData, config: Config) -> Shard:
    """Read every labelled image of a site's split; raise :class:`MtfedError` naming the first that cannot be read."""
    rows = [row for row in data.rows if row.labels]
    size = config.image_size
    images = np.empty((len(rows), config.channels, size, size), np.uint8)
    for i, row in enumerate(rows):
        images[i] = read_image(data, row.image, size, config.channels)
    labels = {}
    for name, task in config.tasks.items():
        held = [i for i, row in enumerate(rows) if name in row.labels]
        if held:
            values = [read_label(data, rows[i], task, size) for i in held]
            labels[name] = Labels(torch.tensor(held), torch.from_numpy(np.stack(values)))
    return Shard(torch.from_numpy(images), labels)


def read_image(data: SiteData, name: str, size: int, channels: int) -> np.ndarray:
    """Return an image as (C, S, S) uint8, padded to a square and resized."""
    image = eight_bit(_open(data, name, "image")).convert("L" if channels == 1 else "RGB")
    array = np.asarray(ImageOps.pad(image, (size, size), Image.Resampling.BILINEAR))
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def eight_bit(image: Image.Image) -> Image.Image:
    """Return an image of 16 or more bits scaled to its own range: Pillow's conversion would cut it off at 255."""
    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image, np.float64)
    low, high = values.min(), values.max()
    return Image.fromarray(np.round((values - low) * (255 / max(high - low, 1e-9))).astype(np.uint8))


def read_label(data: SiteData, row: Row, task: Task, size: int) -> np.ndarray | np.int64:
    """Return a class index, or a mask as (S, S) uint8 of class indices."""
    label = row.labels[task.name]
    if task.kind == "classification":
        return np.int64(class_index(data, label, task))
    mask = _open(data, label, "mask")
    width, height = Image.open(io.BytesIO(data.root.read(row.image))).size
    if mask.size != (width, height):
        raise MtfedError(
            f"Mask {label} of site {data.key} should be {width} x {height} pixels, as its image {row.image} is; "
            f"it is {mask.width} x {mask.height}."
        )
    array = np.asarray(ImageOps.pad(mask, (size, size), Image.Resampling.NEAREST))
    if array.ndim != 2 or array.max(initial=0) >= len(task.classes):
        raise MtfedError(
            f"Mask {label} of site {data.key} should be one channel of class indices below {len(task.classes)} "
            f"({', '.join(task.classes)}), it has shape {list(array.shape)} and values up to {array.max(initial=0)}."
        )
    return array.astype(np.uint8)


def class_index(data: SiteData, label: str, task: Task) -> int:
    """Return the index of a class given by index or by name."""
    if label in task.classes:
        return task.classes.index(label)
    if label.isdigit() and int(label) < len(task.classes):
        return int(label)
    raise MtfedError(
        f"Site {data.key}: label {label!r} of task {task.name} should be one of {', '.join(task.classes)} "
        f"or an index below {len(task.classes)}."
    )


def _open(data: SiteData, name: str, what: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data.root.read(name)))
        image.load()
        return image
    except (OSError, KeyError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MtfedError(f"Cannot read {what} {name} of site {data.key}: {error}; mend or remove it.") from error
