"""Compare the strategies on thirteen hospitals, from one start and from models trained apart.

python -m benchmarks.hospitals --source FOLDER --out hospitals
python -m benchmarks.comparison --data hospitals --runs runs [--jobs 2] [--seeds 0 1 2]

Every method has the same hospitals, rounds, local steps and, seed by seed, initial weights. Averaging with task weights
has been given the best of several on the hospitals' validation images of the first seed; nothing else is tuned. The
test images are looked at half way and at the end, and no choice goes by them; the curves are of the hospitals' own
validation images. Runs that are there already are not run again. Figures go to experiments/chest/results.json, the
picture and the table beside it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mtfed.config import RunConfigValue

from . import trials

HOME = trials.HOME / "chest"
RESULTS = HOME / "results.json"
TASKS = {"lungs": "dice", "pneumonia": "auc"}
WEIGHTS = (0.25, 1, 4, 16)  # of the lungs against pneumonia, to choose from
TUNED = "FedAvg, tuned task weights"
METHODS: dict[str, dict[str, RunConfigValue]] = {  # name -> settings; in the order of the table
    "FedAvg by samples": {"strategy": "fedavg", "weighting": "samples"},
    "FedAvg, sites alike": {"strategy": "fedavg", "weighting": "uniform"},
    "FedAvg, tasks alike": {"strategy": "fedavg", "weighting": "tasks"},
    "FedProx": {"strategy": "fedprox", "weighting": "tasks"},
    "FedAdam": {"strategy": "fedadam", "weighting": "tasks"},
    "PFNM": {"strategy": "pfnm"},
    "Fisher merging": {"strategy": "fisher"},
    "BayesianMatching": {"strategy": "bayesian"},
}
CEILING = "pooled images"
APART = ("FedAvg, tasks alike", "Fisher merging", "BayesianMatching")


@dataclass(frozen=True)
class Trial:
    """One run: a method, a start, a seed."""

    method: str
    settings: dict[str, RunConfigValue]
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
    wanted: list[Trial] = []
    for seed in given.seeds:
        wanted += [Trial(method, settings, "common", seed) for method, settings in METHODS.items()]
        wanted += [weighted(best, seed)]
        pooled: dict[str, RunConfigValue] = {"strategy": "fedavg", "pooled": True, "local-steps": steps}
        wanted += [Trial(CEILING, pooled, "common", seed)]
        wanted += [Trial(method, METHODS[method], "apart", seed) for method in APART]
    found = tried + [told for told in run_all(wanted) if told not in tried]
    RESULTS.write_text(json.dumps({"tuned": best, "weights": WEIGHTS, "runs": found}, indent=1) + "\n")
    write(json.loads(RESULTS.read_text()))


def weighted(weight: float, seed: int) -> Trial:
    """Return a run of averaging with the lungs so many times as heavy as pneumonia."""
    settings: dict[str, RunConfigValue] = METHODS["FedAvg, tasks alike"] | {"task-weights": f"lungs={weight}"}
    return Trial(f"{TUNED} {weight:g}", settings, "common", seed)


def figures(trial: Trial, data: Path, runs: Path) -> dict[str, Any]:
    """Return a run's figures, round by round; run it if it is not there."""
    settings = trial.settings | {"data": str(data), "start": trial.start}
    run = trials.run_of("chest", trial.name, settings, trial.seed, runs)
    assert run is not None
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


def write(results: dict[str, Any]) -> None:
    """Write tables into the experiment's README, and the picture."""
    runs, tuned = results["runs"], results["tuned"]
    text = (HOME / "README.md").read_text()
    for start in ("common", "apart"):
        text = re.sub(
            rf"(<!-- figures: {start} -->\n).*?(<!-- end -->)",
            lambda m, start=start: m[1] + table(runs, start, tuned) + m[2],
            text,
            flags=re.S,
        )
    (HOME / "README.md").write_text(text)
    picture(runs, tuned)


def table(runs: list[dict[str, Any]], start: str, tuned: float) -> str:
    """Return the test figures of a start: a row a method, mean and deviation over seeds."""
    last = len(runs[0]["rounds"])
    lines = [
        f"| | Lung Dice | Pneumonia AUC | mean of both | half way, round {last // 2} | seeds |",
        "| --- " * 6 + "|",
    ]
    for method in methods(tuned):
        own = [run for run in runs if run["method"] == method and run["start"] == start]
        if own:
            end, half = [run["rounds"][-1] for run in own], [run["rounds"][last // 2 - 1] for run in own]
            columns = [[now["test"][task] for now in end] for task in TASKS]
            columns += [[score(now, "test") for now in end], [score(now, "test") for now in half]]
            lines.append(f"| {method} | " + " | ".join(map(spread, columns)) + f" | {len(own)} |")
    return "\n".join(lines) + "\n"


def methods(tuned: float) -> list[str]:
    """Return the methods in the order of the table; the tuned weights have a row if they are not those of another."""
    return [*METHODS, *([f"{TUNED} {tuned:g}"] if tuned != 1 else []), CEILING]


def picture(runs: list[dict[str, Any]], tuned: float) -> None:
    """Draw the validation curves of a common start: mean over seeds, and their range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panes = plt.subplots(1, 2, figsize=(10, 4), sharex=True)
    shown = {"FedAvg by samples": "#999999", "FedAvg, tasks alike": "#e69f00", "Fisher merging": "#56b4e9",
             "BayesianMatching": "#009e73", CEILING: "#000000"}  # fmt: skip
    for pane, (task, metric) in zip(panes, TASKS.items(), strict=True):
        for method, colour in shown.items():
            own = [run for run in runs if run["method"] == method and run["start"] == "common"]
            curves = [[now["validation"][task] for now in run["rounds"]] for run in own]
            if not curves:
                continue
            rounds = range(1, len(curves[0]) + 1)
            middle = [mean(values) for values in zip(*curves, strict=True)]
            style = "--" if method == CEILING else "-"
            pane.plot(rounds, middle, style, color=colour, label=method, lw=2)
            if len(curves) > 1:
                low, high = (list(map(f, zip(*curves, strict=True))) for f in (min, max))
                pane.fill_between(rounds, low, high, color=colour, alpha=0.15, lw=0)
        pane.set(title={"dice": "Lung Dice", "auc": "Pneumonia AUC"}[metric], xlabel="round")
        pane.set_ylim(bottom={"lungs": 0.55, "pneumonia": 0.8}[task])
        pane.spines[["top", "right"]].set_visible(False)
    panes[0].set_ylabel("hospitals' validation images")
    panes[1].legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(HOME / "comparison.png", dpi=110)
    plt.close(figure)


def spread(values: list[float]) -> str:
    """Return mean and standard deviation."""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
