"""A card per task: its figure, and a table of the groups of runs with their difference from the headline group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..tasks.task import Task
from .charts import strip
from .comparison import headline_group, untrained_values
from .html import Html, chip, escape, join, number, table, tag, task_title, with_minus
from .metric_format import digits, direction, format_value, gain, heading, metric_title, scale, tolerance, unit
from .records import Group, deviation, mean, split_of

PALE = "#b5bdc8"


@dataclass(frozen=True)
class CardRow:
    """One row of a card's table."""

    name: Html
    colour: str
    values: dict[str, list[float]]  # one value per run for each metric
    dots: Sequence[float]  # values of the first metric: one per run, or one per site if sites have models of their own
    difference: Html


def card(task: Task, groups: Sequence[Group]) -> Html:
    """Return a task's figure and the table behind it."""
    chosen = headline_group(groups)
    figure = with_unit(mean(chosen.values(task.name, split_of(task, groups), task.metric)), task)
    caption = [metric_title(task.metric), direction(task.metric), chosen.label]
    return tag(
        "section",
        tag("h2", task_title(task.name), " ", tag("small", f"{task.kind}: {', '.join(task.classes)}".rstrip(": "))),
        tag("p", figure, " ", tag("small", ", ".join(filter(None, caption))), class_="figure"),
        _table(task, chosen, groups),
        class_="card",
    )


def with_unit(value: float, task: Task) -> str:
    """Return a value of the task's first metric with its unit."""
    return f"{format_value(value, task, task.metric)} {unit(task, task.metric)}".rstrip()


def _table(task: Task, chosen: Group, groups: Sequence[Group]) -> Html:
    split, metrics = split_of(task, groups), task.metrics
    rows = [_group_row(task, group, chosen, split) for group in groups]
    if split == "test" and untrained_values(task.name, task.metric, chosen, groups):
        values = {metric: untrained_values(task.name, metric, chosen, groups) for metric in metrics}
        reference = chosen.values(task.name, split, task.metric)
        difference = _difference(task, reference, values[task.metric])
        name = join([chip(PALE), "Before training"])
        rows.append(CardRow(name, PALE, values, values[task.metric], difference))
    low, high = scale([dot for row in rows for dot in row.dots], task.metric)
    ends = (f"{end:g}" if unit(task, task.metric) or task.range else f"{end:.2f}" for end in (low, high))
    axis = tag("span", *(tag("span", with_minus(end)) for end in ends))
    compared = len(rows) > 1
    header: list[object] = [_images(task, chosen, split), axis, *(heading(task, metric) for metric in metrics)]
    header += ["Difference"] if compared else []
    best = {metric: _best(rows, metric) for metric in metrics}
    body = [
        [
            row.name,
            strip(row.dots, mean(row.values[task.metric]), low, high, row.colour, digits(task, task.metric)),
            *(_cell(row.values[metric], best[metric], task, metric) for metric in metrics),
            *([row.difference] if compared else []),
        ]
        for row in rows
    ]
    return table(header, body, "numbers verdict")


def _group_row(task: Task, group: Group, chosen: Group, split: str) -> CardRow:
    values = {metric: group.values(task.name, split, metric) for metric in task.metrics}
    sites = group.per_site(task.name, task.metric)
    name: list[object] = [chip(group.colour), group.label]
    if sites:
        lowest, highest = (format_value(end(sites.values()), task, task.metric) for end in (min, max))
        best = max(sites, key=lambda site: gain(sites[site], 0, task.metric))
        name.append(tag("small", f"mean of {len(sites)}: {lowest} to {highest}"))
        name.append(tag("small", f"best: {best}"))
    if len(group.runs) > 1:
        name.append(tag("small", f"{group.repeats} seeds"))
    difference = escape("")
    # Sites that train alone are validated on their own images only; their figures cannot be compared with others.
    if group is not chosen and (split == "test" or not (group.alone or chosen.alone)):
        reference = chosen.values(task.name, split, task.metric)
        difference = _difference(task, reference, values[task.metric], list(sites.values()))
    return CardRow(join(name), group.colour, values, list(sites.values()) or values[task.metric], difference)


def _difference(task: Task, reference: list[float], values: list[float], sites: Sequence[float] = ()) -> Html:
    """Return by how much ``reference`` is better than ``values``, and how many of the sites it is ahead of."""
    if not reference or not values:
        return escape("–")
    decimals, level = digits(task, task.metric), tolerance(task, task.metric)
    # The difference of the figures as shown, so that a reader who subtracts them gets the same.
    difference = gain(round(mean(reference), decimals), round(mean(values), decimals), task.metric)
    sign = "+" if difference > level else ""
    parts: list[object] = [sign + number(difference if abs(difference) > level else 0.0, decimals)]
    if any(abs(difference) <= deviation(runs) for runs in (reference, values)):  # NaN for a single run
        parts.append(tag("small", "within the spread of seeds"))
    if sites:
        beaten = sum(gain(mean(reference), site, task.metric) >= level for site in sites)
        parts.append(tag("small", f"ahead of {beaten} of {len(sites)}"))
    return join(parts)


def _images(task: Task, chosen: Group, split: str) -> str:
    amount = chosen.runs[0].summary.get("tasks", {}).get(task.name, {}).get("test_images")
    return f"{amount} test images" if split == "test" and amount else f"{split.capitalize()} images"


def _best(rows: Sequence[CardRow], metric: str) -> float:
    means = (mean(row.values[metric]) for row in rows if row.values[metric])
    return max(means, key=lambda value: gain(value, 0, metric), default=math.nan)


def _cell(values: Sequence[float], best: float, task: Task, metric: str) -> Html:
    text = format_value(mean(values), task, metric)
    figure = tag("strong", text) if values and text == format_value(best, task, metric) else escape(text)
    spread = tag("small", f"±{format_value(deviation(values), task, metric)}")
    return join([figure, spread]) if len(values) > 1 else figure
