"""What a run tells when it is done: summary.json, and a table of the chosen model's figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..config import Config
from ..learning.metrics import TaskMetrics
from ..progress import print_table
from ..report.figures import titled, written
from ..report.html import count, listed
from .run import Run

Tested = Mapping[str, TaskMetrics]  # task -> its metrics on the test images


def summarise(
    record: Run,
    config: Config,
    tested: Mapping[str, Tested],
    untrained: Tested,
    *,
    stopped: str,
    chosen_round: int,
    sites: int,
    parameters: int,
) -> dict[str, Any]:
    """Return what summary.json holds.

    Args:
        record: The run; its lines of rounds and metrics are read.
        config: The run's config.
        tested: The chosen models on the test images: the global one as "", or one a site by its key. A task's figure
            is the mean over the models that have its decoder.
        untrained: The weights before training on the test images.
        stopped: Why the last round was the last.
        chosen_round: The round whose weights were chosen.
        sites: How many sites took part.
        parameters: How many parameters the model has.
    """
    rounds = record.lines("rounds.jsonl")
    chosen = {line["task"]: line for line in record.lines("metrics.jsonl") if line["round"] == chosen_round}
    figures = {key: {task: m.compute() for task, m in metrics.items()} for key, metrics in tested.items()}
    images = {task: m.count for metrics in tested.values() for task, m in metrics.items()}
    summary: dict[str, Any] = {
        "name": config.name,
        "strategy": config.strategy,
        "seed": config.seed,
        "rounds": len(rounds),
        "chosen_round": chosen_round,
        "stopped": stopped,
        "sites": sites,
        "seconds": sum(line["seconds"] for line in rounds),
        "seconds_per_round": float(np.mean([line["seconds"] for line in rounds])),
        "failures": sum(len(line["failures"]) for line in rounds),
        "parameters": parameters,
        "tasks": {
            name: {
                "kind": task.kind,
                "metric": task.metric,
                "test": mean_figures([f[name] for f in figures.values() if name in f]),
                "test_images": images.get(name, 0),
                "untrained": untrained[name].compute() if name in untrained else {},
                "validation": chosen.get(name, {}).get("validation", {}),
            }
            for name, task in config.tasks.items()
        },
    }
    if list(figures) != [""]:
        summary["per_site"] = figures
    return summary


def print_summary(record: Run, config: Config, summary: dict[str, Any], *, tested: bool) -> None:
    """Print the chosen model's figures and which sites failed.

    The figures are of the test images if the model was ``tested`` on any, and of the sites' validation images if not.
    """
    images, columns = "validation", {"validation": "trained"}
    if tested:
        images, columns = "test", {"untrained": "before training", "test": "trained"}
    rows = []
    for name, told in summary["tasks"].items():
        task = config.tasks[name]
        for metric in task.metrics:
            values = (told[split].get(metric, math.nan) for split in columns)
            rows.append([name, titled(task, metric), *(written(value, task, metric) for value in values)])
    print_table(
        f"{config.name} · {config.strategy} · round {summary['chosen_round']} on the {images} images",
        ["task", "metric", *columns.values()],
        rows,
        told_failures([failure for line in record.lines("rounds.jsonl") for failure in line["failures"]]),
    )


def mean_figures(figures: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of several models' figures, metric by metric, over those that could be told."""
    known = {name: [f[name] for f in figures if not math.isnan(f[name])] for name in (figures[0] if figures else ())}
    return {name: float(np.mean(values)) if values else math.nan for name, values in known.items()}


def told_failures(failures: list[dict[str, Any]]) -> str:
    """Return in one line how many failures there were and at which sites; nothing, where there was none."""
    sites = sorted({failure["site"] for failure in failures})
    return f"{count(len(failures), 'failure')} at {listed(sites)}; rounds.jsonl has the reasons." if failures else ""
