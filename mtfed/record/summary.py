"""The summary of a finished run, as kept in ``summary.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..config import Config
from ..learning.metrics import TaskMetrics
from .run import Run

TestMetrics = Mapping[str, TaskMetrics]  # task -> its metrics on the test images


def summarise(
    run: Run,
    config: Config,
    tested: Mapping[str, TestMetrics],
    untrained: TestMetrics,
    *,
    stopped: str,
    chosen_round: int,
    sites: int,
    parameters: int,
) -> dict[str, Any]:
    """Return the content of ``summary.json``.

    Args:
        run: the run, whose rounds and metrics are read.
        config: the run's config.
        tested: metrics of the chosen models on the test images: of the global model under "", or of each site's model
            under its key. A task's figure is the mean over the models that have its decoder.
        untrained: metrics of the initial weights on the test images.
        stopped: why training ended.
        chosen_round: the round whose weights were chosen.
        sites: number of sites that took part.
        parameters: number of parameters of the model.
    """
    rounds = run.lines("rounds.jsonl")
    chosen = {line["task"]: line for line in run.lines("metrics.jsonl") if line["round"] == chosen_round}
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


def mean_figures(figures: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of several models' figures by metric, ignoring undefined ones."""
    known = {name: [f[name] for f in figures if not math.isnan(f[name])] for name in (figures[0] if figures else ())}
    return {name: float(np.mean(values)) if values else math.nan for name, values in known.items()}
