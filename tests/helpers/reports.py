"""Run folders as the server writes them, and reports as text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from helpers import TASKS
from helpers.pictured import KINDS as EVERY_KIND
from helpers.pictured import pictured
from mtfed.config import Config, flatten, read_config
from mtfed.record.examples import save_examples
from mtfed.record.run import Run
from mtfed.report import write_report
from mtfed.tasks.task import Task

Json = dict[str, Any]
Values = Mapping[str, float | None]  # by task
GOOD: Values = {"lungs": 0.9, "pneumonia": 0.85}
RAW: Values = {"lungs": 0.4, "pneumonia": 0.5}
SITES: list[Json] = [
    {
        "key": "north",
        "tasks": ["lungs"],
        "about": {"num-partitions": 2},
        "counts": {"train.lungs": 40, "validation.lungs": 10},
    },
    {
        "key": "south",
        "tasks": ["lungs", "pneumonia"],
        "about": {"modality": "ct"},
        "counts": {
            "train.lungs": 20,
            "validation.lungs": 5,
            "train.pneumonia": 100,
            "validation.pneumonia": 25,
            "class.pneumonia.normal": 70,
            "class.pneumonia.pneumonia": 30,
        },
    },
]


def figures(values: Values, task: Task) -> dict[str, float | None]:
    return dict.fromkeys(task.metrics, values.get(task.name))


def write_rounds(
    run: Run, settings: Config, rounds: int, validation: Values, test: Values, failures: Sequence[Json]
) -> None:
    """Append the lines of some rounds to ``metrics.jsonl`` and ``rounds.jsonl``."""
    numbers = range(1, rounds + 1)
    lines = [
        {
            "round": number,
            "task": name,
            "strategy": settings.strategy,
            "loss": 1 / number,
            "samples": 60,
            "validation": figures(validation, task),
            "test": figures(test, task) if test else {},
        }
        for number in numbers
        for name, task in settings.tasks.items()
    ]
    run.append("metrics.jsonl", lines)
    costs = {
        "seconds": 2.0,
        "train_seconds": 1.0,
        "asked": 2,
        "answered": 2,
        "steps": 4.0,
        "bytes_down": 2_000_000,
        "bytes_up": 2_000_000,
        "learning_rate": 0.001,
        "failures": list(failures),
    }
    run.append("rounds.jsonl", [{"round": number} | costs for number in numbers])


def write_summary(
    run: Run, settings: Config, rounds: int, splits: Mapping[str, Values], own: Mapping[str, Values] | None
) -> None:
    """Write ``summary.json``."""
    tasks = settings.tasks
    summary: Json = {
        "rounds": rounds,
        "chosen_round": rounds,
        "stopped": "all rounds done",
        "parameters": 1234,
        "tasks": {
            name: {split: figures(values, task) for split, values in splits.items()} for name, task in tasks.items()
        },
    }
    if own:
        summary["per_site"] = {
            site: {task: figures(values, tasks[task]) for task in values} for site, values in own.items()
        }
    run.write_json("summary.json", summary)


def make_run(
    folder: Path,
    strategy: str = "fedavg",
    test: Values = GOOD,
    *,
    validation: Values = GOOD,
    seed: int = 0,
    rounds: int = 3,
    untrained: Values = RAW,
    tasks: Mapping[str, str] = TASKS,
    finished: bool = True,
    sites: Sequence[Json] = SITES,
    failures: Sequence[Json] = (),
    own: Mapping[str, dict[str, float | None]] | None = None,
    examples: bool = True,
    **config: Any,
) -> Path:
    """Write a run folder as the server does; ``own`` is the test figure of every site's model by site and task."""
    folder.mkdir(parents=True)
    run = Run(folder)
    given: Json = {key.replace("_", "-"): value for key, value in config.items()}
    settings = read_config({**tasks, "strategy": strategy, "seed": seed, "rounds": 3, **given})
    run.write_json("config.json", flatten(settings))
    run.write_json(
        "environment.json",
        {
            "started": "2026-01-01T12:00:00+0000",
            "versions": {"mtfed": "0.1.0"},
            "command": ["mtfed", "simulate"],
        },
    )
    run.write_json("sites.json", list(sites))
    write_rounds(run, settings, rounds, validation, {} if own else test, failures)
    if not finished:
        return folder
    write_summary(run, settings, rounds, {"test": test, "validation": validation, "untrained": untrained}, own)
    if examples and not own:
        shard, seer = pictured(settings, 3)
        save_examples(run, seer, shard, settings)  # type: ignore[arg-type]
    return folder


def read(*runs: Path, out: Path | None = None) -> str:
    """Write the report and return it, once it is known to be one whole page that loads nothing."""
    text = write_report(runs, out).read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    assert checker.open == [], "every element is closed"
    assert len(checker.ids) == len(set(checker.ids)), "ids are of one drawing each"
    used = {name for pair in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', text) for name in pair if name}
    assert used <= set(checker.ids)
    assert not re.search(r"https?://|<script|<link|@import|\bon\w+=", text)
    assert len(text) < 2_000_000
    return text


def plain(text: str) -> str:
    """Return a page's words."""
    return " ".join(re.sub(r"<[^>]*>", "", re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", text, flags=re.S)).split())


class Checker(HTMLParser):
    """Follow a page's elements."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert "src" not in given
        assert (given.get("href") or "#").startswith(("#", "data:image/"))
        self.ids += [given["id"] or ""] if "id" in given else []
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


AGE = {key: value for key, value in EVERY_KIND.items() if key.startswith("task.age.")}
SEEN = {  # by task, what stands beneath its pictures
    "finding": "of these 8 right",
    "signs": "of the labels of these 8 right",
    "grade": "off by 1 class",
    "lesion": "Lesion: Dice",
    "organs": "at most the 6 largest structures",
    "spots": "nothing to find",
    "age": "mean absolute error",
    "dose": "left: true dose",
}
