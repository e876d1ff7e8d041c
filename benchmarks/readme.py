"""Write the figures in the READMEs from the results of runs and benchmarks.

python -m benchmarks.readme RUN...    summarise the runs of `mtfed simulate --strategies ... --seeds ...` in
                                      experiments/pneumonia/results.json first
python -m benchmarks.readme           use the existing results
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mtfed.record.run import Run

from . import comparison, systems, systems_cost, systems_tables
from .processes import ROOT
from .tables import markdown_table, mean_and_deviation, replace_marked

RUNS = ROOT / "experiments" / "pneumonia" / "results.json"
BENCHMARKS = ROOT / "benchmarks" / "results.json"
STRATEGY_NAMES = {
    "bayesian": "Bayesian matching", "fedavg": "FedAvg", "fedprox": "FedProx",
    "alone": "each hospital alone (mean of their models)",
}  # fmt: skip
METRICS = (("lungs", "dice", "Lung Dice"), ("pneumonia", "auc", "Pneumonia AUC"))


def main(folders: list[Path]) -> None:
    """Summarise runs if any are given, then rewrite the marked parts of the READMEs."""
    if folders:
        RUNS.write_text(json.dumps([summarised(Run.open(folder)) for folder in folders], indent=1) + "\n")
    benchmarks = json.loads(BENCHMARKS.read_text())
    tables = dict(systems_tables.tables(json.loads(systems.RESULTS.read_text())))
    replace_marked(
        ROOT / "README.md",
        {
            "pneumonia": pneumonia(json.loads(RUNS.read_text())),
            "engine": engine(benchmarks),
            "pipeline": pipeline(benchmarks),
            "chest": chest(json.loads(comparison.RESULTS.read_text())) + "\n" + digits(benchmarks),
            "models": tables["delta"],
        },
    )
    replace_marked(
        ROOT / "experiments" / "README.md", tables | {"cost": systems_cost.table(benchmarks["systems_cost"])}
    )


def summarised(run: Run) -> dict[str, Any]:
    """Return the parts of a run that the table needs."""
    summary, config = run.read_json("summary.json"), run.config()
    return {key: summary[key] for key in ("strategy", "seed", "rounds", "sites", "seconds_per_round", "tasks")} | {
        "per_site": summary.get("per_site", {}),
        "versions": run.read_json("environment.json")["versions"],
        "encoder": config.encoder,
        "weighting": config.weighting,
    }


def pneumonia(runs: list[dict[str, Any]]) -> str:
    """Return the table of test figures, one row per strategy, mean and deviation over seeds."""
    seeds = {run["seed"] for run in runs}
    alone = [run for run in runs if run["strategy"] == "alone"]
    rows = [
        (name, [[tasks[task]["test"][metric] for tasks in selected] for task, metric, _ in METRICS])
        for strategy, name in STRATEGY_NAMES.items()
        if (selected := [run["tasks"] for run in runs if run["strategy"] == strategy])
    ]
    best = [
        [max(site[task][metric] for site in run["per_site"].values() if task in site) for run in alone]
        for task, metric, _ in METRICS
    ]
    untrained = [[run["tasks"][task]["untrained"][metric] for run in alone] for task, metric, _ in METRICS]
    rows += [("the best hospital alone, by test figures", best), ("untrained", untrained)]
    return (
        "Results on test images that were used neither for training nor for model selection: mean ± standard deviation "
        f"over {len(seeds)} seeds, {runs[0]['sites']} hospitals, {runs[0]['rounds']} rounds.\n\n"
    ) + markdown_table(
        ["", *(title for *_, title in METRICS)],
        [[name, *map(mean_and_deviation, columns)] for name, columns in rows],
    )


def chest(results: dict[str, Any]) -> str:
    """Return the comparison of merging methods from common initial weights."""
    runs, tuned = results["runs"], results["tuned"]
    seeds = {run["seed"] for run in runs}
    weights = ", ".join(f"{weight:g}" for weight in results["weights"])
    return (
        "Thirteen hospitals, eight with lung masks and five with pneumonia labels, none with both. All methods have "
        f"the same local steps and initial weights; figures are of test images, {len(seeds)} seeds, "
        f"{len(runs[0]['rounds'])} rounds. Task weights were tuned on validation images (the best of {weights} for the "
        f"lungs is {tuned:g}). The upper bound is a training on the pooled images.\n\n"
        + comparison.table(runs, "common", tuned)
    )


def digits(benchmarks: dict[str, Any]) -> str:
    """Return the results of the benchmark on digits."""
    once = benchmarks["digits"]["one-shot, apart"]
    rounds = benchmarks["digits"]["common, alpha 0.5, 5 epochs"]["round 20"]
    return (
        "Accuracy on handwritten digits, a perceptron with 50 hidden units, ten sites with skewed classes: models "
        f"trained apart and merged once reach {once['Bayesian matching']['mean']:.3f} (FedAvg "
        f"{once['FedAvg']['mean']:.3f}), twenty rounds from common initial weights "
        f"{rounds['Bayesian matching']['mean']:.3f} (FedAvg {rounds['FedAvg']['mean']:.3f}).\n"
    )


def engine(benchmarks: dict[str, Any]) -> str:
    """Return the results of the benchmarks of the in-process engine."""
    figures = benchmarks["federation"]
    small, large = figures["fixed cost, 100 sites"], figures["fixed cost, 1000 sites"]
    return (
        f"Measured on {figures['cores']} cores (`make bench`): a round of ten sites takes "
        f"{figures['round']['ratio']:.2f} times as long as a bare PyTorch loop with the same steps in as many "
        f"processes. The first round ends {figures['first round']['median']:.1f} s after the command starts. In "
        f"addition to its training steps, a site costs {small['ms a site']:.2f} ms per round with 100 sites and "
        f"{large['ms a site']:.2f} ms with 1,000. The server process grows by "
        f"{figures['memory']['growth over 50 rounds']:.1f} MiB over 50 rounds.\n"
    )


def pipeline(benchmarks: dict[str, Any]) -> str:
    """Return the results of the benchmarks of the cache of decoded images."""
    figures = benchmarks["pipeline"]
    warm, images, volumes = figures["warm"], figures["memory"]["pictures"], figures["memory"]["volumes"]
    steps = " and ".join(f"{ratio:.2f} with {name}" for name, ratio in figures["steps"].items())
    return (
        f"Measured on {figures['cores']} cores: steps per second from the cache relative to those from memory are "
        f"{steps}. A later process reads the manifest of 100,000 images in {warm['manifest, clock']:.1f} s and has its "
        f"first batch {warm['first batch, clock']:.1f} s later. While it reads all batches it grows by "
        f"{images['growth']:.0f} MB, in addition to {images['rows']:.0f} MB of manifest rows. 500 volumes of 64³, "
        f"{volumes['images']:.0f} MB, make it grow by {volumes['growth']:.0f} MB.\n"
    )


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
