"""The kinds of images that a model treats differently: their dimensions, modality and body part."""

from __future__ import annotations

from collections.abc import Iterable

from ..config import Config
from .manifest import Row
from .vocabulary import words_of


def image_kinds(rows: Iterable[Row], config: Config) -> set[str]:
    """Return the kinds of the images of some labelled rows: ``2d`` or ``3d``, and the words of modality and body part.

    They are the names of the input parts that these images pass through (:func:`mtfed.strategies.wire.input_part`).
    """
    dimensions = {name: f"{task.dimensions}d" for name, task in config.tasks.items()}
    return {name for row in rows for name in (dimensions[next(iter(row.labels))], *words_of(row.others))}
