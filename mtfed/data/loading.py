"""From the rows of a site to a shard: the images and labels of one split, decoded or from the cache."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..config import Config
from ..errors import MtfedError
from .cache import open_store
from .decoding import channel_sums
from .every_image import EVERY_IMAGE
from .feature_shift import shift
from .manifest import Row, SiteData, check_patients
from .shard import Labels, MixedShard, Normalisation, Shard
from .store import SITE, Store
from .vocabulary import BODY_PARTS, MODALITIES, words_of

CHUNK = 16  # images that are shifted at a time
log = logging.getLogger("mtfed.data")


def load_shard(
    data: SiteData, config: Config, split: str | None = None, normalisation: Normalisation | None = None
) -> Shard:
    """Return the labelled images of one split of a site; a :class:`.shard.MixedShard` if they have several forms.

    This is the only way from a manifest to batches, and therefore the place that keeps splits apart: no patient is in
    two of them, and images are normalised with images of their own split only, a site's validation images with its
    training images, or as a pretrained encoder expects.

    Args:
        data: all rows of the site, or the rows of one split.
        config: the run's config.
        split: the split to load; by default the one that all rows belong to.
        normalisation: that of the config's encoder (:func:`mtfed.models.normalisation.encoder_normalisation`), which is
            needed if the config normalises by it.

    Raises:
        ValueError: if the config normalises by the encoder and no normalisation is given, or the other way round.
        MtfedError: if a patient is in two splits, if ``split`` is missing, or if more images than ``max-unreadable``
            cannot be read.
    """
    if (normalisation is None) == (config.normalise == "encoder"):
        given = "none" if normalisation is None else "one"
        raise ValueError(
            f"Expected the encoder's normalisation if and only if normalise is 'encoder', got {given} with "
            f"{config.normalise!r}; pass encoder_normalisation(config) of mtfed.models.normalisation."
        )
    split_of = {row.patient: row.split for row in data.rows}
    if any(split_of[row.patient] != row.split for row in data.rows):
        check_patients(data.rows, f"Site {data.key}")  # raises an error that names the patient
    splits = sorted({row.split for row in data.rows})
    if split is None and len(splits) > 1:
        raise MtfedError(f"Expected one split of site {data.key}, got {' and '.join(splits)}; choose one.")
    split = split or next(iter(splits), "train")
    of_split = labelled_rows(data, split)
    train_rows = labelled_rows(data, "train") if config.normalise == "site" and split == "val" else []
    shards = []
    for form in config.forms:
        own = config.with_form(form)
        rows, own_train_rows = ([row for row in part if is_of(row, own)] for part in (of_split, train_rows))
        if rows:
            shards.append(_load_form(data, own, rows, own_train_rows, normalisation))
    return MixedShard.of(shards)


def is_of(row: Row, config: Config) -> bool:
    """Return whether a row has a label of a config's tasks.

    Raises:
        MtfedError: if it also has labels of other tasks, whose images have another dimensionality.
    """
    count = sum(task in config.tasks for task in row.labels)
    if 0 < count < len(row.labels):
        tasks = sorted(row.labels, key=lambda task: task not in config.tasks)
        raise MtfedError(
            f"Image {row.image} has labels of {tasks[0]}, which is a task of {config.dimensions} dimensions, and of "
            f"{tasks[-1]}, which is not; correct task.{tasks[-1]}.dimensions, or remove one of the labels."
        )
    return count > 0


def _load_form(
    data: SiteData, config: Config, rows: list[Row], train_rows: list[Row], normalisation: Normalisation | None
) -> Shard:
    """Return a shard of rows whose images have the config's form.

    ``train_rows`` are the rows that validation images are normalised by, if the config normalises by site;
    ``normalisation`` is the encoder's, if it normalises by that.
    """
    by_site, split = config.normalise == "site", rows[0].split
    if by_site and split == "val" and not train_rows:
        raise MtfedError(
            f"Config key normalise: site {data.key} has no training image that its validation images can be normalised "
            'by; use "image".'
        )
    store, positions = open_store(data, config, [*rows, *train_rows])
    train_positions, train_rows = _readable(positions[len(rows) :], train_rows, store, data, config)
    positions, rows = _readable(positions[: len(rows)], rows, store, data, config)
    labels = _labels(positions, rows, store, config)
    words = word_indices(rows)
    pixels = config.image_size**config.dimensions
    if data.scanners is None:
        if by_site and rows:
            normalisation = Normalisation.of(store.sums[train_positions if train_rows else positions], pixels)
        return Shard(store.images, labels, positions, normalisation, words)
    images = _shift_images(positions, rows, store, data)
    train_images = _shift_images(train_positions, train_rows, store, data) if train_rows else images
    if by_site and rows:
        normalisation = Normalisation.of(torch.stack([channel_sums(image) for image in train_images]), pixels)
    return Shard(images, labels, normalisation=normalisation, words=words)


def labelled_rows(data: SiteData, split: str) -> list[Row]:
    """Return the rows of a split that have a label; refuse rows that differ from those in the site's pool.

    Labels of tasks that are trained on every image are not in the pool.
    """
    rows = [row for row in data.rows if row.labels and row.split == split]
    for row in rows if data.pool else ():
        of_pool = data.pool[row.number] if row.number < len(data.pool) else None
        labels = {task: cell for task, cell in row.labels.items() if cell != EVERY_IMAGE}
        if of_pool is None or of_pool.image != row.image or not labels.items() <= of_pool.labels.items():
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
        if len(labelled) and config.tasks[name].spec.every_image:
            labels[name] = Labels(labelled, torch.zeros(len(labelled), dtype=torch.uint8))
        elif len(labelled):
            stored = store.labels[name]
            index = stored.positions[positions[labelled]].long()
            ragged = stored.lengths is not None
            labels[name] = Labels(labelled, stored.take(index)) if ragged else Labels(labelled, stored.values, index)
    return labels


def word_indices(rows: list[Row]) -> Tensor:
    """Return the indices of the modality and the body part of each row's image, (M, 2)."""
    modalities, body_parts = (list(table).index for table in (MODALITIES, BODY_PARTS))
    words = {}  # by the identity of the mapping, which many rows share
    for row in rows:
        if id(row.others) not in words:
            modality, body_part = words_of(row.others)
            words[id(row.others)] = modalities(modality), body_parts(body_part)
    return torch.tensor([words[id(row.others)] for row in rows], dtype=torch.long).reshape(-1, 2)
