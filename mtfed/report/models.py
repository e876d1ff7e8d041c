"""Multi-task models compared with each other, and what sharing gains over a model for each task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

from ..errors import MtfedError
from .comparison import SINGLE_TASK, nearest_finished
from .delta_mtl import delta_mtl
from .html import Html, chip, escape, join, number, table, tag, task_title
from .metric_format import format_value, gain, heading
from .records import Group, RunContents, all_tasks, compared, deviation, mean, split_of

NOTE = (
    "Δ is the relative gain in percent over single-task models with the same encoder, averaged over the tasks' metrics "
    "in this table. Each seed is compared with the same seed."
)


def models_table(groups: Sequence[Group]) -> Html:
    """Return a row per model with a figure for each task, or nothing if all runs use the same model."""
    rows = [group for group in groups if not group.alone]
    if "model" not in compared(group.runs[0] for group in rows):
        return escape("")
    tasks = list(all_tasks(rows).values())
    splits = {task.name: split_of(task, rows) for task in tasks}
    figures = {(g.label, t.name): g.values(t.name, splits[t.name], t.metric) for g in rows for t in tasks}
    best = {}
    for task in tasks:
        means = [mean(figures[group.label, task.name]) for group in rows if figures[group.label, task.name]]
        best[task.name] = max(means, key=lambda value: gain(value, 0, task.metric), default=math.nan)
    deltas = {group.label: over_single(group, groups) for group in rows}
    has_deltas = any(deltas.values())
    body = []
    for group in rows:
        cells: list[object] = [join([chip(group.colour), group.label])]
        cells += [*([_delta_cell(group, deltas)] if has_deltas else []), _parameters(group.runs)]
        for task in tasks:
            values = figures[group.label, task.name]
            text, top = (format_value(value, task, task.metric) for value in (mean(values), best[task.name]))
            spread = format_value(deviation(values), task, task.metric) if len(values) > 1 else ""
            cells.append(_cell(text, bool(values) and text == top, spread))
        body.append(cells)
    header: list[object] = ["Model", *([join(["Δ", tag("sub", "MTL")])] if has_deltas else []), "Parameters"]
    header += [join([task_title(task.name), tag("small", heading(task, task.metric))]) for task in tasks]
    return join([table(header, body, "numbers models"), tag("p", NOTE, class_="note") if has_deltas else ""])


def over_single(group: Group, groups: Sequence[Group]) -> list[float]:
    """Return Delta_MTL in percent for every seed that also has single-task models with the same encoder and tasks."""
    first = group.runs[0].config
    if not group.finished or group.alone or first.model == SINGLE_TASK:
        return []
    configs = [(other, other.runs[0].config) for other in groups if not other.alone]
    single_task = [other for other, config in configs if (config.model, config.encoder) == (SINGLE_TASK, first.encoder)]
    single_task = [other for other in single_task if other.runs[0].config.tasks.keys() == first.tasks.keys()]
    nearest = nearest_finished(group, single_task)
    if nearest is None:
        return []
    single = {run.config.seed: run for run in nearest.runs}
    deltas = []
    for run in group.runs:
        if (other := single.get(run.config.seed)) is None:
            continue
        splits = {name: split_of(task, [group, nearest]) for name, task in run.config.tasks.items()}
        with suppress(MtfedError):  # a figure is missing, or is 0 and has no relative change
            deltas.append(delta_mtl(_figures(run, splits), _figures(other, splits)))
    return deltas


def _figures(run: RunContents, splits: dict[str, str]) -> dict[str, dict[str, float]]:
    """Return every task's first metric. Others, such as R², may have no zero to measure a relative change from."""
    return {
        name: {task.metric: run.figures(name, splits[name]).get(task.metric, math.nan)}
        for name, task in run.config.tasks.items()
    }


def _parameters(runs: Sequence[RunContents]) -> str:
    amount = runs[0].summary.get("parameters")
    return f"{amount / 1e6:,.2f} M" if amount else "–"


def _cell(text: str, is_best: bool, spread: str) -> Html:
    figure = tag("strong", text) if is_best else escape(text)
    return join([figure, tag("small", f"±{spread}")]) if spread else figure


def _delta_cell(group: Group, deltas: dict[str, list[float]]) -> Html:
    values = deltas[group.label]
    if not values:
        return tag("small", "reference") if group.runs[0].config.model == SINGLE_TASK else escape("–")
    is_best = mean(values) == max(mean(other) for other in deltas.values() if other)
    return _cell(percent(mean(values)), is_best, number(deviation(values), 1) if len(values) > 1 else "")


def percent(value: float) -> str:
    """Return a gain in percent with its sign."""
    return f"{'+' if value > 0 else ''}{number(value, 1)} %"
