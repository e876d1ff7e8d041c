"""Labels and predictions drawn over the test images: outlines, boxes and doses."""

from __future__ import annotations

import numpy as np

from ..tasks.task import Task
from .html import Html, escape, join, number, tag
from .metric_format import format_value
from .pictures import BRIGHT, PREDICTED, TRUE, border, colour_bar, key, picture, pictures, step_of, wash
from .records import mean

MAX_OUTLINES = 6  # structures outlined in an image
CERTAIN = 0.3  # the score at and above which a box counts as predicted here


def segmentation(task: Task, image: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> tuple[Html, Html, float]:
    """Draw masks (H, W) of class indices."""
    step, classes = step_of(image), len(task.classes)
    overlap = dice(predicted, true, classes)
    lines = [border(true, step, *TRUE, classes), border(predicted, step, *PREDICTED, classes)]
    caption = f"Dice {number(overlap)}"
    if not true.any():
        caption = "none there, some predicted" if predicted.any() else "none there, none predicted"
    return picture(image, f"Test image with true and predicted outline, {caption}", *lines), escape(caption), overlap


def structures(task: Task, image: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> tuple[Html, Html, float]:
    """Draw masks (K, H, W) of structures: 1 inside; in a true mask, 255 if the structure is not marked."""
    marked = [k for k in range(len(true)) if not (true[k] == 255).any()]
    overlap = mean([dice(predicted[k], true[k], 2) for k in marked])
    sizes = {k: int(np.sum((true[k] == 1) | (predicted[k] == 1))) for k in marked}
    drawn = sorted(sorted(sizes, key=lambda k: -sizes[k])[:MAX_OUTLINES])
    step = step_of(image)
    lines = [border(true[k], step, _colour(k), *TRUE[1:]) for k in drawn]
    lines += [border(predicted[k], step, _colour(k), *PREDICTED[1:]) for k in drawn]
    caption = f"Dice {number(overlap)}"
    names = ", ".join(task.classes[k] for k in drawn if sizes[k])
    alt = f"Test image with true and predicted outlines of {names or 'no structure'}, {caption}"
    return picture(image, alt, *lines), escape(caption), overlap


def structures_legend(task: Task) -> list[Html]:
    """Return the meaning of dashes, and a colour for every structure."""
    keys = [key("true outline", "#fff", *TRUE[1:]), key("predicted outline", "#fff", *PREDICTED[1:])]
    keys += [key(name, _colour(k), 3) for k, name in enumerate(task.classes)]
    is_complete = len(task.classes) <= MAX_OUTLINES
    return keys if is_complete else [*keys, tag("li", f"at most the {MAX_OUTLINES} largest structures of an image")]


def boxes(task: Task, image: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> tuple[Html, Html, float]:
    """Draw true boxes (N, x y w h class) and predicted ones (P, x y w h class score); class -1 is padding."""
    true, predicted = true[true[:, -1] >= 0], predicted[predicted[:, 4] >= 0]
    certain = predicted[predicted[:, 5] >= CERTAIN]
    hits = count_hits(certain, true)
    missed, false = len(true) - hits, len(certain) - hits
    step = step_of(image)
    width = image.shape[2] / step
    drawn = [_box(box / step, TRUE, width) for box in true[:, :4]]
    for box in certain if len(certain) or not len(true) else predicted[:1]:
        opacity = 1.0 if box[5] >= CERTAIN else 0.5
        drawn.append(_box(box[:4] / step, PREDICTED, width, f"{task.classes[int(box[4])]} {box[5]:.2f}", opacity))
    names = ", ".join(dict.fromkeys(task.classes[int(k)] for k in true[:, -1])) or "none"
    parts = [f"{hits} of {len(true)} found" if len(true) else "nothing to find", *([f"{false} false"] if false else [])]
    alt = f"Test image with true and predicted boxes, {', '.join(parts)}"
    lines = [tag("div", ", ".join(parts), class_="wrong" if missed or false else "right"), tag("div", f"true: {names}")]
    return picture(image, alt, *drawn), join(lines), float(hits)


def count_hits(predicted: np.ndarray, true: np.ndarray) -> int:
    """Return how many predicted boxes (P, x y w h class score) hit a true one (N, x y w h class).

    From the highest score down, a box hits the object of its class with which it has the largest intersection over
    union, at least one half, among those that no earlier box has hit.
    """
    free, hits = np.ones(len(true), bool), 0
    for box in predicted[np.argsort(-predicted[:, 5], kind="stable")]:
        low = np.maximum(box[:2], true[:, :2])
        high = np.minimum(box[:2] + box[2:4], true[:, :2] + true[:, 2:4])
        shared = np.clip(high - low, 0, None).prod(1)
        overlap = shared / np.maximum(box[2:4].prod() + true[:, 2:4].prod(1) - shared, 1e-9)
        overlap = np.where(free & (true[:, 4] == box[4]), overlap, 0)
        if len(true) and overlap.max() >= 0.5:
            free[overlap.argmax()] = False
            hits += 1
    return hits


def dose(task: Task, image: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> tuple[Html, Html, float]:
    """Draw doses (H, W) in Gy side by side, the true one first; it is NaN where no dose is possible."""
    low, high = task.range
    true, predicted = true.astype(np.float32), predicted.astype(np.float32)
    predicted = np.where(np.isnan(true), np.nan, predicted)
    known = np.isfinite(true)
    score = float(np.abs(predicted - true)[known].mean()) if known.any() else float("nan")
    washed = [wash(image, (values - low) / (high - low)) for values in (true, predicted)]
    figure = format_value(score, task, "dose-score")
    drawn = pictures(washed, f"Test image under the true dose and, on the right, the predicted dose, {figure} Gy apart")
    maxima = [np.nanmax(values) if known.any() else np.nan for values in (true, predicted)]
    lines = [f"Dose score {figure} Gy", f"up to {number(maxima[0], 1)} Gy, predicted {number(maxima[1], 1)} Gy"]
    return drawn, join(tag("div", line) for line in lines), score


def dose_legend(task: Task) -> list[Html]:
    """Return the scale of the colours."""
    low, high = task.range
    return [colour_bar(low, high, "Gy"), tag("li", "left: true dose"), tag("li", "right: predicted dose")]


def reconstruction(task: Task, image: np.ndarray, true: np.ndarray, shown: np.ndarray) -> tuple[Html, Html, float]:
    """Draw an image, its unmasked part, and its reconstruction, side by side.

    ``true`` (C + 1, H, W) is the image and its mask, ``shown`` (C, H, W) the prediction; both are normalised.
    """
    whole, mask, predicted = true[:-1].astype(np.float32), true[-1:] > 0, shown.astype(np.float32)
    low, width = whole.min(), max(whole.max() - whole.min(), 1e-6)
    drawn = [whole, np.where(mask, 0, whole), np.where(mask, predicted, whole)]
    pixels = [np.round(np.clip((values - low) / width, 0, 1) * 255).astype(np.uint8) for values in drawn]
    masked = np.broadcast_to(mask, whole.shape)
    spread = np.square(whole[masked] - whole[masked].mean()).sum() if masked.any() else 0
    share = float(1 - np.square(predicted - whole)[masked].sum() / spread) if spread > 0 else float("nan")
    figure = f"R² {number(share)}"
    alt = f"Test image, the same with masked patches, and its reconstruction, {figure}"
    return pictures(pixels, alt), escape(figure), share


def dice(predicted: np.ndarray, true: np.ndarray, classes: int) -> float:
    """Return an image's Dice, mean over the structures; an absent structure counts 1 if it is not predicted."""
    overlaps = []
    for k in range(1, classes):
        sizes = np.sum(predicted == k) + np.sum(true == k)
        overlaps.append(2 * np.sum((predicted == k) & (true == k)) / sizes if sizes else 1.0)
    return float(np.mean(overlaps))


def _colour(structure: int) -> str:
    return BRIGHT[structure % len(BRIGHT)]


def _box(box: np.ndarray, line: tuple[str, float, str], width: float, text: str = "", opacity: float = 1.0) -> Html:
    """Return a box over a picture of some width, with a text above it, or inside it if there is no room above."""
    x, y, w, h = (float(number) for number in box)
    colour, stroke, dash = line
    style = {"stroke": colour, "stroke_width": stroke, "stroke_dasharray": dash, "opacity": opacity}
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{w:.1f}", "height": f"{h:.1f}"}
    drawn = tag("rect", **place, **style, class_="outline")
    if not text:
        return drawn
    size = width / 22
    base = y - 0.3 * size if y > 1.3 * size else y + size
    start = max(min(x, width - 0.6 * size * len(text)), 0)  # the approximate width of a letter
    style = {"font_size": f"{size:.1f}", "fill": colour, "opacity": opacity}
    return join([drawn, tag("text", text, x=f"{start:.1f}", y=f"{base:.1f}", **style)])
