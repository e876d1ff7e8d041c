"""Compare the strategies on thirteen hospitals, from one start and from models trained apart.

python -m benchmarks.hospitals --source FOLDER --out hospitals
python -m benchmarks.comparison --data hospitals --runs runs [--jobs 2] [--seeds 0 1 2]

Every method has the same hospitals, rounds, local steps and, seed by seed, initial weights. Averaging with task weights
has been given the best of several on the hospitals' validation images of the first seed; nothing else is tuned. The
test images are looked at after every round, for the curves, and no choice goes by them. Runs that are there already
are not run again. Figures go to experiments/chest/results.json, the picture beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mtfed.runs import Run

HOME = Path(__file__).parents[1] / "experiments" / "chest"
RESULTS = HOME / "results.json"
TASKS = {"lungs": "dice", "pneumonia": "auc"}
WEIGHTS = (0.25, 1, 4, 16)  # of the lungs against pneumonia, to choose from
TUNED = "FedAvg, tuned task weights"
METHODS = {  # name -> settings; in the order of the table
    "FedAvg by samples": "strategy=fedavg weighting=samples",
    "FedAvg, sites alike": "strategy=fedavg weighting=uniform",
    "FedAvg, tasks alike": "strategy=fedavg weighting=tasks",
    "FedProx": "strategy=fedprox weighting=tasks",
    "FedAdam": "strategy=fedadam weighting=tasks",
    "PFNM": "strategy=pfnm",
    "Fisher merging": "strategy=fisher",
    "BayesianMatching": "strategy=bayesian",
}
CEILING = ("pooled images", "strategy=fedavg pooled=true")
APART = ("FedAvg by samples", "FedAvg, tasks alike", "PFNM", "Fisher merging", "BayesianMatching")


@dataclass(frozen=True)
class Trial:
    """One run: a method, a start, a seed."""

    method: str
    settings: str
    start: str
    seed: int

    @property
    def name(self) -> str:
        """Return the run's name, which is how it is found again."""
        words = "".join(c if c.isalnum() else "-" for c in f"{self.method} {self.start} {self.seed}".lower())
        return "-".join(part for part in words.split("-") if part)


def main() -> None:
    """Run what is missing, and write figures and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that benchmarks.hospitals made")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the run folders")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()

    def run_all(trials: Iterable[Trial]) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(given.jobs) as pool:
            return list(pool.map(lambda trial: figures(trial, given.data.resolve(), given.runs.resolve()), trials))

    tuning = [weighted(weight, given.seeds[0]) for weight in WEIGHTS]
    tried = run_all(tuning)
    best = WEIGHTS[max(range(len(WEIGHTS)), key=lambda i: score(tried[i]["rounds"][-1], "validation"))]
    steps = tried[0]["steps"]
    trials = []
    for seed in given.seeds:
        trials += [Trial(method, settings, "common", seed) for method, settings in METHODS.items()]
        trials += [weighted(best, seed)]
        trials += [Trial(CEILING[0], f"{CEILING[1]} local-steps={steps}", "common", seed)]
        trials += [Trial(method, METHODS[method], "apart", seed) for method in APART]
    found = tried + [told for told in run_all(trials) if told not in tried]
    RESULTS.write_text(json.dumps({"tuned": best, "weights": WEIGHTS, "runs": found}, indent=1) + "\n")
    print(table(found, "common", best))
    print(table(found, "apart", best))


def weighted(weight: float, seed: int) -> Trial:
    """Return a run of averaging with the lungs so many times as heavy as pneumonia."""
    return Trial(f"{TUNED} {weight:g}", f"strategy=fedavg weighting=tasks task-weights=lungs={weight}", "common", seed)


def figures(trial: Trial, data: Path, runs: Path) -> dict[str, Any]:
    """Return a run's figures, round by round; run it if it is not there."""
    run = next((Run.open(p.parent) for p in sorted(runs.glob(f"{trial.name}-2*/summary.json"))), None)
    if run is None:
        settings = [*trial.settings.split(), f"data={data}", f"start={trial.start}", f"name={trial.name}"]
        command = [sys.executable, "-m", "mtfed.cli", "simulate", str(HOME), "--workers", "1", "--out", str(runs)]
        command += ["--seed", str(trial.seed), *(word for setting in settings for word in ("-c", setting))]
        told = subprocess.run(command, capture_output=True, text=True)
        if told.returncode:
            sys.exit(f"{trial.name} failed:\n{told.stdout[-2000:]}{told.stderr[-2000:]}")
        run = Run.open(max(runs.glob(f"{trial.name}-2*/summary.json")).parent)
    rounds: dict[int, dict[str, Any]] = {}
    for line in run.lines("metrics.jsonl"):
        now = rounds.setdefault(line["round"], {"validation": {}, "test": {}})
        for split, kept in now.items():
            kept[line["task"]] = line[split].get(TASKS[line["task"]])
    told_rounds = run.lines("rounds.jsonl")
    print(f"{trial.name:50} {score(rounds[max(rounds)], 'test'):.4f}", flush=True)
    return {
        "method": trial.method,
        "start": trial.start,
        "seed": trial.seed,
        "settings": trial.settings,
        "steps": told_rounds[-1]["steps"],
        "seconds": sum(line["seconds"] for line in told_rounds),
        "megabytes up": sum(line["bytes_up"] for line in told_rounds) / 1e6,
        "merge": {k: v for line in told_rounds[:1] for k, v in line["merge"].items() if k.startswith("moved.")},
        "rounds": [rounds[number] for number in sorted(rounds)],
    }


def score(figures: dict[str, Any], split: str) -> float:
    """Return the mean of Dice and AUC."""
    return mean(figures[split][task] for task in TASKS)


def table(runs: list[dict[str, Any]], start: str, tuned: float) -> str:
    """Return the figures of the last round on the test images: a row a method, mean and deviation over seeds."""
    lines = ["| | Lung Dice | Pneumonia AUC | mean of both | in round 5 |", "| --- | --- | --- | --- | --- |"]
    methods = [*METHODS, f"{TUNED} {tuned:g}", CEILING[0]]
    for method in methods:
        own = [run for run in runs if run["method"] == method and run["start"] == start]
        if not own:
            continue
        last = [run["rounds"][-1] for run in own]
        columns = [[now["test"][task] for now in last] for task in TASKS]
        columns += [[score(now, "test") for now in last], [score(run["rounds"][4], "test") for run in own]]
        lines.append(f"| {method} | " + " | ".join(map(spread, columns)) + " |")
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    """Return mean and standard deviation."""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
