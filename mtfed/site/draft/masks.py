"""Columns of masks that are to be drafted: which mask lies over which image, and what its values seem to mean."""

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

READ = 24  # masks of a column, to see what values they hold
MOST = 64  # classes that a mask's values are taken for; of more it is rather a picture


def mask_columns(
    folder: Path, images: Sequence[str], masks: Sequence[str], dimensions: int
) -> tuple[list[Candidate], list[str]]:
    """Return a column of masks for each structure, and what a person has to decide about the others."""
    pairs = pair_masks(images, masks)
    columns = []
    for structure, cells in pairs.columns.items():
        name = task_name(structure)
        values, refused = _values(folder, list(cells.values()), dimensions)
        highest = max(values, default=0.0)
        classes: tuple[str, ...] = ("background", "foreground" if name == "mask" else name)
        if 1 < highest <= MOST:
            classes = ("background", *(f"class-{value}" for value in range(1, int(highest) + 1)))
        source = f"masks such as {next(iter(cells.values()))}"
        doubt = refused or _doubt(values, classes)
        columns.append(Candidate(name, "segmentation", dict(cells), classes, source=source, doubt=doubt))
    decide = []
    if pairs.alone:
        decide.append(f"{count(len(pairs.alone), 'mask')} without an image beside it, as {pairs.alone[0]}: left out.")
    if pairs.further:
        decide.append(
            f"{count(len(pairs.further), 'further mask')} of an image that has one, as {pairs.further[0]}: left out; "
            "join the masks of an image into one file."
        )
    return columns, decide


def _values(folder: Path, masks: Sequence[str], dimensions: int) -> tuple[list[float], str]:
    """Return the values that some of the masks hold, or why one cannot be read."""
    data = SiteData("this", Root(folder), ())
    held: set[float] = set()
    for mask in masks[:: max(len(masks) // READ, 1)]:
        try:
            values = read_picture(data, mask, "mask", 3 if is_volume_file(mask) else dimensions).values
        except MtfedError as error:
            return [], str(error)
        held |= {float(value) for value in np.unique(values)}
    return sorted(held), ""


def _doubt(values: Sequence[float], classes: Sequence[str]) -> str:
    """Say what a person should look at in masks with some values."""
    white = len(values) <= 2 and values[-1] in WHITE  # 0 and 255, which training understands
    if not white and any(value != round(value) or not 0 <= value <= MOST for value in values):
        examples = ", ".join(f"{value:g}" for value in values[-3:])
        return (
            f"its masks hold values such as {examples}; they have to hold class indices, 0 for the background, 1 for "
            "the first structure, and so on."
        )
    return f"what do its masks mark? Its classes are named {', '.join(classes)} for now."
