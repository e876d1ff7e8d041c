"""The images and labels of a site that are ready for training: the part of a store from which batches are gathered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Config
from ..errors import MtfedError
from .cache import open_store
from .decoding import channel_sums
from .feature_shift import shift
from .manifest import Row, SiteData, check_patients
from .store import SITE, Store

CHUNK = 16  # images that are shifted at a time
log = logging.getLogger("mtfed.data")


class Labels:
    """The labels of one task: ``rows`` (M,) are the images that have one, ``values`` (M, ...) the labels.

    The meaning of the values depends on the task's kind, see :mod:`mtfed.tasks`. Integers are kept small, and are int64
    in a batch.

    Args:
        rows: see above.
        values: values of these labels, or of more labels, as in a store.
        index: (M,) where these labels are among the values; by default the values are these labels, in order.
        mixture: the labels of images that are mixed from several: the weight and the values (M, ...) of each of these.
    """

    def __init__(
        self, rows: Tensor, values: Tensor, index: Tensor | None = None, mixture: Sequence[tuple[float, Tensor]] = ()
    ) -> None:
        self.rows = rows
        self.mixture = mixture
        self._values = values
        self._index = index

    @property
    def values(self) -> Tensor:
        """Return the values of all labels; a copy if they are a part of a store's."""
        return self._values if self._index is None else self._values.index_select(0, self._index)

    def changed(self, rows: Tensor, change: Callable[[Tensor], Tensor]) -> Labels:
        """Return labels of other rows, with a change of all values, those of the mixture included."""
        return Labels(rows, change(self.values), mixture=[(weight, change(values)) for weight, values in self.mixture])

    def take(self, index: Tensor) -> Tensor:
        """Return a copy of the values of some labels."""
        return self._values.index_select(0, index if self._index is None else self._index[index])


@dataclass
class Batch:
    """Some images and their labels; a task without any label in the batch is absent."""

    images: Tensor  # (B, C, S, S) or (B, C, S, S, S) float32, normalised
    labels: dict[str, Labels]
    words: Tensor | None = None  # (B, 2) indices of modality and body part (mtfed.data.vocabulary), if known


@dataclass(frozen=True)
class Normalisation:
    """The mean and standard deviation of a site's training images, (C,) float32 each, that normalise its images."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, sums: Tensor, pixels: int) -> Normalisation:
        """Return the normalisation by images with so many pixels each, from their ``sums`` (N, C, 2) in a store."""
        total, squares = (sums.sum(0).double() / (len(sums) * pixels)).unbind(1)
        return cls(total.float(), (squares - total.square()).clamp_min(0).sqrt().float())


class Shard:
    """The images of one split of a site, and their labels for each task.

    Args:
        images: (N, C, S, S) or (N, C, S, S, S) uint8, of the shard, or of more images, as in a store.
        labels: labels by task.
        rows: (M,) which of the images are the shard's; by default all of them, in order.
        normalisation: normalisation of all images; by default, each image is normalised by itself.
    """

    def __init__(
        self,
        images: Tensor,
        labels: dict[str, Labels],
        rows: Tensor | None = None,
        normalisation: Normalisation | None = None,
    ) -> None:
        self.labels = labels
        self.normalisation = normalisation
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
        """Return all images; a copy if they are a part of a store."""
        return self._images if self._rows is None else self._images.index_select(0, self._rows)

    def take(self, index: Tensor) -> Tensor:
        """Return a copy of some images as uint8."""
        return self._images.index_select(0, index if self._rows is None else self._rows[index])

    def count(self, task: str) -> int:
        """Return how many images have a label for a task."""
        return len(self.labels[task].rows) if task in self.labels else 0

    def labelled(self, tasks: list[str]) -> Tensor:
        """Return which images have a label for any of the tasks."""
        return torch.cat([self.labels[task].rows for task in tasks]).unique()

    def batches(self, size: int, order: Tensor | None = None, tasks: list[str] | None = None) -> Iterator[Batch]:
        """Yield all images in an order (by default the shard's), with the labels of some tasks (by default all)."""
        order = torch.arange(len(self)) if order is None else order
        names = self.labels if tasks is None else tasks
        positions = {task: self._label_positions(task) for task in names if task in self.labels}
        for index in order.split(size):
            labels = {}
            for task, of_task in positions.items():
                of_batch = of_task[index]
                rows = (of_batch >= 0).nonzero().squeeze(1)
                if len(rows):
                    values = self.labels[task].take(of_batch[rows])
                    labels[task] = Labels(rows, values if values.is_floating_point() else values.long())
            yield Batch(standardise(self.take(index), self.normalisation), labels)

    def _label_positions(self, task: str) -> Tensor:
        """Return (N,) the index of each image's label among the task's labels, -1 if it has none."""
        positions = torch.full((len(self),), -1)
        positions[self.labels[task].rows] = torch.arange(self.count(task))
        return positions


def standardise(images: Tensor, normalisation: Normalisation | None = None) -> Tensor:
    """Return images (B, C, ...) as float32 with zero mean and unit deviation, each by itself or by a normalisation."""
    images = images.float()
    if normalisation is not None:
        shape = (-1, *[1] * (images.ndim - 2))
        return (images - normalisation.mean.view(shape)) / normalisation.deviation.view(shape).clamp_min(1.0)
    deviation, mean = torch.std_mean(images, dim=tuple(range(1, images.ndim)), keepdim=True, correction=0)
    return (images - mean) / deviation.clamp_min(1.0)


def load_shard(data: SiteData, config: Config, split: str | None = None) -> Shard:
    """Return the labelled images of one split of a site.

    This is the only way from a manifest to batches, and therefore the place that keeps splits apart: no patient is in
    two of them, and images are normalised with images of their own split only; a site's validation images with its
    training images.

    Args:
        data: all rows of the site, or the rows of one split.
        config: the run's config.
        split: the split to load; by default the one that all rows belong to.

    Raises:
        MtfedError: if a patient is in two splits, if ``split`` is missing, or if more images than ``max-unreadable``
            cannot be read.
    """
    split_of = {row.patient: row.split for row in data.rows}
    if any(split_of[row.patient] != row.split for row in data.rows):
        check_patients(data.rows, f"Site {data.key}")  # raises an error that names the patient
    splits = sorted({row.split for row in data.rows})
    if split is None and len(splits) > 1:
        raise MtfedError(f"Expected one split of site {data.key}, got {' and '.join(splits)}; choose one.")
    split = split or next(iter(splits), "train")
    rows = labelled_rows(data, split)
    by_site = config.normalise == "site"
    train_rows = labelled_rows(data, "train") if by_site and split == "val" and rows else []
    if by_site and split == "val" and rows and not train_rows:
        raise MtfedError(
            f"Config key normalise: site {data.key} has no training image that its validation images can be normalised "
            'by; use "image".'
        )
    store, positions = open_store(data, config, [*rows, *train_rows])
    train_positions, train_rows = _readable(positions[len(rows) :], train_rows, store, data, config)
    positions, rows = _readable(positions[: len(rows)], rows, store, data, config)
    labels = _labels(positions, rows, store, config)
    pixels = config.image_size**config.dimensions
    if data.scanners is None:
        sums = store.sums[train_positions if train_rows else positions]
        normalisation = Normalisation.of(sums, pixels) if by_site and rows else None
        return Shard(store.images, labels, positions, normalisation)
    images = _shift_images(positions, rows, store, data)
    train_images = _shift_images(train_positions, train_rows, store, data) if train_rows else images
    normalisation = None
    if by_site and rows:
        normalisation = Normalisation.of(torch.stack([channel_sums(image) for image in train_images]), pixels)
    return Shard(images, labels, normalisation=normalisation)


def labelled_rows(data: SiteData, split: str) -> list[Row]:
    """Return the rows of a split that have a label; refuse rows that differ from those in the site's pool."""
    rows = [row for row in data.rows if row.labels and row.split == split]
    for row in rows if data.pool else ():
        of_pool = data.pool[row.number] if row.number < len(data.pool) else None
        if of_pool is None or of_pool.image != row.image or not row.labels.items() <= of_pool.labels.items():
            raise ValueError(f"Expected row {row.number} of the pool of site {data.key} to be {row}, it is {of_pool}.")
    return rows


def _readable(
    positions: Tensor, rows: list[Row], store: Store, data: SiteData, config: Config
) -> tuple[Tensor, list[Row]]:
    """Return the rows that could be read and their positions; refuse if too many could not, or all rows of a task."""
    faults = {i: store.faults[position] for i, position in enumerate(positions.tolist()) if position in store.faults}
    reasons = {i: fault.replace(SITE, data.key) for i, fault in faults.items()}
    if len(reasons) > config.max_unreadable * len(rows):
        raise MtfedError(
            f"Cannot read {len(reasons)} of {len(rows)} {rows[0].split} images of site {data.key}, and config key "
            f"max-unreadable allows a share of {config.max_unreadable:g}; `mtfed site check` lists them, the first is: "
            f"{next(iter(reasons.values()))}"
        )
    readable = [i for i in range(len(rows)) if i not in reasons]
    for task in sorted({task for i in reasons for task in rows[i].labels}):
        if not any(task in rows[i].labels for i in readable):
            first = next(reason for i, reason in reasons.items() if task in rows[i].labels)
            raise MtfedError(
                f"Cannot use any {rows[0].split} image of site {data.key} that is labelled for task {task}, the first "
                f"for this reason: {first}"
            )
    for i, reason in reasons.items():
        if (position := int(positions[i])) not in store.logged:
            store.logged.add(position)
            log.warning("Left out %s of site %s: %s", rows[i].image, data.key, reason)
    return positions[readable], [rows[i] for i in readable]


def _shift_images(positions: Tensor, rows: list[Row], store: Store, data: SiteData) -> Tensor:
    """Return the images of rows as the scanner of the simulated site takes them, in memory."""
    assert data.scanners is not None
    images = torch.empty((len(rows), *store.images.shape[1:]), dtype=torch.uint8)
    numbers = torch.tensor([row.number for row in rows])
    for chunk in torch.arange(len(rows)).split(CHUNK):
        images[chunk] = shift(store.images[positions[chunk]], numbers[chunk], data.scanners)
    return images


def _labels(positions: Tensor, rows: list[Row], store: Store, config: Config) -> dict[str, Labels]:
    """Return the labels of rows at these positions of a store, in the order of the config's tasks."""
    labels = {}
    for name in config.tasks:
        labelled = torch.tensor([i for i, row in enumerate(rows) if name in row.labels], dtype=torch.long)
        if len(labelled):
            stored = store.labels[name]
            index = stored.positions[positions[labelled]].long()
            ragged = stored.lengths is not None
            labels[name] = Labels(labelled, stored.take(index)) if ragged else Labels(labelled, stored.values, index)
    return labels
