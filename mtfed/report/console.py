"""The result of a finished run on the terminal."""

from __future__ import annotations

import math
from typing import Any

from ..config import Config
from ..progress import print_table
from ..record.run import Run
from .html import count
from .metric_format import format_value, full_title


def print_summary(run: Run, config: Config, summary: dict[str, Any], *, tested: bool) -> None:
    """Print the metrics of the chosen model and the sites that failed.

    The metrics are those of the test images if ``tested``, otherwise those of the sites' validation images.
    """
    images, columns = "validation", {"validation": "trained"}
    if tested:
        images, columns = "test", {"untrained": "before training", "test": "trained"}
    rows = []
    for name, figures in summary["tasks"].items():
        task = config.tasks[name]
        for metric in task.metrics:
            values = (figures[split].get(metric, math.nan) for split in columns)
            rows.append([name, full_title(task, metric), *(format_value(value, task, metric) for value in values)])
    failing = [failure["site"] for line in run.lines("rounds.jsonl") for failure in line["failures"]]
    sites = ", ".join(sorted(set(failing)))
    note = f"{count(len(failing), 'failure')} at {sites}; rounds.jsonl has the reasons." if failing else ""
    title = f"{config.name} · {config.strategy} · round {summary['chosen_round']} on the {images} images"
    print_table(title, ["task", "metric", *columns.values()], rows, note)
