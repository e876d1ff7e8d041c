"""Eight hospitals, half of them without labels: what their images add to the federation.

python -m benchmarks.unlabelled --runs runs [--jobs 2] [--seeds 0 1 2]

The images are the sample of the package. In all arms the labelled hospitals have the same labels, and every hospital
takes the same steps. Figures are of test images after the last round. Existing runs are not repeated. Figures are
written to experiments/unlabelled/results.json, and the table to the folder's README.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from mtfed.config import RunConfigValue

from . import trials
from .tables import markdown_table, mean_and_deviation, replace_marked
from .trials import Figures, run_parallel

HOME = trials.HOME / "unlabelled"
RESULTS = HOME / "results.json"
TASKS = {"lungs": "dice", "pneumonia": "auc"}
STRATEGIES = {"BayesianMatching": "bayesian", "FedAvg": "fedavg"}
ARMS: dict[str, tuple[dict[str, RunConfigValue], tuple[str, ...]]] = {  # settings, and tasks; none: all
    "labelled hospitals only": ({}, tuple(TASKS)),
    "and the images of the others": ({}, ()),
    "all hospitals have labels": ({"unlabelled": 0.0}, tuple(TASKS)),
}
Trial = tuple[str, str, int]  # strategy, arm, seed


def main() -> None:
    """Start the runs that do not exist, and write figures and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the run folders")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    chosen = [(strategy, arm, seed) for seed in arguments.seeds for strategy in STRATEGIES for arm in ARMS]
    figures = run_parallel(partial(run_figures, runs=arguments.runs.resolve()), chosen, arguments.jobs)
    RESULTS.write_text("[\n" + ",\n".join(map(json.dumps, figures)) + "\n]\n")
    replace_marked(HOME / "README.md", {"unlabelled": table(figures)})


def run_figures(trial: Trial, runs: Path) -> Figures:
    """Return a run's test figures after its last round; start the run if it does not exist."""
    strategy, arm, seed = trial
    settings, tasks = ARMS[arm]
    settings = {"strategy": STRATEGIES[strategy], **settings}
    name = f"unlabelled-{list(ARMS).index(arm)}-{STRATEGIES[strategy]}-s{seed}"
    run = trials.run_of("unlabelled", name, settings, seed, runs, tasks=tasks)
    assert run is not None
    lines = {line["task"]: line["test"] for line in run.lines("metrics.jsonl")[-len(run.config().tasks) :]}
    figures = {task: lines[task][metric] for task, metric in TASKS.items()}
    print(name, figures, flush=True)
    return {"strategy": strategy, "arm": arm, "seed": seed, **figures}


def table(figures: list[dict[str, Any]]) -> str:
    """Return a table with a row for each strategy and arm: mean and deviation over seeds."""
    rows = []
    for strategy in STRATEGIES:
        for arm in ARMS:
            own = [run for run in figures if (run["strategy"], run["arm"]) == (strategy, arm)]
            rows.append([strategy, arm, *(mean_and_deviation([run[task] for run in own]) for task in TASKS)])
    return markdown_table(["", "", "Lung Dice", "Pneumonia AUC"], rows)


if __name__ == "__main__":
    main()
