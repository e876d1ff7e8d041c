"""Figures on the page: what a metric is called, which way it is better, and how many of its digits are worth it."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..tasks.specs import LOWER_IS_BETTER
from ..tasks.task import Task
from .html import Html, join, number, tag


class Words(NamedTuple):
    """A metric on the page."""

    name: str
    says: str


METRICS = {
    "auc": Words("AUC", "how often an image of a class is scored above one of another; 1 is perfect, 0.5 is guessing"),
    "accuracy": Words(
        "Accuracy",
        "share of images whose most probable class is the true one; of labels that are judged each, the "
        "share judged right",
    ),
    "dice": Words(
        "Dice", "overlap of predicted and true area, as twice the shared area over the sum of both; 1 is perfect"
    ),
    "iou": Words(
        "IoU", "overlap of predicted and true area, as the shared area over all that either covers; 1 is perfect"
    ),
    "kappa": Words(
        "Kappa",
        "agreement of predicted and true class beyond chance, where a class further off counts more (quadratic "
        "weights); 1 is perfect, 0 is chance",
    ),
    "mae": Words("MAE", "mean absolute error, in the task's own units, or in classes where these have an order"),
    "ap50": Words(
        "AP50",
        "average precision of boxes; one is found where the overlap is at least half of all that either covers; "
        "1 is perfect",
    ),
    "map": Words("mAP", "the same as AP50, mean over demands on the overlap from 0.5 to 0.95"),
    "froc": Words("FROC", "share of the true boxes that are found, mean over 1/4 to 8 false alarms an image"),
    "r2": Words(
        "R²",
        "share of the differences between images that the predictions explain; 1 is perfect, 0 is always saying "
        "the mean, and below 0 is worse than that",
    ),
    "dose-score": Words(
        "Dose score", "mean absolute difference of predicted and planned dose, where there can be dose"
    ),
    "dvh-score": Words(
        "DVH score",
        "mean absolute difference of the doses by which a plan is judged, such as the least dose of 95 % of a target",
    ),
}
UNITS = {"dose": "Gy", "ordinal": "classes"}  # of a kind's errors; those of a regression only its classes can tell


def metric_title(metric: str) -> str:
    """Return a metric's name as people write it."""
    return METRICS[metric].name if metric in METRICS else metric


def titled(task: Task, metric: str) -> str:
    """Return a metric's name with its unit, and that lower is better where it is."""
    return ", ".join(word for word in (metric_title(metric), unit(task, metric), direction(metric)) if word)


def heading(task: Task, metric: str) -> Html:
    """Return a metric's name over a column: with an arrow where lower is better, its unit beneath."""
    arrow = "\u00a0↓" if metric in LOWER_IS_BETTER else ""
    below = unit(task, metric)
    return join([metric_title(metric), arrow, tag("small", below) if below else ""])


def direction(metric: str) -> str:
    """Say that a metric is better when lower; of the others, the page says it once."""
    return "lower is better" if metric in LOWER_IS_BETTER else ""


def unit(task: Task, metric: str) -> str:
    """Return the unit of a metric's figures, empty where they are shares."""
    return UNITS.get(task.kind, "") if metric in LOWER_IS_BETTER else ""


def digits(task: Task, metric: str) -> int:
    """Return how many decimals a metric is written with: 3 for shares, fewer for errors in a wide range."""
    if metric not in LOWER_IS_BETTER:
        return 3
    low, high = task.range or (0, len(task.classes) - 1)
    return max(3 - math.floor(math.log10(high - low)), 0)


def same(task: Task, metric: str) -> float:
    """Return the difference below which figures are equal as shown."""
    return 0.5 * 10 ** -digits(task, metric)


def written(value: float, task: Task, metric: str) -> str:
    """Return a metric's figure without its unit."""
    return number(value, digits(task, metric))


def gain(value: float, other: float, metric: str) -> float:
    """Return by how much a figure is better than another, in the metric's unit."""
    return other - value if metric in LOWER_IS_BETTER else value - other


def scale(points: list[float], metric: str) -> tuple[float, float]:
    """Return ends of a scale that holds all points: in steps of 0.05 for shares, else as the points are spread.

    It goes below 0 only if a point does.
    """
    step = 0.05
    if metric in LOWER_IS_BETTER and points:
        step = 10 ** math.floor(math.log10((max(points) - min(points)) or max(points) or 1)) / 2
    # Rounded: 0.15 / 0.05 is less than 3.
    low = math.floor(round(min(points, default=0) / step, 9)) * step
    high = math.ceil(round(max(points, default=1) / step, 9)) * step
    return (low, high) if high > low else (max(low - step, 0.0) if low >= 0 else low - step, high + step)
