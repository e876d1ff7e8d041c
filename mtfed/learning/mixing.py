"""Augmentations that mix images: a mixed image is a convex combination of some images of a batch.

Its loss is the same combination of the losses for the labels of each of these images (:class:`~mtfed.data.shard.Labels`
holds them, :func:`.losses.labels_loss` adds them up). For cross-entropy and the squared error this is the loss for the
combined label; but it is defined for labels that cannot be combined as well, such as boxes.

Images are mixed only if they have labels of the same tasks, and the same modality and body part. An image that has no
such partner in its batch is not mixed, nor are the images of pretext tasks: these are changed copies of single images,
added to a batch before it is mixed.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..config import Mix
from ..data.shard import Batch, Labels
from ..tasks.task import Task
from .sampling import split_by_key

CONCENTRATION = 0.4  # both parameters of BrainFuse's beta distribution, as in mixup (Zhang et al., ICLR 2018)
CASCADE = (1, 2, 4, 2, 1)  # images in a sum, each for the same share of a run


def mix(batch: Batch, tasks: dict[str, Task], mode: Mix, progress: float) -> Batch:
    """Return a batch of mixed images, by random numbers from torch's default generator.

    * ``brainfuse``: ``l x_1 + (1 - l) x_2`` with one random l for a batch. BrainFuse (Simionescu, arXiv 2510.23325)
      interpolates between volumes of the brain; the distribution of l and its use for all images are our design.
    * ``cascade``: the mean of k images. Cascading Sum Augmentation (Simionescu, Herscovici, Pascaru, BMVC 2019, by
      their public repository) halves k from 8 or 4 to 1 whenever training stops to improve. Here k first grows, and
      changes at fixed shares of a run, so that all sites of a federation agree on it (our design, :data:`CASCADE`).

    Args:
        batch: a batch on the CPU; it is not modified.
        tasks: tasks by name.
        mode: see above; ``none`` returns the batch itself and draws nothing.
        progress: the share of the run that is over, from 0 to 1.
    """
    weights = _weights(mode, progress)
    if len(weights) == 1:
        return batch
    groups = _groups(batch, tasks)
    if not groups:
        return batch
    partners = _partners(len(batch.images), groups, len(weights))
    mixed = (partners[0] != partners[1]).nonzero().squeeze(1)
    images = batch.images.clone()
    images[mixed] = sum(weight * batch.images[rows[mixed]] for weight, rows in zip(weights, partners, strict=True))
    labels = {
        task: own if tasks[task].spec.every_image else _mix_labels(own, weights, partners)
        for task, own in batch.labels.items()
    }
    return replace(batch, images=images, labels=labels)


def images_in_sum(progress: float) -> int:
    """Return how many images Cascading Sum Augmentation adds up when a share of the run is over."""
    return CASCADE[min(int(progress * len(CASCADE)), len(CASCADE) - 1)]


def _weights(mode: Mix, progress: float) -> list[float]:
    """Return the weight of each image in a mixed image."""
    if mode == "none":
        return [1.0]
    if mode == "cascade":
        count = images_in_sum(progress)
        return [1 / count] * count
    share = float(torch.distributions.Beta(CONCENTRATION, CONCENTRATION).sample())
    return [share, 1 - share]


def _partners(images: int, groups: list[Tensor], count: int) -> list[Tensor]:
    """Return the images that each image is mixed from, ``count`` times (B,); the first is the image itself.

    In a random cyclic order of the images that may be mixed, these are the image and the next ones, so each image is in
    equally many mixed images. They repeat if there are fewer than ``count``.
    """
    partners = [torch.arange(images) for _ in range(count)]
    for rows in groups:
        order = rows[torch.randperm(len(rows))]
        for step in range(1, count):
            partners[step][order] = order.roll(-step)
    return partners


def _groups(batch: Batch, tasks: dict[str, Task]) -> list[Tensor]:
    """Return the images that may be mixed with each other, in groups of at least two."""
    has_label = torch.zeros(len(batch.images), len(batch.labels), dtype=torch.bool)
    for column, own in enumerate(batch.labels.values()):
        has_label[own.rows, column] = True
    is_pretext = torch.tensor([tasks[task].spec.every_image for task in batch.labels], dtype=torch.bool)
    rows = (has_label.any(1) & ~has_label[:, is_pretext].any(1)).nonzero().squeeze(1)
    keys = has_label.long() if batch.words is None else torch.cat([has_label.long(), batch.words], dim=1)
    return [group for group in split_by_key(rows, keys[rows]) if len(group) > 1]


def _mix_labels(labels: Labels, weights: list[float], partners: list[Tensor]) -> Labels:
    """Return the labels of mixed images. Partners have labels of the same tasks."""
    positions = torch.zeros(len(partners[0]), dtype=torch.long)
    positions[labels.rows] = torch.arange(len(labels.rows))
    values = labels.values
    mixture = [(weight, values[positions[rows[labels.rows]]]) for weight, rows in zip(weights, partners, strict=True)]
    return Labels(labels.rows, values, mixture=mixture)
