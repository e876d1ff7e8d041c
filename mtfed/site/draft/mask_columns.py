"""Draft the columns of masks: which mask belongs to which image, and which classes its values could be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...data.formats import is_volume_file, read_picture
from ...data.manifest import SiteData
from ...data.root import Root
from ...errors import MtfedError
from ...report.html import count
from ...tasks.segmentation import WHITE
from .columns import Candidate
from .names import pair_masks, task_name

MASKS_READ = 24  # about as many masks of a column are read to learn its values
MAX_CLASSES = 64  # the highest value that is taken for a class; an image with higher values is more likely a picture


def mask_columns(
    folder: Path, images: Sequence[str], masks: Sequence[str], dimensions: int
) -> tuple[list[Candidate], list[str]]:
    """Return a column of masks for each structure, and questions for a person about the masks that are left out."""
    pairs = pair_masks(images, masks)
    columns = []
    for structure, cells in pairs.columns.items():
        name = task_name(structure)
        values, error = _mask_values(folder, list(cells.values()), dimensions)
        highest = max(values, default=0.0)
        classes: tuple[str, ...] = ("background", "foreground" if name == "mask" else name)
        if 1 < highest <= MAX_CLASSES:
            classes = ("background", *(f"class-{value}" for value in range(1, int(highest) + 1)))
        source = f"masks such as {next(iter(cells.values()))}"
        question = error or _question(values, classes)
        columns.append(Candidate(name, "segmentation", dict(cells), classes, source=source, doubt=question))
    questions = []
    if pairs.unmatched:
        masks_text = count(len(pairs.unmatched), "mask")
        questions.append(f"{masks_text} without a matching image, such as {pairs.unmatched[0]}: left out.")
    if pairs.extra:
        questions.append(
            f"{count(len(pairs.extra), 'further mask')} of an image that already has one, such as {pairs.extra[0]}: "
            "left out. Merge the masks of an image into one file."
        )
    return columns, questions


def _mask_values(folder: Path, masks: Sequence[str], dimensions: int) -> tuple[list[float], str]:
    """Return the values that occur in some of the masks, or the error that reading one of them raises."""
    data = SiteData("this", Root(folder), ())
    distinct: set[float] = set()
    for mask in masks[:: max(len(masks) // MASKS_READ, 1)]:
        try:
            values = read_picture(data, mask, "mask", 3 if is_volume_file(mask) else dimensions).values
        except MtfedError as error:
            return [], str(error)
        distinct |= {float(value) for value in np.unique(values)}
    return sorted(distinct), ""


def _question(values: Sequence[float], classes: Sequence[str]) -> str:
    """Return what a person should check about masks with these values, given in ascending order."""
    is_black_and_white = len(values) <= 2 and values[-1] in WHITE  # 0 and 255, which training accepts
    if not is_black_and_white and any(value != round(value) or not 0 <= value <= MAX_CLASSES for value in values):
        examples = ", ".join(f"{value:g}" for value in values[-3:])
        return (
            f"its masks contain values such as {examples}. They must contain class indices: 0 for the background, 1 "
            "for the first structure, and so on."
        )
    return f"what do its masks mark? For now, its classes are named {', '.join(classes)}."
