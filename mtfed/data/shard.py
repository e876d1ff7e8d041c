"""A site's images and labels, ready for training: a part of a store, of which every batch gathers its own rows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Config
from ..errors import MtfedError
from .cache import open_store
from .feature_shift import shift
from .manifest import Row, SiteData, check_patients
from .store import SITE, Store, sums_of

PIECE = 16  # images that are shifted at once
log = logging.getLogger("mtfed.data")


class Labels:
    """The labels of one task: ``rows`` (M,) says which images carry one, ``values`` (M, ...) holds them.

    What ``values`` are is for the task's kind to say: :mod:`mtfed.tasks`. Integers are kept small, and are int64 in a
    batch.

    Args:
        rows: see above.
        values: of the labels, or of more, as in a store.
        places: (M,) where among these the labels are; by default they are all of them, in order.
    """

    def __init__(self, rows: Tensor, values: Tensor, places: Tensor | None = None) -> None:
        self.rows = rows
        self._values = values
        self._places = places

    @property
    def values(self) -> Tensor:
        """Return the values of all labels; a copy where they are a part."""
        return self._values if self._places is None else self._values.index_select(0, self._places)

    def take(self, index: Tensor) -> Tensor:
        """Return a copy of the values of some labels."""
        return self._values.index_select(0, index if self._places is None else self._places[index])


@dataclass
class Batch:
    """Some images and the labels that they have; a task without any label in the batch is absent."""

    images: Tensor  # (B, C, S, S) or (B, C, S, S, S) float32, normalised
    labels: dict[str, Labels]


@dataclass(frozen=True)
class Scale:
    """The mean and deviation of a site's training images, (C,) float32 each, that its images are normalised by."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, sums: Tensor, pixels: int) -> Scale:
        """Return those of some images, of so many pixels each: ``sums`` (N, C, 2) of values and of their squares."""
        total, squares = (sums.sum(0).double() / (len(sums) * pixels)).unbind(1)
        return cls(total.float(), (squares - total.square()).clamp_min(0).sqrt().float())


class Shard:
    """The images of one split of a site, and the labels of each task that it holds.

    Args:
        images: (N, C, S, S) or (N, C, S, S, S) uint8, of the shard, or of more, as in a store.
        labels: by task.
        rows: (M,) which of the images are the shard's; by default all of them, in order.
        scale: what batches are normalised by; by default each image by itself.
    """

    def __init__(
        self, images: Tensor, labels: dict[str, Labels], rows: Tensor | None = None, scale: Scale | None = None
    ) -> None:
        self.labels = labels
        self.scale = scale
        self._images = images
        self._rows = rows

    @classmethod
    def empty(cls) -> Shard:
        """Return a shard without images."""
        return cls(torch.empty((0, 1, 1, 1), dtype=torch.uint8), {})

    def __len__(self) -> int:
        return len(self._images if self._rows is None else self._rows)

    @property
    def images(self) -> Tensor:
        """Return all images; a copy where they are a part of a store."""
        return self._images if self._rows is None else self._images.index_select(0, self._rows)

    def take(self, index: Tensor) -> Tensor:
        """Return a copy of some images, as they are kept."""
        return self._images.index_select(0, index if self._rows is None else self._rows[index])

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
                    values = self.labels[task].take(found[rows])
                    labels[task] = Labels(rows, values if values.is_floating_point() else values.long())
            yield Batch(standardise(self.take(index), self.scale), labels)

    def _positions(self, task: str) -> Tensor:
        """Return (N,) where an image's label lies among the task's values, -1 where it has none."""
        positions = torch.full((len(self),), -1)
        positions[self.labels[task].rows] = torch.arange(self.count(task))
        return positions


def standardise(images: Tensor, scale: Scale | None = None) -> Tensor:
    """Return images (B, C, ...) as float32 with zero mean and unit deviation: each by itself, or those of the scale."""
    images = images.float()
    if scale is not None:
        shape = (-1, *[1] * (images.ndim - 2))
        return (images - scale.mean.view(shape)) / scale.deviation.view(shape).clamp_min(1.0)
    deviation, mean = torch.std_mean(images, dim=tuple(range(1, images.ndim)), keepdim=True, correction=0)
    return (images - mean) / deviation.clamp_min(1.0)


def load_shard(data: SiteData, config: Config, split: str | None = None) -> Shard:
    """Return the labelled images of one split of a site: the only way from a manifest to batches.

    So it is here that splits are kept apart: no patient is in two of them, and no figure that images are normalised by
    is taken from another split, but for a site's validation images, which go by its training images.

    Args:
        data: all that the site holds, or the rows of one split.
        config: of the run.
        split: the one to load; by default that which all the rows are of.

    Raises:
        MtfedError: where patients or rows are of two splits, or more images than ``max-unreadable`` cannot be read.
    """
    split_of = {row.patient: row.split for row in data.rows}
    if any(split_of[row.patient] != row.split for row in data.rows):
        check_patients(data.rows, f"Site {data.key}")  # which says whose they are
    splits = sorted({row.split for row in data.rows})
    if split is None and len(splits) > 1:
        raise MtfedError(f"Expected one split of site {data.key}, got {' and '.join(splits)}; say which to load.")
    split = split or next(iter(splits), "train")
    rows = labelled(data, split)
    by_site = config.normalise == "site"
    others = labelled(data, "train") if by_site and split == "val" and rows else []
    if by_site and split == "val" and rows and not others:
        raise MtfedError(
            f"Config key normalise: site {data.key} has no training image that its validation images can be normalised "
            'by; use "image".'
        )
    store, places = open_store(data, config, [*rows, *others])
    places, others_places = places[: len(rows)], places[len(rows) :]
    kept = _readable(places, rows, store, data, config)
    places, rows = places[kept], [rows[i] for i in kept.tolist()]
    labels = _labels(places, rows, store, config)
    if others:
        kept = _readable(others_places, others, store, data, config)
        others_places, others = others_places[kept], [others[i] for i in kept.tolist()]
    pixels = config.image_size**config.dimensions
    if data.scanners is None:
        basis = others_places if others else places
        scale = Scale.of(store.sums[basis], pixels) if by_site and rows else None
        return Shard(store.images, labels, places, scale)
    images = _shifted(places, rows, store, data)
    train = _shifted(others_places, others, store, data) if others else images
    scale = Scale.of(torch.stack([sums_of(image) for image in train]), pixels) if by_site and rows else None
    return Shard(images, labels, scale=scale)


def labelled(data: SiteData, split: str) -> list[Row]:
    """Return the rows of a split that have a label; refuse those that are not what they are in the site's pool."""
    rows = [row for row in data.rows if row.labels and row.split == split]
    for row in rows if data.pool else ():
        of_pool = data.pool[row.number] if row.number < len(data.pool) else None
        if of_pool is None or of_pool.image != row.image or not row.labels.items() <= of_pool.labels.items():
            raise ValueError(f"Expected row {row.number} of the pool of site {data.key} to be {row}, it is {of_pool}.")
    return rows


def _readable(places: Tensor, rows: list[Row], store: Store, data: SiteData, config: Config) -> Tensor:
    """Return which rows (M,) could be read; refuse where those that could not are too many, or all of a task."""
    if not store.faults:
        return torch.arange(len(rows))
    faults = {i: store.faults[place] for i, place in enumerate(places.tolist()) if place in store.faults}
    told = {i: fault.replace(SITE, data.key) for i, fault in faults.items()}
    if len(told) > config.max_unreadable * len(rows):
        raise MtfedError(
            f"Cannot read {len(told)} of {len(rows)} {rows[0].split} images of site {data.key}, and config key "
            f"max-unreadable allows a share of {config.max_unreadable:g}; `mtfed site check` lists them, the first is: "
            f"{next(iter(told.values()))}"
        )
    kept = [i for i in range(len(rows)) if i not in told]
    for task in sorted({task for i in told for task in rows[i].labels}):
        if not any(task in rows[i].labels for i in kept):
            first = next(fault for i, fault in told.items() if task in rows[i].labels)
            raise MtfedError(
                f"Cannot use any {rows[0].split} image of site {data.key} that is labelled for task {task}, the first "
                f"for this reason: {first}"
            )
    for i, fault in told.items():
        if (place := int(places[i])) not in store.told:
            store.told.add(place)
            log.warning("Left out %s of site %s: %s", rows[i].image, data.key, fault)
    return torch.tensor(kept)


def _shifted(places: Tensor, rows: list[Row], store: Store, data: SiteData) -> Tensor:
    """Return the images of rows as the simulated site's scanner takes them, in memory."""
    assert data.scanners is not None
    images = torch.empty((len(rows), *store.images.shape[1:]), dtype=torch.uint8)
    numbers = torch.tensor([row.number for row in rows])
    for piece in torch.arange(len(rows)).split(PIECE):
        images[piece] = shift(store.images[places[piece]], numbers[piece], data.scanners)
    return images


def _labels(places: Tensor, rows: list[Row], store: Store, config: Config) -> dict[str, Labels]:
    """Return the labels that rows at these places of a store have, in the order of the config's tasks."""
    labels = {}
    for name in config.tasks:
        held = torch.tensor([i for i, row in enumerate(rows) if name in row.labels], dtype=torch.long)
        if not len(held):
            continue
        column = store.columns[name]
        found = column.places[places[held]].long()
        if column.lengths is None:
            labels[name] = Labels(held, column.values, found)
        else:
            labels[name] = Labels(held, column.take(found))
    return labels
