"""What a report is about: run folders as read, and runs that differ in nothing but their seed as one group."""

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
from ..record.run import Run
from ..strategies import STRATEGIES
from ..tasks.task import Task

# Okabe and Ito's colours, then some of Tol's, which stay apart for the colour-blind; grey is for what is not federated.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#332288", "#882255", "#999933", "#44aa99")
GREY = "#6b7280"
MODEL_TITLES = {
    "mtmedformer": "MTMedFormer",
    "hard-sharing": "Hard sharing",
    "single-task": "Single-task",
    "mtan": "MTAN",
    "ctan": "CTAN",
    "ctan-encoder": "CTAN in the encoder",
    "ctan-bottleneck": "CTAN at the bottleneck",
}
COMPARED = ("model", "encoder", "strategy")  # the keys that a comparison is about; labels begin with them
# What two runs may have otherwise and still be repetitions of each other.
FREE = {
    "seed",
    "name",
    "out",
    "resume",
    "device",
    "torch-threads",
    "join-timeout",
    "round-timeout",
    "share-class-counts",
    "share-tracebacks",
}


@dataclass(frozen=True)
class Record:
    """One run, as its folder tells it."""

    folder: Path
    config: Config
    environment: dict[str, Any]
    sites: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    rounds: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Say whether the summary is of these rounds: a run that is being continued still has its old one."""
        return self.summary.get("rounds") == len(self.rounds)

    def figures(self, task: str, split: str) -> dict[str, float]:
        """Return the chosen model's figures, or those of the last evaluated round of an unfinished run.

        ``split`` is test, validation or untrained.
        """
        if self.finished:
            return _known(self.summary["tasks"].get(task, {}).get(split))
        known = [figures for line in self.metrics if line["task"] == task and (figures := _known(line.get(split)))]
        return known[-1] if known else {}

    def series(self, task: str, split: str, metric: str) -> dict[int, float]:
        """Return a figure by round; ``split`` is test, validation, or train for what stands beside them (the loss)."""
        lines = [line for line in self.metrics if line["task"] == task]
        values = {line["round"]: _known(line if split == "train" else line.get(split)).get(metric) for line in lines}
        return {server_round: value for server_round, value in values.items() if value is not None}

    def per_site(self, task: str, metric: str) -> dict[str, float]:
        """Return the test figure of every site's own model, where sites trained alone."""
        models = self.summary.get("per_site", {}) if self.finished else {}
        found = {site: _known(figures.get(task)).get(metric) for site, figures in models.items()}
        return {site: value for site, value in found.items() if value is not None}


@dataclass(frozen=True)
class Group:
    """Runs that repeat each other, and how they look on the page."""

    label: str
    colour: str
    records: tuple[Record, ...]

    @property
    def alone(self) -> bool:
        """Say whether the sites of these runs trained alone."""
        return self.records[0].config.strategy == "alone"

    @property
    def finished(self) -> bool:
        """Say whether the runs are done."""
        return self.records[0].finished

    @property
    def repeats(self) -> str:
        """Say how many runs there are, by their seeds."""
        seeds = len({record.config.seed for record in self.records})
        return str(seeds) if seeds == len(self.records) else f"{seeds} ({len(self.records)} runs)"

    def values(self, task: str, split: str, metric: str) -> list[float]:
        """Return a figure of every run that has it."""
        found = [record.figures(task, split).get(metric) for record in self.records]
        return [value for value in found if value is not None]

    def per_site(self, task: str, metric: str) -> dict[str, float]:
        """Return every site's own model's test figure, as the mean over the runs."""
        runs = [record.per_site(task, metric) for record in self.records]
        sites = sorted({site for run in runs for site in run})
        return {site: fmean(run[site] for run in runs if site in run) for site in sites}


def all_tasks(groups: Sequence[Group]) -> dict[str, Task]:
    """Return the tasks of all runs, in the order of the first run that has them."""
    tasks: dict[str, Task] = {}
    for group in groups:
        tasks |= group.records[0].config.tasks
    return tasks


def split_of(task: Task, groups: Sequence[Group]) -> str:
    """Return whose images a task's figures are of: the test images, or the hospitals' own if there are none."""
    return "test" if any(group.values(task.name, "test", task.metric) for group in groups) else "validation"


def mean(values: Sequence[float]) -> float:
    """Return the mean, NaN of nothing."""
    return fmean(values) if values else math.nan


def deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation, NaN of fewer than two."""
    return stdev(values) if len(values) > 1 else math.nan


def read(path: Path) -> Record:
    """Read a run folder; raise :class:`MtfedError` if it is none, or if none of its rounds is finished."""
    run = Run.open(path)
    rounds = run.lines("rounds.jsonl")
    if not rounds:
        raise MtfedError(f"Expected a run with at least one finished round, {run.folder} has none.")
    return Record(
        run.folder,
        run.config(),
        run.read_json("environment.json"),
        run.read_json("sites.json") or [],
        run.lines("metrics.jsonl"),
        rounds,
        run.read_json("summary.json"),
    )


def group(records: Iterable[Record]) -> list[Group]:
    """Put repetitions together, federated runs first, and give each group a label and a colour of its own."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        groups.setdefault((record.finished, *sorted(_settings(record).items())), []).append(record)
    members = sorted(groups.values(), key=lambda runs: runs[0].config.strategy == "alone")
    colours = cycle(COLOURS)
    return [
        Group(_label(runs, members), GREY if runs[0].config.strategy == "alone" else next(colours), tuple(runs))
        for runs in members
    ]


def differing(records: Iterable[Record]) -> list[str]:
    """Return the config keys, beside those that make no other result, in which runs differ."""
    settings = [_settings(record) for record in records]
    return [key for key in dict.fromkeys(k for s in settings for k in s) if len({s.get(key) for s in settings}) > 1]


def strategy_title(strategy: str) -> str:
    """Return a strategy's name as its paper writes it."""
    if strategy == "alone":
        return "Each hospital alone"
    return STRATEGIES[strategy].__name__.removeprefix("Task") if strategy in STRATEGIES else strategy


def compared(records: Iterable[Record]) -> list[str]:
    """Return the keys of :data:`COMPARED` that runs are told apart by: strategies, unless there are several models."""
    found = [key for key in differing(records) if key in COMPARED]
    models = {"model", *found} if {"model", "encoder"} & set(found) else set()
    return [key for key in COMPARED if key in (models or {"strategy"})]


def title(record: Record, keys: Sequence[str]) -> str:
    """Return what a run's config has for some of the keys of :data:`COMPARED`, as people write it."""
    config = record.config
    titles = {
        "model": MODEL_TITLES.get(config.model, config.model),
        "encoder": config.encoder,
        "strategy": strategy_title(config.strategy),
    }
    return " · ".join(titles[key] for key in keys)


def _label(runs: list[Record], members: list[list[Record]]) -> str:
    """Name a group by what the comparison is about, and by what tells it from other groups of the same name."""
    first, keys = runs[0], compared(other[0] for other in members)
    name = title(first, keys)
    same = [other[0] for other in members if title(other[0], keys) == name]
    differ, marks = differing(same), []
    if any(record.config.tasks.keys() != first.config.tasks.keys() for record in same):
        marks.append(" and ".join(first.config.tasks) + (" only" if len(first.config.tasks) == 1 else ""))
        differ = [key for key in differ if not key.startswith("task.")]
    if len(differ) <= 2:
        marks.extend(f"{key} {_settings(first)[key]}" for key in differ)
    else:  # too much for a label; the settings have it
        marks.append(f"variant {1 + [other.folder for other in same].index(first.folder)}")
    if not first.finished:
        marks.append("unfinished")
    return name + (f" ({', '.join(marks)})" if marks else "")


def _settings(record: Record) -> dict[str, Any]:
    return {key: value for key, value in flatten(record.config).items() if key not in FREE}


def _known(figures: dict[str, Any] | None) -> dict[str, float]:
    """Return the figures that are numbers: what the data could not tell is null in the record."""
    return {name: float(value) for name, value in (figures or {}).items() if isinstance(value, (int, float))}
