"""Compare the multi-task models on six sets of real images: one pooled shard each, the same steps for all.

python -m benchmarks.images --source FOLDER --out images
python -m benchmarks.systems --data images --runs runs [--jobs 2] [--seeds 0 1 2] [--sets covid breast ...]
python -m benchmarks.systems --data images --runs runs --changes "twice the steps" [--sets ...] [--systems ...]

Every model has, set by set, the same images, steps, batches, decoders and balancing. The learning rate is the better of
RATES for each model and set, by the validation figures of the first seed; nothing else is tuned. Figures are of the
validation images after the last round, so no round is chosen either. Delta_MTL compares with the single-task model on
the same backbone, seed by seed. What is reached without looking at an image (benchmarks.blind) stands beside. Runs that
are there already are not run again. CHANGES tell what an order of models hangs on: the same runs, with one setting
changed for all of them, at the rates of the unchanged ones. Figures go to experiments/models.json, in the
place of older ones of the same sets and systems; `python -m benchmarks.readme` makes the tables.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from mtfed.config import RunConfigValue, read_config
from mtfed.federation.app_folder import find_app
from mtfed.tasks.task import Task

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


CHANGES: dict[str, Callable[[dict[str, RunConfigValue]], dict[str, RunConfigValue]]] = {  # of a set's settings
    "": lambda _: {},
    "twice the steps": lambda settings: {"local-steps": 2 * int(settings["local-steps"])},
    "equal weights": lambda _: {"balancing": "equal"},
}


@dataclass(frozen=True)
class Trial:
    """One run: a system on a set, a learning rate, a seed, and what is changed."""

    set: str
    system: str
    rate: float
    seed: int
    change: str = ""

    @property
    def name(self) -> str:
        """Return the run's name, which is how it is found again."""
        words = re.sub(r"[^a-z0-9.]+", "-", f"{self.set} {self.system} {self.change} {self.rate:g}".lower())
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
    parser.add_argument("--changes", nargs="+", default=[], choices=list(CHANGES)[1:])
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
    changed = run_all(
        Trial(*cell, best[cell]["rate"], seed, change)
        for change in given.changes
        for seed in given.seeds
        for cell in cells
        if cell in best
    )
    results = json.loads(RESULTS.read_text())
    results["blind"] |= {one: blind.figures(read_config(settings_of(one, data))) for one in given.sets}
    for name, new in (("tuning", tried), ("runs", found), ("changed", changed)):
        others = [told for told in results[name] if (told["set"], told["system"]) not in cells]
        results[name] = sorted(others + new, key=_order)
    RESULTS.write_text(to_text(results))


def to_text(results: dict[str, Any]) -> str:
    """Return results as JSON, a line a run."""
    parts = [f'"blind": {json.dumps(results["blind"])}']
    for name in ("tuning", "runs", "changed"):
        parts.append(f'"{name}": [\n' + ",\n".join(map(json.dumps, results[name])) + "\n]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _order(told: dict[str, Any]) -> tuple[int, int, str, float, int]:
    place = list(SETS).index(told["set"]), list(SYSTEMS).index(told["system"])
    return *place, told["change"], told["rate"], told["seed"]


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
        "data": settings["data"],
        "model": model,
        "encoder": encoders[int(settings["dimensions"])],
        "learning-rate": trial.rate,
    }
    own = SETS[trial.set] | own | CHANGES[trial.change](settings)
    run = run_of(trial.set, trial.name, own, trial.seed, runs, collect)
    if run is None:
        return None
    lines, rounds = run.lines("metrics.jsonl"), run.lines("rounds.jsonl")
    last = max(line["round"] for line in lines)
    config = run.config()
    told = {
        "set": trial.set,
        "system": trial.system,
        "change": trial.change,
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


if __name__ == "__main__":
    main()
