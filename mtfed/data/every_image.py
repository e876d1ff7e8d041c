"""Labels for kinds of task that need none: every image of a site has the label :data:`EVERY_IMAGE` for their tasks.

These labels are added after a site is read and divided. They are never part of a manifest, of a store of decoded
images, or of the decision which site holds which task.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..config import Config
from .manifest import Row, SiteData
from .site_file import DIMENSIONS

EVERY_IMAGE = "*"


def label_every_image(data: SiteData, config: Config) -> SiteData:
    """Return a site's data in which every image has a label for the tasks of its dimensionality that need none."""
    pretext = config.pretext_tasks.values()
    if not pretext:
        return data
    every = {n: {task.name: EVERY_IMAGE for task in pretext if task.dimensions == n} for n in (2, 3)}
    rows = (replace(row, labels=row.labels | every[image_dimensions(row, config)]) for row in data.rows)
    return replace(data, rows=tuple(rows), dimensions=config.dimensions)


def image_dimensions(row: Row, config: Config) -> int:
    """Return the dimensions of a row's image, 2 or 3: those of its tasks, or else of its cell, or else of the run."""
    for task in row.labels:
        return config.tasks[task].dimensions
    return int(row.others.get(DIMENSIONS, config.dimensions))


def keep_dimensions(rows: Iterable[Row], withheld: Iterable[Row], config: Config) -> tuple[Row, ...]:
    """Return rows without some of their labels, with a cell for dimensions that only the missing labels determine.

    Args:
        rows: the rows with all their labels.
        withheld: the same rows without some labels.
        config: the run's config.
    """
    completed = []
    for row, own in zip(rows, withheld, strict=True):
        dimensions = image_dimensions(row, config)
        if dimensions != image_dimensions(own, config):
            own = replace(own, others={**own.others, DIMENSIONS: str(dimensions)})
        completed.append(own)
    return tuple(completed)


def without_pretext(rows: Iterable[Row], config: Config) -> list[Row]:
    """Return rows with the labels of their manifest only."""
    pretext = config.pretext_tasks.keys()
    if not pretext:
        return list(rows)
    return [
        replace(row, labels={task: cell for task, cell in row.labels.items() if task not in pretext}) for row in rows
    ]


def decoded_rows(data: SiteData, config: Config) -> list[Row]:
    """Return the rows of a site's pool to decode: those with a label of the config's tasks, which are of one form.

    If some of its tasks need no label, images without a label belong to them.
    """
    every = bool(config.pretext_tasks)
    return [
        row
        for row in data.pool
        if any(task in config.tasks for task in row.labels)
        or (every and not row.labels and int(row.others.get(DIMENSIONS, data.dimensions)) == config.dimensions)
    ]
