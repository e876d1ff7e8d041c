"""Medformer on seven sets of images and volumes: joint training, pre-training without labels, and few labels.

python -m benchmarks.joint_images --source FOLDER --out images/joint
python -m benchmarks.medformer --data images/joint --runs runs [--jobs 2] [--seeds 0 1 2]

Four arms, for every task and seed: trained on the task alone or on all tasks, from random weights or from weights that
were pre-trained on the training images of all sets without labels. A model of all tasks takes as many steps as the
models of one task together. The curves train on a task alone with a share of its labels, drawn anew for every seed.
The learning rate of each arm is the better of RATES by the validation figures of the first seed; nothing else is
tuned. No round is chosen: figures are those after the last one, of test images, or of validation images for the sets
that have no others. Existing runs are not repeated. Figures are written to experiments/medformer/results.json, tables
and the plot to the same folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mtfed.config import RunConfigValue, read_config
from mtfed.federation.app_folder import find_app

from . import trials
from .tables import markdown_table, mean_and_deviation, replace_marked
from .trials import Figures, run_parallel, run_parser

HOME = trials.HOME / "medformer"
RESULTS = HOME / "results.json"
PRETEXT = "reconstruction + orientation + views"
STEPS = 400  # of a model of one task, with any share of its labels
PRETRAINING: dict[str, RunConfigValue] = {"rounds": 8, "local-steps": 350, "batch-size": 32, "augment": "none"}
RATES = (0.0003, 0.001)
SHARES = (0.01, 0.05, 0.1, 1.0)
FEW_LABELS = ("pneumonia", "melanoma", "tumour")  # tasks of the curves
ARMS = {  # name in the table -> whether all tasks are trained together, and whether from pre-trained weights
    "one task": (False, False),
    "all tasks": (True, False),
    "pre-trained, one task": (False, True),
    "pre-trained, all tasks": (True, True),
}
COLOURS = {False: "#999999", True: "#009e73"}


@dataclass(frozen=True)
class Trial:
    """One run: its tasks, whether it starts from pre-trained weights, its share of labels, learning rate and seed."""

    tasks: tuple[str, ...]
    pretrained: bool
    share: float
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Return the run's name, by which an existing run is found."""
        tasks = self.tasks[0] if len(self.tasks) == 1 else "all"
        start = "pretrained" if self.pretrained else "scratch"
        return f"{tasks}-{start}-{self.share:g}-{self.rate:g}-s{self.seed}"

    @property
    def settings(self) -> dict[str, RunConfigValue]:
        """Return the differences from the experiment's own settings."""
        return {
            "rounds": 4, "local-steps": STEPS * len(self.tasks) // 4, "warmup": 80, "evaluate-every": 0,
            "learning-rate": self.rate, "label-share": self.share, "partition-seed": self.seed,
        }  # fmt: skip


def main() -> None:
    """Start the runs that do not exist, and write figures, tables and the plot."""
    parser = run_parser(__doc__, "benchmarks.joint_images")
    arguments = parser.parse_args()
    data, runs, seeds = arguments.data.resolve(), arguments.runs.resolve(), arguments.seeds
    weights = trials.pretrained_run("medformer", "medformer", {"data": str(data), **PRETRAINING}, 0, runs, PRETEXT)
    file = weights.folder / "checkpoints" / "best.safetensors"
    figures_of = partial(run_figures, data=data, runs=runs, weights=file)

    every = tuple(read_config(find_app("medformer").run_config).tasks)
    arms = [((task,), start, 1.0) for task in every for start in (False, True)]
    arms += [(every, start, 1.0) for start in (False, True)]
    arms += [((task,), start, share) for task in FEW_LABELS for share in SHARES[:-1] for start in (False, True)]
    arms.sort(key=lambda arm: -len(arm[0]))  # long runs first
    tuning = run_parallel(figures_of, [Trial(*arm, rate, seeds[0]) for arm in arms for rate in RATES], arguments.jobs)
    rates = {arm: best_rate(run for run in tuning if of_arm(run, arm)) for arm in arms}
    others = [Trial(*arm, rates[arm], seed) for seed in seeds[1:] for arm in arms]
    chosen = [run for run in tuning if run["rate"] == next(rates[arm] for arm in arms if of_arm(run, arm))]
    results = {"pretrained": pretraining_figures(weights), "tuning": tuning}
    results["runs"] = chosen + run_parallel(figures_of, others, arguments.jobs)
    RESULTS.write_text(to_text(results))
    write_pages(json.loads(RESULTS.read_text()))


def run_figures(trial: Trial, data: Path, runs: Path, weights: Path) -> Figures:
    """Return a run's figures after its last round; start the run if it does not exist."""
    settings = {**trial.settings, "data": str(data), "weights": str(weights) if trial.pretrained else ""}
    run = trials.run_of("medformer", trial.name, settings, trial.seed, runs, tasks=trial.tasks)
    assert run is not None
    tasks = run.config().tasks
    lines = {line["task"]: line for line in run.lines("metrics.jsonl")[-len(tasks) :]}
    print(trial.name, {task: line["validation"].get(tasks[task].metric) for task, line in lines.items()}, flush=True)
    return {
        "tasks": list(trial.tasks), "pretrained": trial.pretrained, "share": trial.share, "rate": trial.rate,
        "seed": trial.seed, "seconds": sum(line["seconds"] for line in run.lines("rounds.jsonl")),
        "validation": {task: line["validation"] for task, line in lines.items()},
        "test": {task: line["test"] for task, line in lines.items() if line["test"]},
    }  # fmt: skip


def pretraining_figures(run: Any) -> Figures:
    """Return the validation figures of the pre-training."""
    count = len(run.config().tasks)
    lines = run.lines("metrics.jsonl")[-count:]
    seconds = sum(line["seconds"] for line in run.lines("rounds.jsonl"))
    return {"seconds": seconds, "validation": {line["task"]: line["validation"] for line in lines}}


def of_arm(run: Figures, arm: tuple[tuple[str, ...], bool, float]) -> bool:
    """Return whether a run belongs to an arm."""
    return (tuple(run["tasks"]), run["pretrained"], run["share"]) == arm


def best_rate(runs: Iterable[Figures]) -> float:
    """Return the learning rate with the best validation figures, the mean score over tasks."""
    tasks = read_config(find_app("medformer").run_config).tasks

    def score(run: Figures) -> float:
        values = {tasks[name]: figures[tasks[name].metric] for name, figures in run["validation"].items()}
        return mean(task.score(value) for task, value in values.items())

    return max(runs, key=score)["rate"]


def to_text(results: dict[str, Any]) -> str:
    """Return results as JSON with one line per run."""
    parts = [f'"pretrained": {json.dumps(results["pretrained"])}']
    for name in ("tuning", "runs"):
        lines = ",\n".join(json.dumps(run) for run in results[name])
        parts.append(f'"{name}": [\n{lines}\n]')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def values_of(results: dict[str, Any], task: str, joint: bool, pretrained: bool, share: float = 1.0) -> list[float]:
    """Return a task's figures by seed: of test images, or of validation images if the set has no others."""
    metric = read_config(find_app("medformer").run_config).tasks[task].metric
    runs = [
        run for run in results["runs"]
        if task in run["tasks"] and (len(run["tasks"]) > 1) == joint
        and run["pretrained"] == pretrained and run["share"] == share
    ]  # fmt: skip
    return [run["test"].get(task, run["validation"][task])[metric] for run in sorted(runs, key=lambda r: r["seed"])]


def write_pages(results: dict[str, Any]) -> None:
    """Write the tables and the plot."""
    tasks = read_config(find_app("medformer").run_config).tasks
    rows = []
    for name, task in tasks.items():
        split = "test" if any(name in run["test"] for run in results["runs"]) else "validation"
        cells = [mean_and_deviation(values_of(results, name, *arm)) for arm in ARMS.values()]
        rows.append([f"{name}, {task.dimensions}D", f"{task.metric}, {split}", *cells])
    arms = markdown_table(["task", "figure", *ARMS], rows)
    rows = []
    for name in FEW_LABELS:
        for share in SHARES:
            scratch, pretrained = (values_of(results, name, False, start, share) for start in (False, True))
            gain = mean(pretrained) - mean(scratch)
            spread = max(stdev(values) for values in (scratch, pretrained)) if len(scratch) > 1 else float("nan")
            figures = [mean_and_deviation(scratch), mean_and_deviation(pretrained), f"{gain:+.3f}", f"{spread:.3f}"]
            rows.append([name, f"{share:.0%}", *figures])
    head = ["task", "labels", "AUC from random weights", "pre-trained", "gain", "larger deviation"]
    few_labels = "![AUC by share of labels](few-labels.png)\n\n" + markdown_table(head, rows)
    replace_marked(HOME / "README.md", {"arms": arms, "few-labels": few_labels})
    plot(results)


def plot(results: dict[str, Any]) -> None:
    """Draw the curves: AUC by share of labels, mean over seeds and their range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(FEW_LABELS), figsize=(11, 3.6))
    for axis, task in zip(axes, FEW_LABELS, strict=True):
        for start, colour in COLOURS.items():
            by_share = [values_of(results, task, False, start, share) for share in SHARES]
            label = "pre-trained without labels" if start else "random weights"
            axis.plot(SHARES, [mean(values) for values in by_share], "o-", color=colour, label=label, lw=2)
            axis.fill_between(SHARES, list(map(min, by_share)), list(map(max, by_share)), color=colour, alpha=0.2, lw=0)
        axis.set(title=f"{task}, AUC", xlabel="share of labels", xscale="log")
        axis.set_xticks(SHARES, [f"{share:.0%}" for share in SHARES], minor=False)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(HOME / "few-labels.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
