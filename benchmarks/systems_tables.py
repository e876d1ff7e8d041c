"""Tables of the results of benchmarks.systems: one per set, Delta_MTL over all sets, and what changes it."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean
from typing import Any

from mtfed.report.delta_mtl import delta_mtl
from mtfed.tasks.specs import lower_is_better

from .systems import CHANGES, SETS, SYSTEMS, tasks_of
from .tables import markdown_table, mean_and_deviation

Runs = list[dict[str, Any]]
MIN_PRECISION = 0.05  # average precision at which boxes count as learned; other tasks have to beat the mean label
SHARED = [system for system, (model, _) in SYSTEMS.items() if model != "single-task"]


def tables(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield names and texts of the tables: one per set, one of Delta_MTL over all sets, and one of what changes it."""
    runs = results["runs"]
    sets = [name for name in SETS if any(run["set"] == name for run in runs)]
    for name in sets:
        yield name, set_table(name, results)
    deltas_by_system = {
        system: [deltas(system, name, results) for name in sets]
        for system in SHARED
        if any(run["system"] == system for run in runs)
    }
    common = [i for i in range(len(sets)) if all(by_set[i] for by_set in deltas_by_system.values())]
    names = "all" if len(common) == len(sets) else ", ".join(sets[i] for i in common)
    rows = []
    for system, by_set in deltas_by_system.items():
        cells = [mean_and_deviation(values, 1) for values in by_set]
        rows.append([system, *cells, f"{mean(mean(by_set[i]) for i in common):+.1f}"])
    yield "delta", markdown_table(["Δ_MTL, %", *sets, f"mean of {names}"], rows)
    yield "changes", changes_table(results)


def set_table(dataset: str, results: dict[str, Any]) -> str:
    """Return the table of a set, followed by the tasks that are excluded from Delta_MTL."""
    tasks, runs = tasks_of(dataset), results["runs"]
    titles = [f"{name} {task.metric}{' ↓' if lower_is_better(task.metric) else ''}" for name, task in tasks.items()]
    head, rows = ["", *titles, "Δ_MTL, %", "M parameters", "learning rate", "seeds"], []
    for system in SYSTEMS:
        selected = [run for run in runs if (run["set"], run["system"]) == (dataset, system)]
        if selected:
            columns = [[run["validation"][name][task.metric] for run in selected] for name, task in tasks.items()]
            cells = [*map(mean_and_deviation, columns), mean_and_deviation(deltas(system, dataset, results), 1)]
            cells += [f"{selected[0]['parameters'] / 1e6:.2f}", f"{selected[0]['rate']:g}", str(len(selected))]
            rows.append([system, *cells])
    baselines = [mean_label(name, dataset, results) for name in tasks]
    cells = ["–" if value is None else f"{value:.3f}" for value in baselines]
    text = markdown_table(head, [*rows, ["mean label, without looking at an image", *cells, "", "", "", ""]])
    for single in (system for system in SYSTEMS if system not in SHARED):
        has_runs = any((run["set"], run["system"]) == (dataset, single) for run in runs)
        missing = [name for name in tasks if has_runs and name not in learned(single, dataset, results)]
        if missing:
            text += f"\nExcluded from Δ_MTL, because {single!r} does not learn it: {', '.join(missing)}.\n"
    return text


def changes_table(results: dict[str, Any]) -> str:
    """Return the table of how a setting, changed for all models of a set, changes Delta_MTL, over the same seeds."""
    rows = []
    for dataset in SETS:
        for system in SHARED:
            before = deltas_by_seed(system, dataset, results["runs"], results)
            for change in list(CHANGES)[1:]:
                runs = [run for run in results["changed"] if run["change"] == change]
                after = deltas_by_seed(system, dataset, runs, results)
                if seeds := sorted(before.keys() & after.keys()):
                    cells = [mean_and_deviation([values[seed] for seed in seeds], 1) for values in (before, after)]
                    rows.append([dataset, system, change, *cells, str(len(seeds))])
    return markdown_table(["Δ_MTL, %", "model", "change", "unchanged", "changed", "seeds"], rows)


def deltas(system: str, dataset: str, results: dict[str, Any]) -> list[float]:
    """Return a system's Delta_MTL in percent on a set, for each seed that its single-task counterpart has too."""
    return list(deltas_by_seed(system, dataset, results["runs"], results).values())


def deltas_by_seed(system: str, dataset: str, runs: Runs, results: dict[str, Any]) -> dict[int, float]:
    """Return Delta_MTL by seed.

    It includes the tasks that the counterpart has learned, on the mean over its seeds without changes; relative changes
    of other tasks would mean nothing.
    """
    single = single_of(system)
    tasks, included = tasks_of(dataset), learned(single, dataset, results)
    shared_metrics, single_metrics = (
        {
            run["seed"]: {name: {tasks[name].metric: run["validation"][name][tasks[name].metric]} for name in included}
            for run in runs
            if (run["set"], run["system"]) == (dataset, name)
        }
        for name in (system, single)
    )
    if not included:
        return {}
    return {
        seed: delta_mtl(shared_metrics[seed], single_metrics[seed])
        for seed in sorted(shared_metrics.keys() & single_metrics.keys())
    }


def single_of(system: str) -> str:
    """Return the single-task system on the same backbone as another system."""
    backbone = SYSTEMS[system][1]
    return next(name for name, (model, own) in SYSTEMS.items() if model == "single-task" and own is backbone)


def learned(single: str, dataset: str, results: dict[str, Any]) -> list[str]:
    """Return the tasks of a set in which a system is better than the mean label, on the mean over its seeds."""
    runs = [run["validation"] for run in results["runs"] if (run["set"], run["system"]) == (dataset, single)]
    names = []
    for name, task in tasks_of(dataset).items() if runs else ():
        baseline = mean_label(name, dataset, results)
        score = mean(task.score(metrics[name][task.metric]) for metrics in runs)
        if score > (MIN_PRECISION if baseline is None else task.score(baseline)):
            names.append(name)
    return names


def mean_label(task: str, dataset: str, results: dict[str, Any]) -> float | None:
    """Return the main metric that the mean label reaches in a task; None for boxes."""
    return results["blind"][dataset].get(task, {}).get(tasks_of(dataset)[task].metric)
