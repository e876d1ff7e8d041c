"""Write the figures of the READMEs from records: nobody types a figure.

python -m benchmarks.readme RUN...    the runs of `mtfed simulate --strategies ... --seeds ...`; they are summed up in
                                      experiments/pneumonia/results.json, from which the table is made
python -m benchmarks.readme           from the results that are there
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from mtfed.record.run import Run

from . import comparison, systems, systems_cost, systems_tables
from .systems_tables import spread

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "experiments" / "pneumonia" / "results.json"
TIMES = ROOT / "benchmarks" / "results.json"
CHEST = ROOT / "experiments" / "chest" / "results.json"
NAMES = {
    "bayesian": "Bayesian matching",
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "alone": "each hospital alone (mean of their models)",
}
METRICS = (("lungs", "dice", "Lung Dice"), ("pneumonia", "auc", "Pneumonia AUC"))


def main(folders: list[Path]) -> None:
    """Sum up runs if any are given, then rewrite the marked parts of the READMEs."""
    if folders:
        RUNS.write_text(json.dumps([summed_up(Run.open(folder)) for folder in folders], indent=1) + "\n")
    times, compared = json.loads(TIMES.read_text()), json.loads(systems.RESULTS.read_text())
    tables = {name: "\n".join(lines) + "\n" for name, lines in systems_tables.tables(compared)}
    rewrite(
        ROOT / "README.md",
        {
            "pneumonia": pneumonia(json.loads(RUNS.read_text())),
            "engine": engine(times),
            "pipeline": pipeline(times),
            "chest": chest(json.loads(CHEST.read_text())) + "\n" + digits(times),
            "models": tables["delta"],
        },
    )
    rewrite(ROOT / "experiments" / "README.md", tables | {"cost": systems_cost.table(times["systems_cost"])})


def rewrite(file: Path, texts: dict[str, str]) -> None:
    """Put texts between the marks of a file."""
    text = file.read_text()
    for mark, new in texts.items():
        pattern = rf"(<!-- figures: {mark} -->\n).*?(<!-- end -->)"
        text, count = re.subn(pattern, lambda m, new=new: m[1] + new + m[2], text, flags=re.S)
        if not count:
            raise LookupError(f"{file.name} has no place for the figures {mark!r}.")
    file.write_text(text)


def summed_up(run: Run) -> dict[str, Any]:
    """Return what the table needs of a run."""
    summary, config = run.read_json("summary.json"), run.config()
    kept = {key: summary[key] for key in ("strategy", "seed", "rounds", "sites", "seconds_per_round", "tasks")}
    return kept | {
        "per_site": summary.get("per_site", {}),
        "versions": run.read_json("environment.json")["versions"],
        "encoder": config.encoder,
        "weighting": config.weighting,
    }


def pneumonia(runs: list[dict[str, Any]]) -> str:
    """Return the table of test figures: a row a strategy, mean and deviation over seeds."""
    seeds = sorted({run["seed"] for run in runs})
    lines = [
        "On the test images, which no hospital trained on and no choice went by: mean ± standard deviation of "
        f"{len(seeds)} seeds, {runs[0]['sites']} hospitals, {runs[0]['rounds']} rounds.",
        "",
        "| | " + " | ".join(title for *_, title in METRICS) + " |",
        "| --- " * (1 + len(METRICS)) + "|",
    ]
    for strategy, name in NAMES.items():
        own = [run for run in runs if run["strategy"] == strategy]
        if not own:
            continue
        lines.append(
            f"| {name} | " + " | ".join(spread([r["tasks"][t]["test"][m] for r in own]) for t, m, _ in METRICS) + " |"
        )
    alone = [run for run in runs if run["strategy"] == "alone"]
    best = [[max(site[t][m] for site in run["per_site"].values() if t in site) for run in alone] for t, m, _ in METRICS]
    lines.append("| the best hospital alone, by its test figure | " + " | ".join(map(spread, best)) + " |")
    lines.append(
        "| untrained | "
        + " | ".join(spread([r["tasks"][t]["untrained"][m] for r in alone]) for t, m, _ in METRICS)
        + " |"
    )
    return "\n".join(lines) + "\n"


def chest(results: dict[str, Any]) -> str:
    """Return the comparison of merges, from one start."""
    runs, tuned = results["runs"], results["tuned"]
    seeds = {run["seed"] for run in runs}
    return (
        f"Thirteen hospitals, eight with lung masks and five with pneumonia labels, none with both; {len(seeds)} "
        f"seeds, {len(runs[0]['rounds'])} rounds, the same local steps and initial weights for all; test images. Task "
        f"weights were tuned on validation images (best of {', '.join(f'{w:g}' for w in results['weights'])} for the "
        f"lungs: {tuned:g}); the ceiling trains on the pooled images.\n\n" + comparison.table(runs, "common", tuned)
    )


def digits(times: dict[str, Any]) -> str:
    """Return the benchmark on digits, and what a merge costs."""
    once, rounds = times["digits"]["one-shot, apart"], times["digits"]["common, alpha 0.5, 5 epochs"]["round 20"]
    ours, theirs = (rounds[name]["mean"] for name in ("Bayesian matching", "FedAvg"))
    return (
        f"Digits, a perceptron of 50 hidden units, ten sites with skewed classes: models trained apart and merged once "
        f"reach {once['Bayesian matching']['mean']:.3f} (FedAvg {once['FedAvg']['mean']:.3f}), twenty rounds from one "
        f"start {ours:.3f} (FedAvg {theirs:.3f}).\n"
    )


def engine(times: dict[str, Any]) -> str:
    """Return what the benchmarks say of the in-process engine."""
    told = times["federation"]
    small, large = told["fixed cost, 100 sites"], told["fixed cost, 1000 sites"]
    return (
        f"Measured on {told['cores']} cores (`make bench`): a round of ten sites takes "
        f"{told['round']['ratio']:.2f} times what a bare PyTorch loop takes for the same steps in as many processes; "
        f"the first round is done {told['first round']['median']:.1f} s after the command; beyond its steps, a site "
        f"costs {small['ms a site']:.2f} ms a round with 100 sites and {large['ms a site']:.2f} ms with 1,000; the "
        f"server process grows by {told['memory']['growth over 50 rounds']:.1f} MiB over 50 rounds.\n"
    )


def pipeline(times: dict[str, Any]) -> str:
    """Return what the benchmarks say of the cache of decoded images."""
    told = times["pipeline"]
    warm, pictures, volumes = told["warm"], told["memory"]["pictures"], told["memory"]["volumes"]
    steps = ", ".join(f"{ratio:.2f} with {name}" for name, ratio in told["steps"].items())
    return (
        f"Measured on {told['cores']} cores: steps a second from the cache over those from memory, {steps}. A later "
        f"process reads the manifest of 100,000 pictures in {warm['manifest, clock']:.1f} s and has its first batch "
        f"{warm['first batch, clock']:.1f} s after; over all batches it grows by {pictures['growth']:.0f} MB, beside "
        f"{pictures['rows']:.0f} MB of rows. 500 volumes of 64³, {volumes['images']:.0f} MB, make it grow by "
        f"{volumes['growth']:.0f} MB.\n"
    )


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
