"""The kinds of images that a model treats differently: their dimensions, modality and body part."""

from __future__ import annotations

from collections.abc import Iterable

from ..config import Config
from .manifest import Row
from .vocabulary import words_of


def image_kinds(rows: Iterable[Row], config: Config) -> set[str]:
    """Return the kinds of the images of some rows: ``2d`` or ``3d``, and the words of their modality and body part.

    They are the names of the input parts that these images pass through (:func:`mtfed.strategies.wire.input_part`).
    """
    return {name for row in rows for name in (f"{config.dimensions}d", *words_of(row.others))}
