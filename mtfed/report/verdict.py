"""The first screen of a report: headline, warnings, a card per task, and how to read the figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..tasks.specs import lower_is_better
from .cards import card, with_unit
from .comparison import gain_over_alone, has_model_per_task, headline_group
from .html import Html, count, join, tag, task_title
from .metric_format import metric_title, tolerance
from .models import models_table, over_single, percent
from .records import COMPARED, Group, all_tasks, differing, mean, split_of

MAX_HEADLINE_TASKS = 4  # tasks whose figures fit into the headline


def verdict(groups: Sequence[Group]) -> Html:
    """Return headline, warnings, a card per task, and notes on its figures."""
    parts = [tag("h1", _headline(headline_group(groups), groups))]
    parts += [tag("p", text, class_="warn") for text in _warnings(groups)]
    parts.append(models_table(groups))
    tasks = all_tasks(groups)
    cards = [card(task, [g for g in groups if name in g.runs[0].config.tasks]) for name, task in tasks.items()]
    return join([*parts, tag("div", *cards, class_="cards"), tag("p", " ".join(_notes(groups)), class_="note")])


def _headline(chosen: Group, groups: Sequence[Group]) -> str:
    """Return the result in one line: against sites training alone, against single-task models, or the figures."""
    if not chosen.finished:
        run = chosen.runs[0]
        return f"Not finished: {len(run.rounds)} of {count(run.config.rounds, 'round')}"
    name = chosen.label + (", one model per task" if has_model_per_task(chosen) else "")
    tasks = list(chosen.runs[0].config.tasks.values())
    gains = {task.name: gain for task in tasks if math.isfinite(gain := gain_over_alone(task, chosen, groups))}
    if gains:
        ahead = sum(gains[task.name] >= tolerance(task, task.metric) for task in tasks if task.name in gains)
        return f"{name}: ahead of hospitals training alone in {ahead} of {count(len(gains), 'task')}"
    if deltas := over_single(chosen, groups):
        return f"{name}: {percent(mean(deltas))} over a model for each task, mean of {count(len(tasks), 'task')}"
    if len(tasks) > MAX_HEADLINE_TASKS:
        return f"{name}: {len(tasks)} tasks"
    values = [(task, chosen.values(task.name, split_of(task, [chosen]), task.metric)) for task in tasks]
    figures = [f"{task_title(t.name)} {metric_title(t.metric)} {with_unit(mean(v), t)}" for t, v in values]
    return f"{name}: {', '.join(figures)}"


def _warnings(groups: Sequence[Group]) -> list[str]:
    """Return what a reader must know before believing a figure."""
    warnings = []
    for group in groups:
        if not group.finished:
            done, rounds = len(group.runs[0].rounds), group.runs[0].config.rounds
            warnings.append(
                f"{group.label}: stopped, or still running, after round {done} of {rounds}. Its figures are those of "
                "the last evaluated round, not of a chosen one."
            )
        lines = [line for run in group.runs for line in run.rounds]
        if failures := [failure for line in lines for failure in line["failures"]]:
            sites = ", ".join(sorted({failure["site"] for failure in failures}))
            warnings.append(f"{group.label}: {count(len(failures), 'failure')} at {sites}; see Rounds.")
    if keys := [key for key in differing([group.runs[0] for group in groups]) if key not in COMPARED]:
        warnings.append(f"The runs also differ in {', '.join(keys)}. Differences in results may be due to these.")
    sites_of_runs = [run.sites for group in groups for run in group.runs]
    if any(sites != sites_of_runs[0] for sites in sites_of_runs):
        warnings.append("The runs do not all have the same hospitals with the same images.")
    return warnings


def _notes(groups: Sequence[Group]) -> list[str]:
    tasks = all_tasks(groups).values()
    by_split = {
        split: [task.name for task in tasks if split_of(task, groups) == split] for split in ("validation", "test")
    }
    repeated = [len(group.runs) > 1 for group in groups]
    notes = []
    if untested := by_split["validation"]:
        of_tasks = f" of {', '.join(untested)}" if by_split["test"] else ""
        notes.append(f"There are no test images{of_tasks}, so the figures are for the hospitals' validation images.")
    if by_split["test"]:
        notes.append("Figures are for test images that no hospital trained on and that decided nothing.")
    if any(lower_is_better(metric) for task in tasks for metric in task.metrics):
        notes.append("Higher is better, except for metrics marked ↓; the best value is bold.")
    else:
        notes.append("Higher is better; the best value is bold.")
    notes.append("A difference is how much better (+) or worse (−) the model named above the table is than the row.")
    if any(repeated):
        notes.append("± is the standard deviation over seeds.")
    if not all(repeated):
        notes.append("A single run cannot distinguish a small difference from chance; more seeds can.")
    if any(group.alone for group in groups):
        notes.append("A hospital alone trains for the same number of rounds, on its own images only.")
    return notes
