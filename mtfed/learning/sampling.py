"""The orders in which a site's images are trained on: all equally often, or those of rare tasks more often."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..config import Config
from ..data.shard import Shard


def orders(shard: Shard, tasks: list[str], config: Config) -> Iterator[Tensor]:
    """Yield without end, for each pass, the images (N,) to train on, where N images have a label of the tasks.

    With ``sampling = 1``, a pass is a permutation of these images. Otherwise each image of a pass is drawn from a
    group, with a probability that is proportional to the group's size to the power of ``sampling``. A group is all
    images of a dimensionality, a modality and a body part with labels of the same tasks; pretext tasks, which have a
    label of every image, do not count. Each group is a shuffled cycle of its own, so its images are seen equally often.
    """
    rows = shard.labelled(tasks)
    if config.sampling == 1:
        while True:
            yield rows[torch.randperm(len(rows))]
    groups = split_by_key(rows, torch.stack(_keys(shard, rows, tasks, config), dim=1))
    weights = torch.tensor([float(len(group)) for group in groups]) ** config.sampling
    cycles = [_Cycle(group) for group in groups]
    while True:
        chosen = torch.multinomial(weights, len(rows), replacement=True)
        order = torch.empty_like(rows)
        for number, cycle in enumerate(cycles):
            places = chosen == number
            order[places] = cycle.take(int(places.sum()))
        yield order


def _keys(shard: Shard, rows: Tensor, tasks: list[str], config: Config) -> list[Tensor]:
    """Return what distinguishes the groups of rows (N,), as numbers (N,): labels, dimensionality, and words."""
    distinguishing = [task for task in tasks if not config.tasks[task].spec.every_image]
    if len(config.forms) > 1:  # an image has the pretext tasks of its own dimensionality
        distinguishing = tasks
    keys = [torch.isin(rows, shard.labelled([task])).long() for task in distinguishing]
    words = torch.zeros_like(rows)[:, None] if shard.words is None else shard.words[rows]
    return [*keys, *words.unbind(1)]


def split_by_key(rows: Tensor, keys: Tensor) -> list[Tensor]:
    """Return rows (N,) in groups that have the same key (N, K)."""
    if not len(rows):
        return []
    distinct, key_of_row = keys.unique(dim=0, return_inverse=True)
    return [rows[key_of_row == key] for key in range(len(distinct))]


class _Cycle:
    """Images that are taken in endless passes, each in a new random order."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.rest = images[:0]

    def take(self, count: int) -> Tensor:
        """Return the next images."""
        while len(self.rest) < count:
            self.rest = torch.cat([self.rest, self.images[torch.randperm(len(self.images))]])
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken
