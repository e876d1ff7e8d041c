"""Compare the strategies on thirteen hospitals, from common initial weights and from models trained apart.

python -m benchmarks.hospitals --source FOLDER --out hospitals
python -m benchmarks.comparison --data hospitals --runs runs [--jobs 2] [--seeds 0 1 2]

Every method has the same hospitals, rounds, local steps and, for each seed, initial weights. The task weights of
averaging are the best of several on the hospitals' validation images of the first seed; nothing else is tuned. Test
images are evaluated halfway and at the end, and nothing is chosen on them; the curves show the hospitals' own
validation images. Existing runs are not repeated. Figures are written to experiments/chest/results.json, and the plot
and the tables to the same folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from mtfed.config import RunConfigValue

from . import trials
from .tables import markdown_table, mean_and_deviation, replace_marked
from .trials import run_parallel, run_parser

HOME = trials.HOME / "chest"
RESULTS = HOME / "results.json"
TASKS = {"lungs": "dice", "pneumonia": "auc"}
WEIGHTS = (0.25, 1, 4, 16)  # candidates for the weight of the lungs relative to pneumonia
TUNED = "FedAvg, tuned task weights"
METHODS: dict[str, dict[str, RunConfigValue]] = {  # name -> settings; in the order of the table
    "FedAvg by samples": {"strategy": "fedavg", "weighting": "samples"},
    "FedAvg, equal sites": {"strategy": "fedavg", "weighting": "uniform"},
    "FedAvg, equal tasks": {"strategy": "fedavg", "weighting": "tasks"},
    "FedProx": {"strategy": "fedprox", "weighting": "tasks"},
    "FedAdam": {"strategy": "fedadam", "weighting": "tasks"},
    "PFNM": {"strategy": "pfnm"},
    "Fisher merging": {"strategy": "fisher"},
    "BayesianMatching": {"strategy": "bayesian"},
}
UPPER_BOUND = "pooled images"
TRAINED_APART = ("FedAvg, equal tasks", "Fisher merging", "BayesianMatching")
COLOURS = {
    "FedAvg by samples": "#999999", "FedAvg, equal tasks": "#e69f00", "Fisher merging": "#56b4e9",
    "BayesianMatching": "#009e73", UPPER_BOUND: "#000000",
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One run: a method, a start, a seed."""

    method: str
    settings: dict[str, RunConfigValue]
    start: str
    seed: int

    @property
    def name(self) -> str:
        """The run's name, by which an existing run is found."""
        words = "".join(c if c.isalnum() else "-" for c in f"{self.method} {self.start} {self.seed}".lower())
        return "-".join(part for part in words.split("-") if part)


def main() -> None:
    """Start the runs that do not exist, and write figures and plot."""
    arguments = run_parser(__doc__, "benchmarks.hospitals").parse_args()
    run_trial = partial(run_figures, data=arguments.data.resolve(), runs=arguments.runs.resolve())

    tuning = run_parallel(run_trial, [weighted(weight, arguments.seeds[0]) for weight in WEIGHTS], arguments.jobs)
    best = WEIGHTS[max(range(len(WEIGHTS)), key=lambda i: score(tuning[i]["rounds"][-1], "validation"))]
    pooled: dict[str, RunConfigValue] = {"strategy": "fedavg", "pooled": True, "local-steps": tuning[0]["steps"]}
    compared: list[Trial] = []
    for seed in arguments.seeds:
        compared += [Trial(method, settings, "common", seed) for method, settings in METHODS.items()]
        compared += [weighted(best, seed), Trial(UPPER_BOUND, pooled, "common", seed)]
        compared += [Trial(method, METHODS[method], "apart", seed) for method in TRAINED_APART]
    results = [run for run in run_parallel(run_trial, compared, arguments.jobs) if run not in tuning]
    RESULTS.write_text(json.dumps({"tuned": best, "weights": WEIGHTS, "runs": tuning + results}, indent=1) + "\n")
    runs = json.loads(RESULTS.read_text())["runs"]
    replace_marked(HOME / "README.md", {start: table(runs, start, best) for start in ("common", "apart")})
    plot(runs)


def weighted(weight: float, seed: int) -> Trial:
    """Return a trial of averaging in which the lungs have this weight relative to pneumonia."""
    settings: dict[str, RunConfigValue] = METHODS["FedAvg, equal tasks"] | {"task-weights": f"lungs={weight}"}
    return Trial(f"{TUNED} {weight:g}", settings, "common", seed)


def run_figures(trial: Trial, data: Path, runs: Path) -> dict[str, Any]:
    """Return a run's figures by round; start the run if it does not exist."""
    settings = trial.settings | {"data": str(data), "start": trial.start}
    run = trials.run_of("chest", trial.name, settings, trial.seed, runs)
    assert run is not None
    metrics: dict[int, dict[str, Any]] = {}
    for line in run.lines("metrics.jsonl"):
        for split, by_task in metrics.setdefault(line["round"], {"validation": {}, "test": {}}).items():
            by_task[line["task"]] = line[split].get(TASKS[line["task"]])
    rounds = run.lines("rounds.jsonl")
    print(f"{trial.name:50} {score(metrics[max(metrics)], 'test'):.4f}", flush=True)
    return {
        "method": trial.method, "start": trial.start, "seed": trial.seed, "settings": trial.settings,
        "steps": rounds[-1]["steps"],
        "seconds": sum(line["seconds"] for line in rounds),
        "megabytes up": sum(line["bytes_up"] for line in rounds) / 1e6,
        "merge": {k: v for line in rounds[:1] for k, v in line["merge"].items() if k.startswith("moved.")},
        "rounds": [metrics[number] for number in sorted(metrics)],
    }  # fmt: skip


def score(metrics: dict[str, Any], split: str) -> float:
    """Return the mean of Dice and AUC."""
    return mean(metrics[split][task] for task in TASKS)


def table(runs: list[dict[str, Any]], start: str, tuned: float) -> str:
    """Return the table of test figures for a start, one row per method, mean and deviation over seeds."""
    last = len(runs[0]["rounds"])
    head, rows = ["", "Lung Dice", "Pneumonia AUC", "mean of both", f"halfway, round {last // 2}", "seeds"], []
    # The tuned weights have a row unless they are those of another method.
    for method in [*METHODS, *([f"{TUNED} {tuned:g}"] if tuned != 1 else []), UPPER_BOUND]:
        selected = [run["rounds"] for run in runs if (run["method"], run["start"]) == (method, start)]
        if selected:
            end, half = [rounds[-1] for rounds in selected], [rounds[last // 2 - 1] for rounds in selected]
            columns = [[metrics["test"][task] for metrics in end] for task in TASKS]
            columns += [[score(metrics, "test") for metrics in rounds] for rounds in (end, half)]
            rows.append([method, *map(mean_and_deviation, columns), str(len(selected))])
    return markdown_table(head, rows)


def plot(runs: list[dict[str, Any]]) -> None:
    """Draw the validation curves from common initial weights: mean over seeds, and their range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharex=True)
    for axis, (task, metric) in zip(axes, TASKS.items(), strict=True):
        for method, colour in COLOURS.items():
            curves = [
                [metrics["validation"][task] for metrics in run["rounds"]]
                for run in runs
                if (run["method"], run["start"]) == (method, "common")
            ]
            if not curves:
                continue
            rounds = range(1, len(curves[0]) + 1)
            means = [mean(values) for values in zip(*curves, strict=True)]
            axis.plot(rounds, means, "--" if method == UPPER_BOUND else "-", color=colour, label=method, lw=2)
            if len(curves) > 1:
                low, high = (list(map(f, zip(*curves, strict=True))) for f in (min, max))
                axis.fill_between(rounds, low, high, color=colour, alpha=0.15, lw=0)
        axis.set(title={"dice": "Lung Dice", "auc": "Pneumonia AUC"}[metric], xlabel="round")
        axis.set_ylim(bottom={"lungs": 0.55, "pneumonia": 0.8}[task])
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("hospitals' validation images")
    axes[1].legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(HOME / "comparison.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
