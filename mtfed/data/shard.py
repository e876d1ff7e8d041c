"""The images and labels of a site that are ready for training: the part of a store from which batches are gathered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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

    def moved(self, start: int) -> Labels:
        """Return these labels for a shard in which ``start`` other images come first."""
        return Labels(self.rows + start, self._values, self._index)

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
    """The mean and standard deviation that normalise images, (C,) float32 each.

    They are those of a site's training images, or of the images that an encoder was pretrained on. Pixels from 0 to 255
    are divided by ``unit`` first; no deviation is 0.
    """

    mean: Tensor
    deviation: Tensor
    unit: float = 1.0

    @classmethod
    def of(cls, sums: Tensor, pixels: int) -> Normalisation:
        """Return the normalisation by images with so many pixels each, from their ``sums`` (N, C, 2) in a store."""
        total, squares = (sums.sum(0).double() / (len(sums) * pixels)).unbind(1)
        return cls(total.float(), (squares - total.square()).clamp_min(0).sqrt().float().clamp_min(1.0))


class Shard:
    """The images of one split of a site, all of one form, and their labels for each task.

    Args:
        images: (N, C, S, S) or (N, C, S, S, S) uint8, of the shard, or of more images, as in a store.
        labels: labels by task.
        rows: (M,) which of the images are the shard's; by default all of them, in order.
        normalisation: normalisation of all images; by default, each image is normalised by itself.
        words: (M, 2) indices of the modality and the body part of each image, if known.
    """

    def __init__(
        self,
        images: Tensor,
        labels: dict[str, Labels],
        rows: Tensor | None = None,
        normalisation: Normalisation | None = None,
        words: Tensor | None = None,
    ) -> None:
        self.labels = labels
        self.normalisation = normalisation
        self.words = words
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

    def count_batches(self, size: int, order: Tensor) -> int:
        """Return how many batches :meth:`batches` yields for an order."""
        return -(-len(order) // size)

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
            words = None if self.words is None else self.words[index]
            yield Batch(standardise(self.take(index), self.normalisation), labels, words)

    def _label_positions(self, task: str) -> Tensor:
        """Return (N,) the index of each image's label among the task's labels, -1 if it has none."""
        positions = torch.full((len(self),), -1)
        positions[self.labels[task].rows] = torch.arange(self.count(task))
        return positions


def standardise(images: Tensor, normalisation: Normalisation | None = None) -> Tensor:
    """Return images (B, C, ...) as float32, normalised, or each by itself with zero mean and unit deviation."""
    images = images.float()
    if normalisation is not None:
        shape = (-1, *[1] * (images.ndim - 2))
        return (images / normalisation.unit - normalisation.mean.view(shape)) / normalisation.deviation.view(shape)
    deviation, mean = torch.std_mean(images, dim=tuple(range(1, images.ndim)), keepdim=True, correction=0)
    return (images - mean) / deviation.clamp_min(1.0)


class MixedShard(Shard):
    """Shards of several forms as one: the rows of the first, then those of the next; each batch has images of one form.

    Every task belongs to one of the shards.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = tuple(shards)
        self.starts = [sum(map(len, shards[:i])) for i in range(len(shards))]
        self.labels = {
            task: labels.moved(start)
            for start, shard in zip(self.starts, shards, strict=True)
            for task, labels in shard.labels.items()
        }
        words = [shard.words for shard in shards if shard.words is not None]
        self.words = torch.cat(words) if len(words) == len(shards) else None

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> Shard:
        """Return shards as one; a single shard is returned as it is."""
        return cls(shards) if len(shards) > 1 else shards[0] if shards else Shard.empty()

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    @property
    def images(self) -> Tensor:
        raise TypeError("Images of several forms are not one tensor; take those of one task.")

    def take(self, index: Tensor) -> Tensor:
        """Return a copy of some images as uint8; they have to be of one form."""
        (i,) = self._shard_of(index).unique().tolist() or [0]
        return self.shards[i].take(index - self.starts[i])

    def count_batches(self, size: int, order: Tensor) -> int:
        return sum(-(-count // size) for count in self._shard_of(order).bincount().tolist())

    def batches(self, size: int, order: Tensor | None = None, tasks: list[str] | None = None) -> Iterator[Batch]:
        """Yield all images in an order, with labels; a batch comes as soon as the order has reached its last image."""
        order = torch.arange(len(self)) if order is None else order
        of_shard = self._shard_of(order)
        turns: list[tuple[int, int]] = []  # place in the order, and shard, of each batch
        streams = []
        for i, (start, shard) in enumerate(zip(self.starts, self.shards, strict=True)):
            places = (of_shard == i).nonzero().squeeze(1)
            turns += [(int(chunk[-1]), i) for chunk in places.split(size) if len(chunk)]
            streams.append(shard.batches(size, order[places] - start, tasks))
        for _, i in sorted(turns):
            yield next(streams[i])

    def _shard_of(self, index: Tensor) -> Tensor:
        return torch.searchsorted(torch.tensor(self.starts), index, right=True) - 1
