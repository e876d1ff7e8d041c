"""Run folders as the report reads them. Runs that differ only in their seed form a group."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ..config import Config, flatten
from ..errors import MtfedError
from ..models.specs import MODEL_SPECS
from ..record.run import Run
from ..strategies import STRATEGIES
from ..tasks.task import Task

# Okabe and Ito's palette, then some of Tol's colours: distinguishable for the colour-blind. Grey: not federated.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#332288", "#882255", "#999933", "#44aa99")
GREY = "#6b7280"
COMPARED = ("model", "encoder", "strategy")  # keys that comparisons are usually about; labels start with them
# Runs that differ only in these keys are repetitions of each other.
REPETITION_KEYS = {"seed", "name", "out", "resume", "device", "torch-threads", "join-timeout", "round-timeout"}
REPETITION_KEYS |= {"share-class-counts", "share-tracebacks"}


@dataclass(frozen=True)
class RunContents:
    """The content of a run folder."""

    folder: Path
    config: Config
    environment: dict[str, Any]
    sites: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    rounds: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Return whether the summary covers all rounds. A run that was resumed still has its old summary."""
        return self.summary.get("rounds") == len(self.rounds)

    @property
    def alone(self) -> bool:
        """Return whether the sites trained alone. A strategy that is not registered here counts as federated."""
        strategy = STRATEGIES.get(self.config.strategy)
        return strategy is not None and not strategy.is_federated

    def figures(self, task: str, split: str) -> dict[str, float]:
        """Return the metrics of the chosen model, or those of the last evaluated round of an unfinished run.

        ``split`` is ``test``, ``validation`` or ``untrained``.
        """
        if self.finished:
            return _known(self.summary["tasks"].get(task, {}).get(split))
        known = [figures for line in self.metrics if line["task"] == task and (figures := _known(line.get(split)))]
        return known[-1] if known else {}

    def series(self, task: str, split: str, metric: str) -> dict[int, float]:
        """Return a metric by round. ``split`` is ``test``, ``validation`` or, for the loss, ``train``."""
        lines = [line for line in self.metrics if line["task"] == task]
        values = {line["round"]: _known(line if split == "train" else line.get(split)).get(metric) for line in lines}
        return {server_round: value for server_round, value in values.items() if value is not None}

    def per_site(self, task: str, metric: str) -> dict[str, float]:
        """Return a test metric of every site's own model, if sites trained alone."""
        models = self.summary.get("per_site", {}) if self.finished else {}
        values = {site: _known(figures.get(task)).get(metric) for site, figures in models.items()}
        return {site: value for site, value in values.items() if value is not None}


@dataclass(frozen=True)
class Group:
    """Repetitions of a run, with their label and colour on the page."""

    label: str
    colour: str
    runs: tuple[RunContents, ...]

    @property
    def alone(self) -> bool:
        """Return whether the sites trained alone."""
        return self.runs[0].alone

    @property
    def finished(self) -> bool:
        """Return whether the runs are finished."""
        return self.runs[0].finished

    @property
    def repeats(self) -> str:
        """Return the number of seeds, and of runs if it differs."""
        seeds = len({run.config.seed for run in self.runs})
        return str(seeds) if seeds == len(self.runs) else f"{seeds} ({len(self.runs)} runs)"

    def values(self, task: str, split: str, metric: str) -> list[float]:
        """Return a metric of every run that has it."""
        values = [run.figures(task, split).get(metric) for run in self.runs]
        return [value for value in values if value is not None]

    def per_site(self, task: str, metric: str) -> dict[str, float]:
        """Return a test metric of every site's own model, averaged over the runs."""
        by_run = [run.per_site(task, metric) for run in self.runs]
        sites = sorted({site for values in by_run for site in values})
        return {site: fmean(values[site] for values in by_run if site in values) for site in sites}


def all_tasks(groups: Sequence[Group]) -> dict[str, Task]:
    """Return the tasks of all runs, in order of first appearance."""
    tasks: dict[str, Task] = {}
    for group in groups:
        tasks |= group.runs[0].config.tasks
    return tasks


def split_of(task: Task, groups: Sequence[Group]) -> str:
    """Return the split to report for a task: ``test``, or ``validation`` if no group has test figures."""
    return "test" if any(group.values(task.name, "test", task.metric) for group in groups) else "validation"


def mean(values: Sequence[float]) -> float:
    """Return the mean, or NaN if there are no values."""
    return fmean(values) if values else math.nan


def deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation, or NaN for fewer than two values."""
    return stdev(values) if len(values) > 1 else math.nan


def read(path: Path) -> RunContents:
    """Read a run folder; raise :class:`MtfedError` if it is not one or has no finished round."""
    run = Run.open(path)
    rounds, metrics = run.lines("rounds.jsonl"), run.lines("metrics.jsonl")
    if not rounds:
        raise MtfedError(f"Expected a run with at least one finished round, {run.folder} has none.")
    environment, sites, summary = (run.read_json(f"{name}.json") for name in ("environment", "sites", "summary"))
    return RunContents(run.folder, run.config(), environment, sites or [], metrics, rounds, summary)


def group(runs: Iterable[RunContents]) -> list[Group]:
    """Group repetitions, federated runs first, and give each group a label and a colour."""
    by_settings: dict[tuple[object, ...], list[RunContents]] = {}
    for run in runs:
        by_settings.setdefault((run.finished, *sorted(_settings(run).items())), []).append(run)
    members = sorted(by_settings.values(), key=lambda members: members[0].alone)
    colours, groups = cycle(COLOURS), []
    for repetitions in members:
        colour = GREY if repetitions[0].alone else next(colours)
        groups.append(Group(_label(repetitions, members), colour, tuple(repetitions)))
    return groups


def differing(runs: Iterable[RunContents]) -> list[str]:
    """Return the config keys in which runs differ, without those that do not change a result."""
    settings = [_settings(run) for run in runs]
    return [key for key in dict.fromkeys(k for s in settings for k in s) if len({s.get(key) for s in settings}) > 1]


def compared(runs: Iterable[RunContents]) -> list[str]:
    """Return the keys of :data:`COMPARED` that label the runs: the strategy, or the model if models differ."""
    differ = [key for key in differing(runs) if key in COMPARED]
    models = {"model", *differ} if {"model", "encoder"} & set(differ) else set()
    return [key for key in COMPARED if key in (models or {"strategy"})]


def title(run: RunContents, keys: Sequence[str]) -> str:
    """Return the titles of a run's values for some keys of :data:`COMPARED`."""
    model, strategy = run.config.model, run.config.strategy
    titles = {"model": model, "encoder": run.config.encoder, "strategy": strategy}
    if model in MODEL_SPECS:
        titles["model"] = MODEL_SPECS[model].title
    if strategy in STRATEGIES:
        titles["strategy"] = STRATEGIES[strategy].title()
    return " · ".join(titles[key] for key in keys)


def _label(runs: list[RunContents], members: list[list[RunContents]]) -> str:
    """Return a group's label: what is compared, and settings that distinguish it from groups of the same name."""
    first, keys = runs[0], compared(other[0] for other in members)
    name = title(first, keys)
    same = [other[0] for other in members if title(other[0], keys) == name]
    differ, marks = differing(same), []
    if any(run.config.tasks.keys() != first.config.tasks.keys() for run in same):
        marks.append(" and ".join(first.config.tasks) + (" only" if len(first.config.tasks) == 1 else ""))
        differ = [key for key in differ if not key.startswith("task.")]
    if len(differ) <= 2:
        marks.extend(f"{key} {_settings(first)[key]}" for key in differ)
    else:  # too many for a label; the page lists all settings
        marks.append(f"variant {1 + [other.folder for other in same].index(first.folder)}")
    if not first.finished:
        marks.append("unfinished")
    return name + (f" ({', '.join(marks)})" if marks else "")


def _settings(run: RunContents) -> dict[str, Any]:
    return {key: value for key, value in flatten(run.config).items() if key not in REPETITION_KEYS}


def _known(figures: dict[str, Any] | None) -> dict[str, float]:
    """Return the metrics that are numbers; undefined ones are null in the file."""
    return {name: float(value) for name, value in (figures or {}).items() if isinstance(value, (int, float))}
