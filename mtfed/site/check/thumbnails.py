"""Single images of a site on its page, with the masks and boxes that lie over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np

from ...data.source import Source
from ...errors import MtfedError
from ...report.html import Html, escape, tag
from ...report.pictures import BRIGHT, data_uri
from ...tasks.kind import kind_of
from ...tasks.specs import KIND_SPECS
from ...tasks.task import Task
from .survey import Survey

SIDE = {2: 192, 3: 96}  # of a picture on the page, in pixels
COVER = 0.28  # of a mask's colour within it; its edge is all colour
MARKING = ("segmentation", "multi-label-segmentation", "detection")


def shown(survey: Survey, number: int, labels: bool = True) -> Html:
    """Return an image of a row, of a volume a slice, with what its labels mark; empty if it cannot be read again."""
    row, config = survey.rows[number], survey.config
    found = survey.examined[number]
    source = Source(
        survey.data, row.image, SIDE[config.dimensions], config.dimensions, config.window_ends, config.proportions
    )
    try:
        image = source.pixels(3 if "colour" in found.kind else 1)
        marks = _marks(survey, number, source) if labels else {}
    except MtfedError:
        return escape("")
    masks = {name: values for name, values in marks.items() if KIND_SPECS[config.tasks[name].kind].geometry == "map"}
    boxes = {name: values for name, values in marks.items() if name not in masks}
    level = _slice(image, masks)
    if config.dimensions == 3:
        image = image[:, level]
        masks = {name: values[:, level] for name, values in masks.items()}
    colours = palette(config.tasks)
    for name, structures in masks.items():
        for mask, colour in zip(structures, colours[name].values(), strict=True):
            image = tint(image, mask, colour)
    drawn = [
        _box(box, list(colours[name].values()), level, config.dimensions)
        for name, values in boxes.items() for box in values
    ]  # fmt: skip
    side = image.shape[-1]
    picture = tag("image", href=data_uri(image), width=side, height=side)
    return tag("svg", picture, *drawn, viewBox=f"0 0 {side} {side}", role="img", aria_label=f"Image {row.image}")


def palette(tasks: Mapping[str, Task]) -> dict[str, dict[str, str]]:
    """Return a colour for every structure of the tasks that mark something in an image."""
    drawn: dict[str, dict[str, str]] = {}
    colours = cycle(BRIGHT)
    for task in tasks.values():
        if task.kind in MARKING:
            drawn[task.name] = dict(zip(task.classes[task.kind == "segmentation" :], colours, strict=False))
    return drawn


def _marks(survey: Survey, number: int, source: Source) -> dict[str, np.ndarray]:
    """Return the masks (K, *S) bool and boxes (N, 2d + 1) of an image's sound labels, by task."""
    marks = {}
    for name, cell in survey.rows[number].labels.items():
        task, label = survey.config.tasks[name], survey.examined[number].labels[name]
        if label.fault or task.kind not in MARKING:
            continue
        values = kind_of(task).read(cell, task, source)
        if task.kind == "segmentation":
            values = np.stack([values == k for k in range(1, len(task.classes))])
        elif task.kind == "multi-label-segmentation":
            values = values == 1
        marks[name] = values
    return marks


def _slice(image: np.ndarray, masks: dict[str, np.ndarray]) -> int:
    """Return the slice of a volume that shows most: that is marked most, else the middle one."""
    marked = sum((values.any(0).sum((1, 2)) for values in masks.values() if values.ndim == 4), np.zeros(1))
    return int(np.argmax(marked)) if np.any(marked) else image.shape[1] // 2


def tint(image: np.ndarray, mask: np.ndarray, colour: str) -> np.ndarray:
    """Return an image (C, H, W) as (3, H, W), coloured within a mask (H, W), and at its edge in full."""
    painted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32)[:, None, None]
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    cover = np.where(mask & ~inside, 1.0, COVER * mask)[None]
    under = np.broadcast_to(image, (3, *image.shape[1:]))
    return np.round(under * (1 - cover) + painted * cover).astype(np.uint8)


def _box(box: np.ndarray, colours: Sequence[str], level: int, dimensions: int) -> Html:
    """Return a box (2d + 1) over a picture; of a volume, if it reaches the slice."""
    corner, size, kind = box[:dimensions], box[dimensions : 2 * dimensions], int(box[-1])
    if dimensions == 3 and not corner[2] <= level < corner[2] + size[2]:
        return escape("")
    at = dict(zip(("x", "y", "width", "height"), (f"{n:.1f}" for n in (*corner[:2], *size[:2])), strict=True))
    return tag("rect", **at, stroke=colours[kind], stroke_width=1.6, class_="outline")
