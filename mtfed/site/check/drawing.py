"""Draw images of a site for its page, with the masks and boxes of their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np

from ...data.every_image import image_dimensions
from ...data.source import Source
from ...errors import MtfedError
from ...report.html import Html, escape, tag
from ...report.pictures import BRIGHT, data_uri
from ...tasks.kind import kind_of
from ...tasks.task import Task
from .survey import Survey

SIDE = {2: 192, 3: 96}  # pixels of a picture on the page, by the image's dimensions
MASK_OPACITY = 0.28  # inside a mask; its edge is opaque


def draw_image(survey: Survey, number: int) -> Html:
    """Return a row's image, or a slice of its volume, with its masks and boxes; empty if it cannot be read again."""
    row, config = survey.rows[number], survey.config
    examined = survey.examined[number]
    dimensions = image_dimensions(row, config)
    source = Source(survey.data, row.image, SIDE[dimensions], dimensions, config.window_ends, config.proportions)
    try:
        image = source.pixels(3 if "colour" in examined.value_type else 1)
        marks = _marks(survey, number, source)
    except MtfedError:
        return escape("")
    masks = {name: values for name, values in marks.items() if kind_of(config.tasks[name]).masks}
    boxes = {name: values for name, values in marks.items() if name not in masks}
    level = _shown_slice(image, masks)
    if dimensions == 3:
        image = image[:, level]
        masks = {name: values[:, level] for name, values in masks.items()}
    colours = palette(config.tasks)
    for name, structures in masks.items():
        for mask, colour in zip(structures, colours[name].values(), strict=True):
            image = tint(image, mask, colour)
    rectangles = [
        _box(box, list(colours[name].values()), level, dimensions)
        for name, values in boxes.items() for box in values
    ]  # fmt: skip
    side = image.shape[-1]
    picture = tag("image", href=data_uri(image), width=side, height=side)
    return tag("svg", picture, *rectangles, viewBox=f"0 0 {side} {side}", role="img", aria_label=f"Image {row.image}")


def palette(tasks: Mapping[str, Task]) -> dict[str, dict[str, str]]:
    """Return a colour for every structure of the tasks whose labels are drawn on an image."""
    colours = cycle(BRIGHT)
    return {task.name: dict(zip(task.structures, colours, strict=False)) for task in tasks.values() if _is_drawn(task)}


def _is_drawn(task: Task) -> bool:
    """Return whether a task's labels are masks or boxes."""
    return kind_of(task).masks is not None or task.spec.geometry == "boxes"


def _marks(survey: Survey, number: int, source: Source) -> dict[str, np.ndarray]:
    """Return the masks (K, *S) bool and boxes (N, 2d + 1) of an image's labels without a fault, by task."""
    marks = {}
    for name, cell in survey.rows[number].labels.items():
        task = survey.config.tasks[name]
        if _is_drawn(task) and not survey.examined[number].labels[name].fault:
            kind = kind_of(task)
            label = kind.read(cell, task, source)
            marks[name] = kind.masks(label, task) if kind.masks else label
    return marks


def _shown_slice(image: np.ndarray, masks: dict[str, np.ndarray]) -> int:
    """Return the slice of a volume in which most is marked, or the middle one if nothing is."""
    marked = sum((values.any(0).sum((1, 2)) for values in masks.values() if values.ndim == 4), np.zeros(1))
    return int(np.argmax(marked)) if np.any(marked) else image.shape[1] // 2


def tint(image: np.ndarray, mask: np.ndarray, colour: str) -> np.ndarray:
    """Return an image (C, H, W) as (3, H, W), tinted inside a mask (H, W) and fully coloured at the mask's edge."""
    painted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32)[:, None, None]
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    opacity = np.where(mask & ~inside, 1.0, MASK_OPACITY * mask)[None]
    under = np.broadcast_to(image, (3, *image.shape[1:]))
    return np.round(under * (1 - opacity) + painted * opacity).astype(np.uint8)


def _box(box: np.ndarray, colours: Sequence[str], level: int, dimensions: int) -> Html:
    """Return a box (2d + 1) over a picture; a box of a volume is empty if it does not reach the slice."""
    corner, size, index = box[:dimensions], box[dimensions : 2 * dimensions], int(box[-1])
    if dimensions == 3 and not corner[2] <= level < corner[2] + size[2]:
        return escape("")
    place = dict(zip(("x", "y", "width", "height"), (f"{n:.1f}" for n in (*corner[:2], *size[:2])), strict=True))
    return tag("rect", **place, stroke=colours[index], stroke_width=1.6, class_="outline")
