"""Medformer on seven sets of images and volumes: joint training, pre-training without labels, and few labels.

python -m benchmarks.joint_images --source FOLDER --out images/joint
python -m benchmarks.medformer --data images/joint --runs runs [--jobs 2] [--seeds 0 1 2]

Four arms, for every task and seed: trained on the task alone or on all tasks, from random weights or from weights that
were pre-trained on the training images of all sets without labels. A model of all tasks takes as many steps as the
models of one task together. The curves train on a task alone with a share of its labels, drawn anew for every seed; on
the skin images also from weights that were pre-trained on these images only, by views.

Each start has two candidates for the learning rates (RATES). Each task, start and share of labels has the one that is
better on the validation images of the first seed; a model of all tasks has the one that is better on average over the
models of one task. Nothing else is tuned. No round is chosen: figures are those after the last one, of test images, or
of validation images for the sets that have no others. Existing runs are not repeated. Figures are written to
experiments/medformer/results.json, tables and the plot to the same folder.
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
PRETRAINING: dict[str, RunConfigValue] = {"batch-size": 32, "augment": "none"}
STARTS: dict[str, dict[str, RunConfigValue]] = {  # name -> what is pre-trained on, and for how many steps
    "random": {},
    "all sets": {"rounds": 8, "local-steps": 350},
    "own set": {"rounds": 8, "local-steps": 225},
}
RATES = {  # start -> learning rate and encoder rate of the candidates
    "random": ((0.001, 1.0), (0.0003, 1.0)),
    "all sets": ((0.0003, 1.0), (0.001, 0.0)),
    "own set": ((0.0003, 1.0), (0.001, 0.0)),
}
JOINT_SEEDS = 2  # number of seeds of models of all tasks, which take nine times as long
SHARES = (0.01, 0.05, 0.1, 1.0)
FEW_LABELS = ("pneumonia", "melanoma", "tumour")  # tasks of the curves
OWN_SET = {"melanoma": "isic2017"}  # tasks that also start from pre-training on their own set
ARMS = {  # name in the table -> whether all tasks are trained together, and the start
    "one task": (False, "random"),
    "all tasks": (True, "random"),
    "pre-trained, one task": (False, "all sets"),
    "pre-trained, all tasks": (True, "all sets"),
}
COLOURS = {"random": "#999999", "all sets": "#009e73", "own set": "#0072b2"}
LABELS = {"random": "random weights", "all sets": "pre-trained on all sets", "own set": "on the skin images"}


@dataclass(frozen=True)
class Trial:
    """One run: its tasks, its start, its share of labels, the rates of learning, and the seed."""

    tasks: tuple[str, ...]
    start: str
    share: float
    rates: tuple[float, float]
    seed: int

    @property
    def name(self) -> str:
        """Return the run's name, by which an existing run is found."""
        tasks = self.tasks[0] if len(self.tasks) == 1 else "all"
        start = self.start.replace(" ", "-")
        return f"{tasks}-{start}-{self.share:g}-{self.rates[0]:g}-{self.rates[1]:g}-s{self.seed}"

    @property
    def settings(self) -> dict[str, RunConfigValue]:
        """Return the differences from the experiment's own settings."""
        return {
            "rounds": 4, "local-steps": STEPS * len(self.tasks) // 4, "warmup": 80, "evaluate-every": 0,
            "learning-rate": self.rates[0], "encoder-rate": self.rates[1],
            "label-share": self.share, "partition-seed": self.seed,
        }  # fmt: skip


def main() -> None:
    """Start the runs that do not exist, and write figures, tables and the plot."""
    parser = run_parser(__doc__, "benchmarks.joint_images")
    parser.add_argument("--starts", nargs="+", choices=STARTS, help="make only the runs from these weights, no tables")
    arguments = parser.parse_args()
    data, runs, seeds, jobs = arguments.data.resolve(), arguments.runs.resolve(), arguments.seeds, arguments.jobs
    starts = arguments.starts or list(STARTS)
    pretrained = run_parallel(partial(pretrain, data=data, runs=runs), starts, jobs)
    weights = {figures["start"]: figures.pop("weights") for figures in pretrained}
    figures_of = partial(run_figures, data=data, runs=runs, weights=weights)

    every = tuple(read_config(find_app("medformer").run_config).tasks)
    cells = [((task,), *cell) for cell, own in tasks_of_cells(every).items() for task in own if cell[0] in starts]
    trials = [Trial(*cell, rates, seeds[0]) for cell in cells for rates in RATES[cell[1]]]
    tuning = run_parallel(figures_of, trials, jobs)
    chosen = {cell: best_rates(runs_of(tuning, *cell)) for cell in cells}
    others = [Trial(*cell, chosen[cell], seed) for seed in seeds[1:] for cell in cells]
    for start in starts:
        if (True, start) in ARMS.values():
            alone = [run for cell in cells if cell[1:] == (start, 1.0) for run in runs_of(tuning, *cell)]
            others += [Trial(every, start, 1.0, best_rates(alone), seed) for seed in seeds[:JOINT_SEEDS]]
    done = run_parallel(figures_of, others, jobs)
    if not arguments.starts:
        best = [run for cell in cells for run in runs_of(tuning, *cell) if tuple(run["rates"]) == chosen[cell]]
        results = {"pretrained": [run for run in pretrained if run["seconds"]], "tuning": tuning, "runs": best + done}
        RESULTS.write_text(to_text(results))
        write_pages(json.loads(RESULTS.read_text()))


def tasks_of_cells(every: tuple[str, ...]) -> dict[tuple[str, float], tuple[str, ...]]:
    """Return, by start and share of labels, the tasks for which a model of one task is trained."""
    cells = {(start, 1.0): every for _, start in ARMS.values()}
    cells |= {(start, share): FEW_LABELS for share in SHARES if share < 1 for start in ("random", "all sets")}
    return cells | {("own set", share): tuple(OWN_SET) for share in SHARES}


def pretrain(start: str, data: Path, runs: Path) -> Figures:
    """Return a start's weights and the last validation figures of its pre-training; start the run if necessary."""
    if start == "random":
        return {"start": start, "weights": "", "seconds": 0.0}
    kinds = "views" if start == "own set" else PRETEXT
    source = data / OWN_SET["melanoma"] if start == "own set" else data
    name = f"medformer-{start.replace(' ', '-')}"
    settings = {"data": str(source), **PRETRAINING, **STARTS[start]}
    tasks = tuple(OWN_SET) if start == "own set" else ()
    run = trials.pretrained_run("medformer", name, settings, 0, runs, kinds, tasks)
    lines = run.lines("metrics.jsonl")[-len(run.config().tasks) :]
    return {
        "start": start, "weights": str(run.folder / "checkpoints" / "best.safetensors"),
        "seconds": sum(line["seconds"] for line in run.lines("rounds.jsonl")),
        "validation": {line["task"]: line["validation"] for line in lines},
    }  # fmt: skip


def run_figures(trial: Trial, data: Path, runs: Path, weights: dict[str, str]) -> Figures:
    """Return a run's figures after its last round; start the run if it does not exist."""
    settings = {**trial.settings, "data": str(data), "weights": weights[trial.start]}
    run = trials.run_of("medformer", trial.name, settings, trial.seed, runs, tasks=trial.tasks)
    assert run is not None
    tasks = run.config().tasks
    lines = {line["task"]: line for line in run.lines("metrics.jsonl")[-len(tasks) :]}
    print(trial.name, {task: line["validation"].get(tasks[task].metric) for task, line in lines.items()}, flush=True)
    return {
        "tasks": list(trial.tasks), "start": trial.start, "share": trial.share, "rates": list(trial.rates),
        "seed": trial.seed, "seconds": sum(line["seconds"] for line in run.lines("rounds.jsonl")),
        "validation": {task: line["validation"] for task, line in lines.items()},
        "test": {task: line["test"] for task, line in lines.items() if line["test"]},
    }  # fmt: skip


def best_rates(runs: Iterable[Figures]) -> tuple[float, float]:
    """Return the rates with the best validation figures: the best mean score over all tasks of the runs."""
    tasks = read_config(find_app("medformer").run_config).tasks
    scores: dict[tuple[float, float], list[float]] = {}
    for run in runs:
        figures = run["validation"].items()
        values = [tasks[name].score(of_task[tasks[name].metric]) for name, of_task in figures]
        scores.setdefault(tuple(run["rates"]), []).extend(values)
    return max(scores, key=lambda rates: mean(scores[rates]))


def to_text(results: dict[str, Any]) -> str:
    """Return results as JSON with one line per run."""
    parts = [f'"{name}": [\n' + ",\n".join(map(json.dumps, runs)) + "\n]" for name, runs in results.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def runs_of(runs: list[Figures], tasks: tuple[str, ...], start: str, share: float) -> list[Figures]:
    """Return the runs of models of these tasks, from a start, with a share of the labels."""
    return [run for run in runs if (tuple(run["tasks"]), run["start"], run["share"]) == (tasks, start, share)]


def values_of(runs: list[Figures], task: str) -> list[float]:
    """Return a task's figures by seed: of test images, or of validation images if the set has no others."""
    metric = read_config(find_app("medformer").run_config).tasks[task].metric
    by_seed = sorted(runs, key=lambda run: run["seed"])
    return [run["test"].get(task, run["validation"][task])[metric] for run in by_seed]


def write_pages(results: dict[str, Any]) -> None:
    """Write the tables and the plot."""
    tables = {"arms": arms_table, "few-labels": few_labels_table}
    replace_marked(HOME / "README.md", {name: table(results) for name, table in tables.items()})
    plot(results["runs"])


def arms_table(results: dict[str, Any]) -> str:
    """Return a table with a row for each task; figures have the learning rate beside them."""
    tasks = read_config(find_app("medformer").run_config).tasks
    rows = []
    for name, task in tasks.items():
        split = "test" if any(name in run["test"] for run in results["runs"]) else "validation"
        arms = [
            runs_of(results["runs"], tuple(tasks) if joint else (name,), start, 1.0) for joint, start in ARMS.values()
        ]
        values = [values_of(runs, name) for runs in arms]
        cells = [f"{mean_and_deviation(v)} ({rates_text(runs[0])})" for v, runs in zip(values, arms, strict=True)]
        costs = [f"{mean(joint) - mean(single):+.3f}" for single, joint in (values[:2], values[2:])]
        rows.append(
            [f"{name}, {task.dimensions}D", f"{task.metric}, {split}", *cells[:2], costs[0], *cells[2:], costs[1]]
        )
    head = ["task", "figure", *list(ARMS)[:2], "all - one", *list(ARMS)[2:], "all - one"]
    return markdown_table(head, rows)


def rates_text(run: Figures) -> str:
    """Return a run's learning rate, or "frozen" if its encoder is."""
    return f"{run['rates'][0]:g}" if run["rates"][1] else "frozen"


def few_labels_table(results: dict[str, Any]) -> str:
    """Return the plot and a table with a row for each task and share of labels."""
    rows, pretrained = [], list(STARTS)[1:]
    for name in FEW_LABELS:
        for share in SHARES:
            scratch, *others = (values_of(runs_of(results["runs"], (name,), s, share), name) for s in STARTS)
            gains = [cell for values in others for cell in gain_cells(values, scratch)]
            rows.append([name, f"{share:.0%}", mean_and_deviation(scratch), *gains])
    head = ["task", "labels", "random weights", *(cell for s in pretrained for cell in (LABELS[s], "gain (deviation)"))]
    return "![AUC by share of labels](few-labels.png)\n\n" + markdown_table(head, rows)


def gain_cells(values: list[float], scratch: list[float]) -> tuple[str, str]:
    """Return figures after pre-training, and their gain with the larger of both deviations; empty without figures."""
    if len(values) < 2:
        return "", ""
    return mean_and_deviation(values), f"{mean(values) - mean(scratch):+.3f} ({max(stdev(values), stdev(scratch)):.3f})"


def plot(runs: list[Figures]) -> None:
    """Draw the curves: AUC by share of labels, mean over seeds and their range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(FEW_LABELS), figsize=(11, 3.6))
    for axis, task in zip(axes, FEW_LABELS, strict=True):
        for start, colour in COLOURS.items():
            by_share = [values_of(runs_of(runs, (task,), start, share), task) for share in SHARES]
            if not all(by_share):
                continue
            means, low, high = ([reduce(values) for values in by_share] for reduce in (mean, min, max))
            axis.plot(SHARES, means, "o-", color=colour, label=LABELS[start], lw=2)
            axis.fill_between(SHARES, low, high, color=colour, alpha=0.15, lw=0)
        axis.set(title=f"{task}, AUC", xlabel="share of labels", xscale="log")
        axis.set_xticks(SHARES, [f"{share:.0%}" for share in SHARES], minor=False)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[list(FEW_LABELS).index("melanoma")].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(COLOURS))
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(HOME / "few-labels.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
