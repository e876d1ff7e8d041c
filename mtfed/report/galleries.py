"""Test images with labels and predictions on the page: a drawing for each kind of task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ..errors import MtfedError
from ..tasks.task import Task
from .html import Html, count, join, number, tag, task_title
from .metric_format import format_value
from .overlays import CERTAIN, boxes, dose, dose_legend, reconstruction, segmentation, structures, structures_legend
from .pictures import PREDICTED, TRUE, key, picture, ruler
from .records import RunContents, mean

MAX_CLASSES = 5  # listed for an image with several labels, besides the true ones
MAX_NUMBERS = 16  # numbers of a label that are printed if the kind has no drawing

# Task, image (C, H, W), its label and what is shown of its prediction -> picture, caption, and a figure.
Draw = Callable[[Task, np.ndarray, np.ndarray, np.ndarray], tuple[Html, Html, float]]


@dataclass(frozen=True)
class Gallery:
    """How the test images of a kind of task are drawn."""

    draw: Draw
    summary: Callable[[Task, Sequence[float]], str]  # text about the images' figures
    legend: Callable[[Task], list[Html]]
    size: str = ""  # size of the pictures: small if empty, "large" or "wide"


def examples(run: RunContents) -> Html:
    """Return the recorded test images of every task of a run, or nothing if there are none."""
    arrays = read_examples(run.folder / "examples.npz") if run.finished else {}
    tasks = [task for name, task in run.config.tasks.items() if f"{name}.shown" in arrays]
    return join(_gallery(task, arrays, run.config.form_of(task.name).size) for task in tasks)


def read_examples(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of ``examples.npz``, none if there is no such file."""
    if not path.exists():
        return {}
    try:
        with np.load(path) as file:
            return dict(file)
    except (OSError, ValueError, BadZipFile) as error:
        raise MtfedError(f"{path} cannot be read; the run folder is damaged: {error}.") from None


def _gallery(task: Task, arrays: dict[str, np.ndarray], depth: int) -> Html:
    gallery = GALLERIES.get(task.spec.gallery or task.kind, PLAIN)
    images, labels, shown = (arrays[f"{task.name}.{part}"] for part in ("images", "labels", "shown"))
    slices = arrays.get(f"{task.name}.slices")
    figures, results = [], []
    for i in range(len(images)):
        drawing, caption, result = gallery.draw(task, images[i], labels[i], shown[i])
        position = tag("div", f"slice {slices[i] + 1} of {depth}", class_="note") if slices is not None else ""
        figures.append(tag("figure", drawing, tag("figcaption", caption, position)))
        results.append(result)
    title = tag("h3", f"{task_title(task.name)}: {gallery.summary(task, results)}")
    legend = tag("ul", *gallery.legend(task), class_="legend")
    return join([title, legend, tag("div", *figures, class_=f"images {gallery.size}".rstrip())])


def classification(task: Task, image: np.ndarray, true: np.ndarray, shown: np.ndarray) -> tuple[Html, Html, float]:
    """Draw the class with the highest probability, of probabilities (K,)."""
    return _class(task, image, int(true), int(shown.argmax()), shown)


def ordinal(task: Task, image: np.ndarray, true: np.ndarray, shown: np.ndarray) -> tuple[Html, Html, float]:
    """Draw the highest class that is reached with a probability over one half, of probabilities (K,) in order."""
    above = shown[::-1].astype(float).cumsum()[::-1][1:]  # (K - 1,) P(class > k)
    predicted = int((above > 0.5).sum())
    drawing, caption, _ = _class(task, image, int(true), predicted, shown)
    distance = abs(predicted - int(true))
    note = tag("div", f"off by {count(distance, 'class')}") if distance else ""
    return drawing, join([caption, note]), float(distance)


def _class(task: Task, image: np.ndarray, true: int, predicted: int, shown: np.ndarray) -> tuple[Html, Html, float]:
    is_right = predicted == true
    lines = [task.classes[predicted], f"probability {number(float(shown[predicted]))}", f"true: {task.classes[true]}"]
    verdict = tag("span", f"{'✓' if is_right else '✗'} {lines[0]}", class_="right" if is_right else "wrong")
    drawing = picture(image, f"Test image, predicted: {', '.join(lines)}")
    return drawing, join([verdict, *(tag("div", line) for line in lines[1:])]), float(is_right)


def labels(task: Task, image: np.ndarray, true: np.ndarray, shown: np.ndarray) -> tuple[Html, Html, float]:
    """List the true classes and the most probable ones; labels (K,) are 1, 0, and -1 if not known."""
    order = np.argsort(-shown, kind="stable")
    listed = [k for i, k in enumerate(order) if i < MAX_CLASSES or true[k] == 1]
    is_right = [(shown[k] > 0.5) == (true[k] == 1) for k in range(len(true)) if true[k] >= 0]
    rows = [_label(task.classes[k], int(true[k]), float(shown[k])) for k in listed]
    names = ", ".join(task.classes[k] for k in order if true[k] == 1) or "none"
    return picture(image, f"Test image, true: {names}"), join(rows), mean([float(r) for r in is_right])


def _label(name: str, true: int, probability: float) -> Html:
    """Return a class with its probability: green if it is present and predicted, red if it is judged wrong."""
    predicted = probability > 0.5
    verdict = "" if true < 0 or predicted == true == 0 else "right" if predicted == bool(true) else "wrong"
    mark = {1: "●", 0: "○", -1: "?"}[true]
    return tag("div", f"{mark} {name} {probability:.2f}", class_=verdict or "plain")


def regression(task: Task, image: np.ndarray, true: np.ndarray, shown: np.ndarray) -> tuple[Html, Html, float]:
    """Draw predicted and true numbers (K,), NaN if the true number is not known."""
    parts, descriptions, (low, high) = [], [], task.range
    for name, value, predicted in zip(task.classes, true.astype(float), shown.astype(float), strict=True):
        figures = [format_value(number, task, "mae") for number in (predicted, value)]
        descriptions.append(f"{name} {figures[0]}, true: {figures[1]}")
        parts.append(tag("div", tag("strong", figures[0]), f" {name}, true: {figures[1]}"))
        if np.isfinite(value):
            parts.append(ruler(low, high, value, predicted))
    known = np.isfinite(true)
    error = float(np.abs(shown - true)[known].mean()) if known.any() else float("nan")
    return picture(image, f"Test image, predicted: {'; '.join(descriptions)}"), join(parts), error


def plain(task: Task, image: np.ndarray, true: np.ndarray, shown: np.ndarray) -> tuple[Html, Html, float]:
    """Print label and prediction below the image."""
    with np.printoptions(precision=3, threshold=MAX_NUMBERS, edgeitems=2, suppress=True):
        lines = [f"predicted: {shown}", f"true: {true}"]
    return picture(image, "Test image, " + ", ".join(lines)), join(tag("div", line) for line in lines), float("nan")


def _right_count(task: Task, results: Sequence[float]) -> str:
    return f"{int(sum(results))} of these {len(results)} right"


def _mean_dice(task: Task, results: Sequence[float]) -> str:
    return f"Dice {number(_finite_mean(results))} over these {len(results)}"


def _finite_mean(results: Sequence[float]) -> float:
    return mean([result for result in results if np.isfinite(result)])


def _outlines(task: Task) -> list[Html]:
    return [key("true outline", *TRUE), key("predicted outline", *PREDICTED)]


def _note(sentence: str) -> Callable[[Task], list[Html]]:
    return lambda task: [tag("li", sentence, class_="note")]


_ONE_CLASS = _note("The predicted class, ✓ right or ✗ wrong, its probability, and the true class.")
GALLERIES = {
    "classification": Gallery(classification, _right_count, _ONE_CLASS),
    "ordinal": Gallery(
        ordinal,
        lambda task, distances: f"{sum(not steps for steps in distances)} of these {len(distances)} right",
        _ONE_CLASS,
    ),
    "multi-label": Gallery(
        labels,
        lambda task, shares: f"{number(_finite_mean(shares))} of the labels of these {len(shares)} right",
        _note(
            "The most probable classes, and the true ones, with their probabilities: ● present, ○ absent, ? not known; "
            "judged right above or below 0.5."
        ),
    ),
    "segmentation": Gallery(segmentation, _mean_dice, _outlines, "large"),
    "multi-label-segmentation": Gallery(structures, _mean_dice, structures_legend, "large"),
    "detection": Gallery(
        boxes,
        lambda task, hits: f"{count(int(sum(hits)), 'box')} found in these {len(hits)}",
        lambda task: [
            key("true box", *TRUE),
            key("predicted box, with its class and score", *PREDICTED),
            tag("li", f"with a score of at least {CERTAIN}, or else the highest one, pale", class_="note"),
        ],
        "large",
    ),
    "regression": Gallery(
        regression,
        lambda task, errors: (
            f"mean absolute error {format_value(_finite_mean(errors), task, 'mae')} over these {len(errors)}"
        ),
        lambda task: [
            tag("li", tag("span", "●", class_="predicted"), " predicted"),
            tag("li", tag("span", "○", class_="true"), " true"),
            tag("li", f"on a scale from {task.range[0]:g} to {task.range[1]:g}", class_="note"),
        ],
    ),
    "dose": Gallery(
        dose,
        lambda task, scores: (
            f"dose score {format_value(_finite_mean(scores), task, 'dose-score')} Gy over these {len(scores)}"
        ),
        dose_legend,
        "wide",
    ),
    "reconstruction": Gallery(
        reconstruction,
        lambda task, shares: f"R² {number(_finite_mean(shares))} over these {len(shares)}",
        _note("The image, what the model sees of it, and the masked patches as the model fills them."),
        "wide",
    ),
}
PLAIN = Gallery(plain, lambda task, results: count(len(results), "image"), _note("The prediction and the true label."))


def register_gallery(name: str, gallery: Gallery) -> None:
    """Make a drawing available to the kind of task of this name, and to the kinds whose spec names it.

    Raises:
        MtfedError: if the name is taken.
    """
    if name in GALLERIES:
        raise MtfedError(f"Expected a new name for a gallery, got {name!r}, which exists; choose another.")
    GALLERIES[name] = gallery
