"""What a model makes of single test images: a drawing by kind of task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ..errors import MtfedError
from ..tasks.task import Task
from .figures import written
from .html import Html, count, join, number, tag, task_title
from .overlays import CERTAIN, boxes, dose, dose_legend, segmentation, structures, structures_legend
from .pictures import PREDICTED, TRUE, key, picture, ruler
from .records import Record, mean

LISTED = 5  # classes of an image with several labels
PRINTED = 16  # numbers of a label that are printed without a drawing

# Task, image (C, H, W), its label and what is shown of the prediction -> picture, what is beneath it, and a figure.
Draw = Callable[[Task, np.ndarray, np.ndarray, np.ndarray], tuple[Html, Html, float]]


@dataclass(frozen=True)
class Gallery:
    """How the images of a kind of task are shown."""

    draw: Draw
    summary: Callable[[Task, Sequence[float]], str]  # of the images' figures
    legend: Callable[[Task], list[Html]]
    size: str = ""  # of the pictures: small, "large" or "wide"


def examples(record: Record) -> Html:
    """Return the kept test images of every task of a run, or nothing if it kept none."""
    kept = read_examples(record.folder / "examples.npz") if record.finished else {}
    return join(
        _gallery(task, kept, record.config.image_size)
        for name, task in record.config.tasks.items()
        if f"{name}.shown" in kept
    )


def read_examples(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of ``examples.npz``, none if there is no such file."""
    if not path.exists():
        return {}
    try:
        with np.load(path) as file:
            return dict(file)
    except (OSError, ValueError, BadZipFile) as error:
        raise MtfedError(f"{path} cannot be read; the run folder is damaged: {error}.") from None


def _gallery(task: Task, kept: dict[str, np.ndarray], depth: int) -> Html:
    gallery = GALLERIES.get(task.spec.gallery or task.kind, PLAIN)
    images, labels, shown = (kept[f"{task.name}.{part}"] for part in ("images", "labels", "shown"))
    slices = kept.get(f"{task.name}.slices")
    figures, results = [], []
    for i in range(len(images)):
        drawn, beneath, result = gallery.draw(task, images[i], labels[i], shown[i])
        where = tag("div", f"slice {slices[i] + 1} of {depth}", class_="note") if slices is not None else ""
        figures.append(tag("figure", drawn, tag("figcaption", beneath, where)))
        results.append(result)
    return join(
        [
            tag("h3", f"{task_title(task.name)}: {gallery.summary(task, results)}"),
            tag("ul", *gallery.legend(task), class_="legend"),
            tag("div", *figures, class_=f"images {gallery.size}".rstrip()),
        ]
    )


def classification(task: Task, image: np.ndarray, true: np.ndarray, shown: np.ndarray) -> tuple[Html, Html, float]:
    """Draw the class of the highest probability, (K,)."""
    return _class(task, image, int(true), int(shown.argmax()), shown)


def ordinal(task: Task, image: np.ndarray, true: np.ndarray, shown: np.ndarray) -> tuple[Html, Html, float]:
    """Draw the class that is passed with probability over one half, of probabilities (K,) in the classes' order."""
    above = shown[::-1].astype(float).cumsum()[::-1][1:]  # (K - 1,) P(class > k)
    predicted = int((above > 0.5).sum())
    drawn, beneath, _ = _class(task, image, int(true), predicted, shown)
    off = abs(predicted - int(true))
    told = tag("div", f"off by {count(off, 'class')}") if off else ""
    return drawn, join([beneath, told]), float(off)


def _class(task: Task, image: np.ndarray, true: int, predicted: int, shown: np.ndarray) -> tuple[Html, Html, float]:
    right = predicted == true
    said = [task.classes[predicted], f"probability {number(float(shown[predicted]))}", f"true: {task.classes[true]}"]
    mark = tag("span", f"{'✓' if right else '✗'} {said[0]}", class_="right" if right else "wrong")
    drawn = picture(image, f"Test image, predicted: {', '.join(said)}")
    return drawn, join([mark, *(tag("div", line) for line in said[1:])]), float(right)


def labels(task: Task, image: np.ndarray, true: np.ndarray, shown: np.ndarray) -> tuple[Html, Html, float]:
    """List the true classes and the most probable ones; labels (K,) are 1, 0, and -1 for not known."""
    order = np.argsort(-shown, kind="stable")
    listed = [k for i, k in enumerate(order) if i < LISTED or true[k] == 1]
    right = [(shown[k] > 0.5) == (true[k] == 1) for k in range(len(true)) if true[k] >= 0]
    rows = [_label(task.classes[k], int(true[k]), float(shown[k])) for k in listed]
    said = ", ".join(task.classes[k] for k in order if true[k] == 1) or "none"
    return picture(image, f"Test image, true: {said}"), join(rows), mean([float(r) for r in right])


def _label(name: str, true: int, share: float) -> Html:
    """Return a class with its probability: green if rightly said to be there, red if judged wrong."""
    said = share > 0.5
    kind = "" if true < 0 or said == true == 0 else "right" if said == bool(true) else "wrong"
    mark = {1: "●", 0: "○", -1: "?"}[true]
    return tag("div", f"{mark} {name} {share:.2f}", class_=kind or "plain")


def regression(task: Task, image: np.ndarray, true: np.ndarray, shown: np.ndarray) -> tuple[Html, Html, float]:
    """Draw predicted and true numbers (K,), NaN where the true one is not known."""
    parts, told, (low, high) = [], [], task.range
    for name, value, predicted in zip(task.classes, true.astype(float), shown.astype(float), strict=True):
        figures = [written(number, task, "mae") for number in (predicted, value)]
        told.append(f"{name} {figures[0]}, true: {figures[1]}")
        parts.append(tag("div", tag("strong", figures[0]), f" {name}, true: {figures[1]}"))
        if np.isfinite(value):
            parts.append(ruler(low, high, value, predicted))
    known = np.isfinite(true)
    error = float(np.abs(shown - true)[known].mean()) if known.any() else float("nan")
    return picture(image, f"Test image, predicted: {'; '.join(told)}"), join(parts), error


def plain(task: Task, image: np.ndarray, true: np.ndarray, shown: np.ndarray) -> tuple[Html, Html, float]:
    """Print label and prediction beside the image."""
    with np.printoptions(precision=3, threshold=PRINTED, edgeitems=2, suppress=True):
        lines = [f"predicted: {shown}", f"true: {true}"]
    return picture(image, "Test image, " + ", ".join(lines)), join(tag("div", line) for line in lines), float("nan")


def _hits(task: Task, results: Sequence[float]) -> str:
    return f"{int(sum(results))} of these {len(results)} right"


def _dice(task: Task, results: Sequence[float]) -> str:
    return f"Dice {number(_mean(results))} over these {len(results)}"


def _mean(results: Sequence[float]) -> float:
    return mean([result for result in results if np.isfinite(result)])


def _outlines(task: Task) -> list[Html]:
    return [key("true outline", *TRUE), key("predicted outline", *PREDICTED)]


def _said(sentence: str) -> Callable[[Task], list[Html]]:
    return lambda task: [tag("li", sentence, class_="note")]


GALLERIES = {
    "classification": Gallery(
        classification, _hits, _said("The predicted class, ✓ right or ✗ wrong, its probability, and the true class.")
    ),
    "ordinal": Gallery(
        ordinal,
        lambda task, off: f"{sum(not steps for steps in off)} of these {len(off)} right",
        _said("The predicted class, ✓ right or ✗ wrong, its probability, and the true class."),
    ),
    "multi-label": Gallery(
        labels,
        lambda task, shares: f"{number(_mean(shares))} of the labels of these {len(shares)} right",
        _said(
            "The most probable classes, and the true ones, with their probabilities: ● present, ○ absent, ? not known; "
            "judged right above or below 0.5."
        ),
    ),
    "segmentation": Gallery(segmentation, _dice, _outlines, "large"),
    "multi-label-segmentation": Gallery(structures, _dice, structures_legend, "large"),
    "detection": Gallery(
        boxes,
        lambda task, hits: f"{count(int(sum(hits)), 'box')} found in these {len(hits)}",
        lambda task: [
            key("true box", *TRUE),
            key("predicted box, with its class and score", *PREDICTED),
            tag("li", f"of scores of at least {CERTAIN}, or else the highest, pale", class_="note"),
        ],
        "large",
    ),
    "regression": Gallery(
        regression,
        lambda task, errors: f"mean absolute error {written(_mean(errors), task, 'mae')} over these {len(errors)}",
        lambda task: [
            tag("li", tag("span", "●", class_="predicted"), " predicted"),
            tag("li", tag("span", "○", class_="true"), " true"),
            tag("li", f"on a scale from {task.range[0]:g} to {task.range[1]:g}", class_="note"),
        ],
    ),
    "dose": Gallery(
        dose,
        lambda task, scores: f"dose score {written(_mean(scores), task, 'dose-score')} Gy over these {len(scores)}",
        dose_legend,
        "wide",
    ),
}


PLAIN = Gallery(plain, lambda task, results: f"{len(results)} images", _said("The prediction, and the true label."))


def register_gallery(name: str, gallery: Gallery) -> None:
    """Make a drawing available to kinds of tasks: to the one of this name, and to those whose spec names it."""
    if name in GALLERIES:
        raise MtfedError(f"Expected a new name for a gallery, got {name!r}, which exists; choose another.")
    GALLERIES[name] = gallery
