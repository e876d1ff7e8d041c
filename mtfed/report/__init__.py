"""The report: one self-contained HTML page about a run, or about several runs compared."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ..errors import MtfedError
from ..tasks.specs import METRIC_SPECS
from .agreement import agreement
from .charts import curves
from .comparison import headline_group
from .details import rounds, settings, sites
from .galleries import examples
from .html import Html, chip, count, escape, fold, join, page, tag, task_title
from .metric_format import full_title
from .records import Group, all_tasks, group, read
from .verdict import verdict


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one or more run folders and return its path.

    By default that is ``report.html`` in the run folder, or in the common parent of several.
    """
    if find_spec("matplotlib") is None:
        raise MtfedError("The report needs matplotlib, which is not installed; run pip install 'mtfed[plot]'.")
    contents = list({run.folder: run for run in map(read, runs)}.values())
    if not contents:
        raise MtfedError("Expected at least one run folder, got none.")
    folders = [run.folder for run in contents]
    target = out or (folders[0] if len(folders) == 1 else Path(os.path.commonpath(folders))) / "report.html"
    content = compose(group(contents))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
    except OSError as error:
        raise MtfedError(f"Cannot write the report to {target}: {error.strerror}.") from None
    return target


def compose(groups: Sequence[Group]) -> str:
    """Return the page for groups of runs."""
    chosen = headline_group(groups)
    names = sorted({run.config.name for g in groups for run in g.runs})
    return page(
        f"{', '.join(names)}: report",
        tag("p", _eyebrow(names, groups), class_="eyebrow"),
        verdict(groups),
        _section("Curves", _curves(groups)),
        _section("Predictions on test images", _examples(groups, chosen)),
        _section("Hospitals and their images", sites(chosen.runs[0])),
        _section("Agreement of the tasks", agreement(groups, chosen)),
        _section("Rounds", rounds(groups)),
        _section("Settings", settings(groups)),
        _section("How to read the figures", _glossary(groups)),
        tag("footer", "Written by mtfed for research. No figure on this page qualifies a model for use on patients."),
    )


def _section(title: str, content: Html) -> Html:
    return tag("section", tag("h2", title), content) if content else escape("")


def _eyebrow(names: Sequence[str], groups: Sequence[Group]) -> str:
    runs = [run for g in groups for run in g.runs]
    hospitals = sorted({len(run.sites) for run in runs})
    started = sorted(str(run.environment.get("started", ""))[:10] for run in runs)
    parts = [", ".join(names), " or ".join(map(str, hospitals)) + (" hospital" if hospitals == [1] else " hospitals")]
    parts.append(count(len(all_tasks(groups)), "task"))
    parts.append(count(len(runs), "run") + ": " + ", ".join(g.label for g in groups))
    return " · ".join([*parts, *(day for day in dict.fromkeys((started[0], started[-1])) if day)])


def _curves(groups: Sequence[Group]) -> Html:
    """Return a row of charts per task, under a common legend."""
    lines = [tag("li", chip(g.colour), g.label) for g in groups]
    for name, dash in (("validation images of the hospitals", ""), ("test images", "6 4")):
        line = tag("line", x1=0, x2=26, y1=5, y2=5, stroke="#1b2430", stroke_width=2, stroke_dasharray=dash or "none")
        lines.append(tag("li", tag("svg", line, viewBox="0 0 26 10", aria_hidden="true"), name))
    parts = [tag("ul", *lines, class_="legend")]
    for task in all_tasks(groups).values():
        titles = {metric: full_title(task, metric) for metric in task.metrics} | {"loss": "training loss"}
        drawn = [
            curves(groups, task.name, metric, f"{task_title(task.name)}: {title}", f"{task.name}-{metric}")
            for metric, title in titles.items()
        ]
        parts.append(tag("div", *drawn, class_="charts"))
    notes = []
    if any(g.alone for g in groups):
        notes.append(
            "Hospitals that train alone are validated on their own images only, which is easier than the mixed test "
            "images. The line “alone, test” is the fair comparison."
        )
    if any(len(g.runs) > 1 for g in groups):
        notes.append("Lines are means over seeds; bands extend from the lowest to the highest seed.")
    return join([*parts, *(tag("p", note, class_="note") for note in notes)])


def _examples(groups: Sequence[Group], chosen: Group) -> Html:
    """Return the examples of the headline group, and those of the other groups folded."""
    ordered = [chosen, *(g for g in groups if g is not chosen)]
    shown = {g.label: examples(min(g.runs, key=lambda run: run.config.seed)) for g in ordered}
    shown = {label: content for label, content in shown.items() if content}
    if not shown:
        return escape("")
    first, *others = shown
    note = f"{first}. Images are chosen so that every class appears, however rare, and never by result."
    if any(form.dimensions == 3 for form in chosen.runs[0].config.forms):
        note += " For a volume, the slice with most of the label is shown, and the figures are for that slice."
    folded = (fold(f"The same images, {label}", shown[label]) for label in others)
    return join([tag("p", note, class_="note"), shown[first], *folded])


def _glossary(groups: Sequence[Group]) -> Html:
    metrics = dict.fromkeys(m for task in all_tasks(groups).values() for m in task.metrics)
    items = [tag("li", tag("strong", METRIC_SPECS[m].title), ": ", METRIC_SPECS[m].description, ".") for m in metrics]
    return tag("ul", *items)
