"""Metrics on the page: their titles, units, direction and digits."""

from __future__ import annotations

import math

from ..tasks.specs import METRIC_SPECS, lower_is_better
from ..tasks.task import Task
from .html import Html, join, number, tag


def metric_title(metric: str) -> str:
    """Return a metric's title, or the name of one that is not in the table."""
    return METRIC_SPECS[metric].title if metric in METRIC_SPECS else metric


def full_title(task: Task, metric: str) -> str:
    """Return a metric's title with its unit, and a note if lower is better."""
    return ", ".join(word for word in (metric_title(metric), unit(task, metric), direction(metric)) if word)


def heading(task: Task, metric: str) -> Html:
    """Return the heading of a column: a metric's title, an arrow if lower is better, and its unit below."""
    arrow = "\u00a0↓" if lower_is_better(metric) else ""
    below = unit(task, metric)
    return join([metric_title(metric), arrow, tag("small", below) if below else ""])


def direction(metric: str) -> str:
    """Return a note if lower is better; that higher is better is stated once on the page."""
    return "lower is better" if lower_is_better(metric) else ""


def unit(task: Task, metric: str) -> str:
    """Return the unit of a metric's figures, empty if they are shares or the task does not name its unit."""
    return task.spec.unit if is_in_units(metric) else ""


def is_in_units(metric: str) -> bool:
    """Return whether a metric's figures are errors in the task's unit, not shares."""
    return metric in METRIC_SPECS and METRIC_SPECS[metric].in_units


def digits(task: Task, metric: str) -> int:
    """Return the number of decimals of a metric's figures: 3 for shares, fewer for errors in a wide range."""
    return max(3 - math.floor(math.log10(task.width)), 0) if is_in_units(metric) else 3


def tolerance(task: Task, metric: str) -> float:
    """Return the difference below which figures look the same when they are written."""
    return 0.5 * 10 ** -digits(task, metric)


def format_value(value: float, task: Task, metric: str) -> str:
    """Return a metric's figure without its unit."""
    return number(value, digits(task, metric))


def gain(value: float, other: float, metric: str) -> float:
    """Return by how much a figure is better than another, in the metric's unit."""
    return other - value if lower_is_better(metric) else value - other


def scale(points: list[float], metric: str) -> tuple[float, float]:
    """Return the ends of a scale that contains all points: in steps of 0.05 for shares, else as the points are spread.

    The scale goes below 0 only if a point does.
    """
    step = 0.05
    if is_in_units(metric) and points:
        step = 10 ** math.floor(math.log10((max(points) - min(points)) or max(points) or 1)) / 2
    # Rounded: 0.15 / 0.05 is less than 3.
    low = math.floor(round(min(points, default=0) / step, 9)) * step
    high = math.ceil(round(max(points, default=1) / step, 9)) * step
    return (low, high) if high > low else (max(low - step, 0.0) if low >= 0 else low - step, high + step)
