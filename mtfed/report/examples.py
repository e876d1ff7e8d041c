"""What a model makes of single test images: outlines over the image, or the class and its probability."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ..errors import MtfedError
from ..tasks import Task
from .html import Html, escape, join, number, tag, task_title
from .records import Record, mean

# Colour and width of the outlines: apart for the colour-blind, bright on an X-ray, both seen where they agree.
TRUE, PREDICTED = ("#56b4e9", 3.4), ("#ffb000", 1.8)
LONGEST = 256  # pixels of an image's side on the page


def examples(record: Record) -> Html:
    """Return the kept test images of every task of a run, or nothing if it kept none."""
    kept = read_examples(record.folder / "examples.npz") if record.finished else {}
    parts = []
    for name, task in record.config.tasks.items():
        if f"{name}.images" in kept:
            arrays = [kept[f"{name}.{part}"] for part in ("images", "labels", "scores")]
            parts.append((_masks if task.kind == "segmentation" else _classes)(task, *arrays))
    return join(parts)


def read_examples(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of ``examples.npz``, none if there is no such file."""
    if not path.exists():
        return {}
    try:
        with np.load(path) as file:
            return dict(file)
    except (OSError, ValueError, BadZipFile) as error:
        raise MtfedError(f"{path} cannot be read; the run folder is damaged: {error}.") from None


def dice(predicted: np.ndarray, true: np.ndarray, classes: int) -> float:
    """Return an image's Dice, the mean over the structures; one that is not there counts 1 if none is predicted."""
    overlaps = []
    for k in range(1, classes):
        sizes = np.sum(predicted == k) + np.sum(true == k)
        overlaps.append(2 * np.sum((predicted == k) & (true == k)) / sizes if sizes else 1.0)
    return float(np.mean(overlaps))


def outline(labels: np.ndarray, classes: int) -> str:
    """Return the borders of all structures as an SVG path in pixels."""
    from contourpy import contour_generator

    path = []
    for k in range(1, classes):
        inside = np.pad(labels == k, 1).astype(float)  # closed where it meets the image's edge
        for line in contour_generator(z=inside).lines(0.5):
            path.append("M" + " ".join(f"{x - 0.5:g},{y - 0.5:g}" for x, y in np.asarray(line)[:-1]) + "Z")
    return "".join(path)


def data_uri(image: np.ndarray) -> str:
    """Return an image (C, H, W) for a page that loads nothing: exact if it is small, else compressed."""
    from PIL import Image

    written = io.BytesIO()
    kind = "PNG" if max(image.shape) <= 128 else "JPEG"
    Image.fromarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)).save(written, kind, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(written.getvalue()).decode()}"


def _masks(task: Task, images: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> Html:
    """Return images with both outlines, the Dice of each beneath."""
    figures, overlaps, classes = [], [], len(task.classes)
    for image, true, predicted in zip(images, labels, scores.argmax(1), strict=True):
        overlaps.append(dice(predicted, true, classes))
        step = math.ceil(max(image.shape) / LONGEST)
        lines = [
            tag("path", d=outline(mask[::step, ::step], classes), class_="outline", stroke=colour, stroke_width=width)
            for mask, (colour, width) in ((true, TRUE), (predicted, PREDICTED))
        ]
        said = f"Dice {number(overlaps[-1])}"
        drawn = _picture(image[:, ::step, ::step], f"Test image with true and predicted outline, {said}", *lines)
        figures.append(tag("figure", drawn, tag("figcaption", said)))
    legend = tag("ul", _key(*TRUE, "true outline"), _key(*PREDICTED, "predicted outline"), class_="legend")
    heading = tag("h3", f"{task_title(task.name)}: Dice {number(mean(overlaps))} over these {len(labels)}")
    return join([heading, legend, tag("div", *figures, class_="images large")])


def _classes(task: Task, images: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> Html:
    """Return images with the predicted class and its probability beneath, and the true class."""
    figures, predictions = [], scores.argmax(1)
    for image, true, predicted, score in zip(images, labels, predictions, scores.astype(float), strict=True):
        step = math.ceil(max(image.shape) / LONGEST)
        right = predicted == true
        said = [task.classes[predicted], f"probability {number(score[predicted])}", f"true: {task.classes[true]}"]
        mark = tag("span", f"{'✓' if right else '✗'} {said[0]}", class_="right" if right else "wrong")
        drawn = _picture(image[:, ::step, ::step], f"Test image, predicted: {', '.join(said)}")
        figures.append(tag("figure", drawn, tag("figcaption", mark, *(tag("div", line) for line in said[1:]))))
    hits = int(np.sum(predictions == labels))
    heading = tag("h3", f"{task_title(task.name)}: {hits} of these {len(labels)} right")
    note = tag("p", "The predicted class, ✓ right or ✗ wrong, its probability, and the true class.", class_="note")
    return join([heading, note, tag("div", *figures, class_="images")])


def _picture(image: np.ndarray, alt: str, *over: Html) -> Html:
    _, height, width = image.shape
    drawn = tag("image", href=data_uri(image), width=width, height=height)
    return tag("svg", drawn, *over, viewBox=f"0 0 {width} {height}", role="img", aria_label=alt)


def _key(colour: str, width: float, label: str) -> Html:
    back = tag("rect", width=26, height=10, fill="#333")
    line = tag("line", x1=2, x2=24, y1=5, y2=5, stroke=colour, stroke_width=width)
    return tag("li", tag("svg", back, line, viewBox="0 0 26 10", aria_hidden="true"), escape(label))
