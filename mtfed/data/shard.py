"""A site's images and labels in memory, ready for training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..kinds import kind_of
from .manifest import SiteData
from .source import Source


@dataclass
class Labels:
    """The labels of one task: ``rows`` (M,) says which images carry one, ``values`` (M, ...) holds them.

    What ``values`` are is for the task's kind to say: :mod:`mtfed.kinds`. Integers are kept small, and are int64 in a
    batch.
    """

    rows: Tensor
    values: Tensor


@dataclass
class Batch:
    """Some images and the labels that they have; a task without any label in the batch is absent."""

    images: Tensor  # (B, C, S, S) or (B, C, S, S, S) float32, zero mean and unit deviation per image
    labels: dict[str, Labels]


@dataclass
class Shard:
    """The images (N, C, S, S) or (N, C, S, S, S) uint8 of one split of a site, and the labels of each task it holds."""

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
                    values = self.labels[task].values[found[rows]]
                    labels[task] = Labels(rows, values if values.is_floating_point() else values.long())
            yield Batch(standardise(self.images[index]), labels)

    def _positions(self, task: str) -> Tensor:
        """Return (N,) where an image's label lies among the task's values, -1 where it has none."""
        positions = torch.full((len(self),), -1)
        positions[self.labels[task].rows] = torch.arange(self.count(task))
        return positions


def standardise(images: Tensor) -> Tensor:
    """Return images (B, C, ...) as float32 with zero mean and unit deviation, each by itself."""
    images = images.float()
    deviation, mean = torch.std_mean(images, dim=tuple(range(1, images.ndim)), keepdim=True, correction=0)
    return (images - mean) / deviation.clamp_min(1.0)


def load_shard(data: SiteData, config: Config) -> Shard:
    """Read every labelled image of a site's split; raise :class:`MtfedError` naming the first that cannot be read."""
    rows = [row for row in data.rows if row.labels]
    images = np.empty((len(rows), config.channels, *(config.image_size,) * config.dimensions), np.uint8)
    found: dict[str, tuple[list[int], list[np.ndarray]]] = {name: ([], []) for name in config.tasks}
    for i, row in enumerate(rows):
        source = Source(data, row.image, config.image_size, config.dimensions)
        images[i] = source.pixels(config.channels)
        for name, cell in row.labels.items():
            task = config.tasks[name]
            found[name][0].append(i)
            found[name][1].append(kind_of(task).read(cell, task, source))
    labels = {
        name: Labels(torch.tensor(held), torch.from_numpy(kind_of(config.tasks[name]).stack(values)))
        for name, (held, values) in found.items()
        if held
    }
    return Shard(torch.from_numpy(images), labels)
