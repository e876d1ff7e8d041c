"""Compare the multi-task models on six sets of real images: one pooled shard each, the same steps for all.

python -m benchmarks.images --source FOLDER --out images
python -m benchmarks.systems --data images --runs runs [--jobs 2] [--seeds 0 1 2] [--sets covid breast ...]

Every model has, set by set, the same images, steps, batches, decoders and balancing. The learning rate is the better of
RATES for each model and set, by the validation figures of the first seed; nothing else is tuned. Figures are of the
validation images after the last round, so no round is chosen either. Delta_MTL compares with the single-task model on
the same backbone, seed by seed. What is reached without looking at an image (benchmarks.blind) stands beside. Runs that
are there already are not run again. Figures go to experiments/models.json, from which `python -m benchmarks.readme`
makes the tables.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mtfed.apps import find_app
from mtfed.config import RunConfigValue, read_config
from mtfed.delta import delta_mtl
from mtfed.tasks import LOWER_IS_BETTER, Task

from . import blind
from .trials import HOME, run_of

RESULTS = HOME / "models.json"
# Experiment -> what it is given beyond its own settings.
SETS: dict[str, dict[str, RunConfigValue]] = {
    "pneumonia": {
        "pooled": True,
        "rounds": 8,
        "local-steps": 90,
        "warmup": 45,
        "clip-norm": 1.0,
        "batch-size": 16,
        "decoder-width": 24,
        "augment": "shift",
        "evaluate-every": 2,
        "test-every": 0,
    },
    "covid": {},
    "breast": {},
    "skin": {},
    "mammogram": {},
    "dose": {},
}
RATES = (0.001, 0.003)
LEARNED = 0.05  # a single-task figure below this is no yardstick
TRANSFORMER = {2: "coatnet_mini", 3: "swin3d_mini"}
CONVOLUTIONAL = {2: "resnet_mini", 3: "resnet3d_mini"}
SYSTEMS = {  # name in the tables -> model and backbones
    "MTMedFormer": ("mtmedformer", TRANSFORMER),
    "CTAN, transformer": ("ctan", TRANSFORMER),
    "Single task, transformer": ("single-task", TRANSFORMER),
    "CTAN": ("ctan", CONVOLUTIONAL),
    "CTAN without CTAB": ("ctan-encoder", CONVOLUTIONAL),
    "CTAN without CTAE": ("ctan-bottleneck", CONVOLUTIONAL),
    "Hard sharing": ("hard-sharing", CONVOLUTIONAL),
    "MTAN": ("mtan", CONVOLUTIONAL),
    "Single task": ("single-task", CONVOLUTIONAL),
}


@dataclass(frozen=True)
class Trial:
    """One run: a system on a set, a learning rate, a seed."""

    set: str
    system: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Return the run's name, which is how it is found again."""
        words = re.sub(r"[^a-z0-9.]+", "-", f"{self.set} {self.system} {self.rate:g}".lower())
        return f"{words}-s{self.seed}"


def main() -> None:
    """Run what is missing, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that benchmarks.images made")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the run folders")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--collect", action="store_true", help="run nothing: take the runs that are there")
    given = parser.parse_args()

    data, runs = given.data.resolve(), given.runs.resolve()

    def run_all(trials: Iterable[Trial]) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(given.jobs) as pool:
            found = pool.map(lambda trial: figures(trial, data, runs, given.collect), trials)
            return [told for told in found if told is not None]

    cells = [(one, system) for one in given.sets for system in given.systems]
    tried = run_all(Trial(*cell, rate, given.seeds[0]) for cell in cells for rate in RATES)
    best = {
        cell: max(own, key=score)
        for cell in cells
        if (own := [told for told in tried if (told["set"], told["system"]) == cell])
    }
    found = list(best.values())
    found += run_all(
        Trial(*cell, best[cell]["rate"], seed) for seed in given.seeds[1:] for cell in cells if cell in best
    )
    unseen = {one: blind.figures(read_config(settings_of(one, data))) for one in given.sets}
    RESULTS.write_text(json.dumps({"blind": unseen, "tuning": tried, "runs": found}, indent=1) + "\n")


def settings_of(name: str, data: Path) -> dict[str, RunConfigValue]:
    """Return a set's settings, with its images where they are."""
    app = find_app(name).run_config
    place = app["data"] if app["data"] == "sample" else str(data / Path(str(app["data"])).name)
    return app | SETS[name] | {"data": place}


def figures(trial: Trial, data: Path, runs: Path, collect: bool) -> dict[str, Any] | None:
    """Return a run's figures; if there is none with its settings, run it, or return nothing."""
    model, encoders = SYSTEMS[trial.system]
    settings = settings_of(trial.set, data)
    own: dict[str, RunConfigValue] = {
        "model": model,
        "encoder": encoders[int(settings["dimensions"])],
        "learning-rate": trial.rate,
    }
    run = run_of(trial.set, trial.name, SETS[trial.set] | {"data": settings["data"]} | own, trial.seed, runs, collect)
    if run is None:
        return None
    lines, rounds = run.lines("metrics.jsonl"), run.lines("rounds.jsonl")
    last = max(line["round"] for line in lines)
    config = run.config()
    told = {
        "set": trial.set,
        "system": trial.system,
        "seed": trial.seed,
        "rate": trial.rate,
        "validation": {line["task"]: line["validation"] for line in lines if line["round"] == last},
        "curves": {
            task: [line["validation"].get(config.tasks[task].metric) for line in lines if line["task"] == task]
            for task in config.tasks
        },
        "parameters": run.read_json("summary.json")["parameters"],
        "steps": sum(line["steps"] for line in rounds),
        "seconds": sum(line["train_seconds"] for line in rounds),
    }
    print(f"{trial.name:44} {score(told):.4f}  {told['seconds']:.0f} s", flush=True)
    return told


def tasks_of(name: str) -> dict[str, Task]:
    """Return the tasks of a set's experiment."""
    return read_config(find_app(name).run_config).tasks


def score(told: dict[str, Any]) -> float:
    """Return the mean over tasks of the figures that choices go by, each so that up is better."""
    tasks = tasks_of(told["set"])
    return mean(task.score(told["validation"][name][task.metric]) for name, task in tasks.items())


def deltas(of: list[dict[str, Any]], runs: list[dict[str, Any]]) -> list[float]:
    """Return the Delta_MTL of runs whose single-task counterpart is there and has learned all tasks."""
    return [found for told in of if (found := delta(told, runs)) is not None]


def delta(told: dict[str, Any], runs: list[dict[str, Any]]) -> float | None:
    """Return a run's Delta_MTL in percent against the single-task run of its backbone, set and seed."""
    backbone = SYSTEMS[told["system"]][1]
    single = next(name for name, (model, own) in SYSTEMS.items() if model == "single-task" and own is backbone)
    wanted = (told["set"], single, told["seed"])
    other = next((run for run in runs if (run["set"], run["system"], run["seed"]) == wanted), None)
    if other is None:
        return None
    multi, one = (
        {name: {task.metric: run["validation"][name][task.metric]} for name, task in tasks_of(told["set"]).items()}
        for run in (told, other)
    )
    if any(value < LEARNED for figures in one.values() for value in figures.values()):
        return None
    return delta_mtl(multi, one, LOWER_IS_BETTER)


def tables(results: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield a table a set, and one of Delta_MTL over all sets."""
    runs = results["runs"]
    sets = [one for one in SETS if any(run["set"] == one for run in runs)]
    for one in sets:
        tasks = tasks_of(one)
        titles = [
            f"{name} {task.metric}{' ↓' if task.metric in LOWER_IS_BETTER else ''}" for name, task in tasks.items()
        ]
        head = ["", *titles, "Δ_MTL, %", "M parameters", "learning rate", "seeds"]
        lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
        for system in SYSTEMS:
            own = [run for run in runs if run["set"] == one and run["system"] == system]
            if own:
                columns = [[run["validation"][name][task.metric] for run in own] for name, task in tasks.items()]
                cells = [*map(spread, columns), spread(deltas(own, runs), 1), f"{own[0]['parameters'] / 1e6:.2f}"]
                cells += [f"{own[0]['rate']:g}", str(len(own))]
                lines.append(f"| {system} | {' | '.join(cells)} |")
        unseen = [results["blind"][one].get(name, {}).get(task.metric) for name, task in tasks.items()]
        cells = ["–" if value is None else f"{value:.3f}" for value in unseen]
        lines.append(f"| the mean label, no image looked at | {' | '.join(cells)} | | | | |")
        yield one, lines
    shared = [system for system, (model, _) in SYSTEMS.items() if model != "single-task"]
    found = {
        system: [deltas([r for r in runs if r["set"] == one and r["system"] == system], runs) for one in sets]
        for system in shared
        if any(run["system"] == system for run in runs)
    }
    common = [i for i in range(len(sets)) if all(by_set[i] for by_set in found.values())]
    names = ", ".join(sets[i] for i in common)
    lines = [f"| Δ_MTL, % | {' | '.join(sets)} | mean of {names} |", "| --- " * (len(sets) + 2) + "|"]
    for system, by_set in found.items():
        cells = [*(spread(values, 1) for values in by_set), f"{mean(mean(by_set[i]) for i in common):+.1f}"]
        lines.append(f"| {system} | {' | '.join(cells)} |")
    yield "delta", lines


def spread(values: list[float], digits: int = 3) -> str:
    """Return mean and standard deviation."""
    if not values:
        return "–"
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
