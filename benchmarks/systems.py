"""Compare the multi-task models on six sets of real images: all images of a set pooled, the same steps for all models.

python -m benchmarks.images --source FOLDER --out images
python -m benchmarks.systems --data images --runs runs [--jobs 2] [--seeds 0 1 2] [--sets covid breast ...]
python -m benchmarks.systems --data images --runs runs --changes "twice the steps" [--sets ...] [--systems ...]

On each set, every model has the same images, steps, batches, decoders and balancing. The learning rate is the better of
RATES for each model and set, by the validation figures of the first seed; nothing else is tuned. Figures are of the
validation images after the last round, so that no round is chosen either. Delta_MTL compares a model with the
single-task model on the same backbone, seed by seed. For reference, benchmarks.blind computes what is reached without
looking at an image. Existing runs are not repeated. CHANGES show what the order of the models depends on: the same
runs with one setting changed for all models, at the rates of the unchanged runs. Figures are written to
experiments/models.json, replacing older ones of the same sets and systems; `python -m benchmarks.readme` writes the
tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from mtfed.config import RunConfigValue, read_config
from mtfed.federation.app_folder import find_app
from mtfed.tasks.task import Task

from . import blind
from .trials import HOME, run_of, run_parallel, run_parser

RESULTS = HOME / "models.json"
# Experiment -> changes to its own settings.
SETS: dict[str, dict[str, RunConfigValue]] = {
    "pneumonia": {
        "pooled": True, "rounds": 8, "local-steps": 90, "warmup": 45, "clip-norm": 1.0, "batch-size": 16,
        "decoder-width": 24, "augment": "shift", "evaluate-every": 2, "test-every": 0,
    },
    "covid": {}, "breast": {}, "skin": {}, "mammogram": {}, "dose": {},
}  # fmt: skip
RATES = (0.001, 0.003)
TRANSFORMER = {2: "coatnet_mini", 3: "swin3d_mini"}
CONVOLUTIONAL = {2: "resnet_mini", 3: "resnet3d_mini"}
SYSTEMS = {  # name in the tables -> model and backbones by dimensions
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
CHANGES: dict[str, Callable[[dict[str, RunConfigValue]], dict[str, RunConfigValue]]] = {  # from a set's settings
    "": lambda _: {},
    "twice the steps": lambda settings: {"local-steps": 2 * int(settings["local-steps"])},
    "equal weights": lambda _: {"balancing": "equal"},
}


@dataclass(frozen=True)
class Trial:
    """One run: a system on a set, a learning rate, a seed, and a change."""

    set: str
    system: str
    rate: float
    seed: int
    change: str = ""

    @property
    def name(self) -> str:
        """The run's name, by which an existing run is found."""
        words = re.sub(r"[^a-z0-9.]+", "-", f"{self.set} {self.system} {self.change} {self.rate:g}".lower())
        return f"{words}-s{self.seed}"


def main() -> None:
    """Start the runs that do not exist, and write the figures."""
    parser = run_parser(__doc__, "benchmarks.images")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--changes", nargs="+", default=[], choices=list(CHANGES)[1:])
    parser.add_argument("--collect", action="store_true", help="start no run, use only those that exist")
    arguments = parser.parse_args()
    data, first_seed = arguments.data.resolve(), arguments.seeds[0]
    run_trial = partial(run_figures, data=data, runs=arguments.runs.resolve(), collect=arguments.collect)

    pairs = [(name, system) for name in arguments.sets for system in arguments.systems]
    candidates = [Trial(*pair, rate, first_seed) for pair in pairs for rate in RATES]
    tuning = run_parallel(run_trial, candidates, arguments.jobs)
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for run in sorted(tuning, key=score, reverse=True):
        best.setdefault((run["set"], run["system"]), run)
    rates = {pair: figures["rate"] for pair, figures in best.items()}
    others = [Trial(*pair, rate, seed) for seed in arguments.seeds[1:] for pair, rate in rates.items()]
    changed = [
        Trial(*pair, rate, seed, change)
        for change in arguments.changes for seed in arguments.seeds for pair, rate in rates.items()
    ]  # fmt: skip
    new = {
        "tuning": tuning,
        "runs": [*best.values(), *run_parallel(run_trial, others, arguments.jobs)],
        "changed": run_parallel(run_trial, changed, arguments.jobs),
    }
    results = json.loads(RESULTS.read_text())
    results["blind"] |= {name: blind.figures(read_config(settings_of(name, data))) for name in arguments.sets}
    for part, figures in new.items():
        unchanged = [run for run in results[part] if (run["set"], run["system"]) not in pairs]
        results[part] = sorted(unchanged + figures, key=_order)
    RESULTS.write_text(to_text(results))


def to_text(results: dict[str, Any]) -> str:
    """Return results as JSON with one line per run."""
    parts = [f'"blind": {json.dumps(results["blind"])}']
    for name in ("tuning", "runs", "changed"):
        parts.append(f'"{name}": [\n' + ",\n".join(map(json.dumps, results[name])) + "\n]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _order(run: dict[str, Any]) -> tuple[int, int, str, float, int]:
    position = list(SETS).index(run["set"]), list(SYSTEMS).index(run["system"])
    return *position, run["change"], run["rate"], run["seed"]


def settings_of(name: str, data: Path) -> dict[str, RunConfigValue]:
    """Return the settings of a set's experiment, with the path of its images."""
    app = find_app(name).run_config
    path = app["data"] if app["data"] == "sample" else str(data / Path(str(app["data"])).name)
    return app | SETS[name] | {"data": path}


def run_figures(trial: Trial, data: Path, runs: Path, collect: bool) -> dict[str, Any] | None:
    """Return a run's figures; if it does not exist, start it, or return None if ``collect`` is set."""
    model, encoders = SYSTEMS[trial.system]
    set_settings = settings_of(trial.set, data)
    encoder = encoders[int(set_settings["dimensions"])]
    settings: dict[str, RunConfigValue] = {"data": set_settings["data"], "model": model, "encoder": encoder}
    settings = SETS[trial.set] | settings | {"learning-rate": trial.rate} | CHANGES[trial.change](set_settings)
    run = run_of(trial.set, trial.name, settings, trial.seed, runs, collect)
    if run is None:
        return None
    metrics, rounds = run.lines("metrics.jsonl"), run.lines("rounds.jsonl")
    last = max(line["round"] for line in metrics)
    figures = {
        "set": trial.set, "system": trial.system, "change": trial.change, "seed": trial.seed, "rate": trial.rate,
        "validation": {line["task"]: line["validation"] for line in metrics if line["round"] == last},
        "curves": {
            name: [line["validation"].get(task.metric) for line in metrics if line["task"] == name]
            for name, task in run.config().tasks.items()
        },
        "parameters": run.read_json("summary.json")["parameters"],
        "steps": sum(line["steps"] for line in rounds),
        "seconds": sum(line["train_seconds"] for line in rounds),
    }  # fmt: skip
    print(f"{trial.name:44} {score(figures):.4f}  {figures['seconds']:.0f} s", flush=True)
    return figures


def tasks_of(name: str) -> dict[str, Task]:
    """Return the tasks of a set's experiment."""
    return read_config(find_app(name).run_config).tasks


def score(figures: dict[str, Any]) -> float:
    """Return the mean over tasks of the main metric, each so that higher is better."""
    tasks = tasks_of(figures["set"])
    return mean(task.score(figures["validation"][name][task.metric]) for name, task in tasks.items())


if __name__ == "__main__":
    main()
