"""Multi-task models side by side, and what sharing gains over a model for every task by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

from ..errors import MtfedError
from ..tasks.specs import LOWER_IS_BETTER
from .delta_mtl import delta_mtl
from .figures import gain, heading, written
from .html import Html, chip, count, escape, join, number, table, tag, task_title
from .records import Group, Record, all_tasks, compared, deviation, differing, mean, split_of

SINGLE = "single-task"


def models(groups: Sequence[Group]) -> Html:
    """Return a row a model, with a figure for each task, or nothing where runs have all the same model."""
    rows = [group for group in groups if not group.alone]
    if "model" not in compared(group.records[0] for group in rows):
        return escape("")
    tasks = list(all_tasks(rows).values())
    splits = {task.name: split_of(task, rows) for task in tasks}
    figures = {
        (group.label, task.name): group.values(task.name, splits[task.name], task.metric)
        for group in rows
        for task in tasks
    }
    best = {}
    for task in tasks:
        known = [mean(figures[group.label, task.name]) for group in rows if figures[group.label, task.name]]
        best[task.name] = max(known, key=lambda value: gain(value, 0, task.metric), default=math.nan)
    deltas = {group.label: over_single(group, groups) for group in rows}
    against = any(deltas.values())
    body = []
    for group in rows:
        cells: list[object] = [join([chip(group.colour), group.label])]
        cells += [*([_delta(group, deltas)] if against else []), _parameters(group.records)]
        for task in tasks:
            values = figures[group.label, task.name]
            text, top = (written(value, task, task.metric) for value in (mean(values), best[task.name]))
            spread = written(deviation(values), task, task.metric) if len(values) > 1 else ""
            cells.append(_cell(text, bool(values) and text == top, spread))
        body.append(cells)
    header: list[object] = ["Model", *([join(["Δ", tag("sub", "MTL")])] if against else []), "Parameters"]
    header += [join([task_title(task.name), tag("small", heading(task, task.metric))]) for task in tasks]
    said = (
        "Δ is by how much the tasks' figures are better than those of single-task models with the same encoder, in "
        "percent of these, mean over the tasks, each by its figure here; seeds are compared each with its own."
    )
    return join([table(header, body, "numbers models"), tag("p", said, class_="note") if against else ""])


def over_single(group: Group, groups: Sequence[Group]) -> list[float]:
    """Return Delta_MTL in percent of every seed that single-task models of the same encoder were trained with too."""
    peers = [
        other
        for other in groups
        if other.finished
        and not other.alone
        and other.records[0].config.model == SINGLE
        and other.records[0].config.encoder == group.records[0].config.encoder
        and other.records[0].config.tasks.keys() == group.records[0].config.tasks.keys()
    ]
    if not peers or not group.finished or group.alone or group.records[0].config.model == SINGLE:
        return []
    nearest = min(peers, key=lambda other: len(differing([group.records[0], other.records[0]])))
    single = {record.config.seed: record for record in nearest.records}
    found = []
    for record in group.records:
        if (other := single.get(record.config.seed)) is None:
            continue
        splits = {name: split_of(task, [group, nearest]) for name, task in record.config.tasks.items()}
        with suppress(MtfedError):  # a task without a figure, or with one that nothing can be a share of
            found.append(delta_mtl(_figures(record, splits), _figures(other, splits), LOWER_IS_BETTER))
    return found


def _figures(record: Record, splits: dict[str, str]) -> dict[str, dict[str, float]]:
    """Return the metric that choices go by of every task; others, as R², may have no zero to count from."""
    return {
        name: {task.metric: record.figures(name, splits[name]).get(task.metric, math.nan)}
        for name, task in record.config.tasks.items()
    }


def _parameters(records: Sequence[Record]) -> str:
    amount = records[0].summary.get("parameters")
    return f"{amount / 1e6:,.2f} M" if amount else "–"


def _cell(text: str, leads: bool, spread: str) -> Html:
    figure = tag("strong", text) if leads else escape(text)
    return join([figure, tag("small", f"±{spread}")]) if spread else figure


def _delta(group: Group, deltas: dict[str, list[float]]) -> Html:
    values = deltas[group.label]
    if not values:
        return tag("small", "reference") if group.records[0].config.model == SINGLE else escape("–")
    leads = mean(values) == max(mean(other) for other in deltas.values() if other)
    return _cell(percent(mean(values)), leads, number(deviation(values), 1) if len(values) > 1 else "")


def percent(value: float) -> str:
    """Return a gain in percent with its sign."""
    return f"{'+' if value > 0 else ''}{number(value, 1)} %"


def said_over_single(group: Group, groups: Sequence[Group]) -> str:
    """Say in one line what sharing gains, or nothing without single-task models beside it."""
    values = over_single(group, groups)
    if not values:
        return ""
    size, tasks = abs(mean(values)), len(group.records[0].config.tasks)
    how = "better" if mean(values) > 0 else "worse"
    over = f", mean over {count(tasks, 'task')}" if tasks > 1 else ""
    return f"{group.label}: {number(size, 1)} % {how} than a model for each task{over}"
