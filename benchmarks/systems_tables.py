"""The tables of benchmarks.systems: a set each, Delta_MTL over all of them, and what changes it."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean, stdev
from typing import Any

from mtfed.report.delta_mtl import delta_mtl
from mtfed.tasks.specs import lower_is_better

from .systems import CHANGES, SETS, SYSTEMS, tasks_of

Runs = list[dict[str, Any]]
LEARNED = 0.05  # average precision from which boxes count as learned; other tasks have to beat the mean label
SHARED = [system for system, (model, _) in SYSTEMS.items() if model != "single-task"]


def tables(results: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield a table a set, one of Delta_MTL over all sets, and one of what changes it."""
    runs = results["runs"]
    sets = [one for one in SETS if any(run["set"] == one for run in runs)]
    for one in sets:
        yield one, of_set(one, results)
    found = {
        system: [deltas(system, one, results) for one in sets]
        for system in SHARED
        if any(run["system"] == system for run in runs)
    }
    common = [i for i in range(len(sets)) if all(by_set[i] for by_set in found.values())]
    names = "all" if len(common) == len(sets) else ", ".join(sets[i] for i in common)
    lines = [f"| Δ_MTL, % | {' | '.join(sets)} | mean of {names} |", "| --- " * (len(sets) + 2) + "|"]
    for system, by_set in found.items():
        cells = [*(spread(values, 1) for values in by_set), f"{mean(mean(by_set[i]) for i in common):+.1f}"]
        lines.append(f"| {system} | {' | '.join(cells)} |")
    yield "delta", lines
    yield "changes", changes(results)


def of_set(one: str, results: dict[str, Any]) -> list[str]:
    """Return a set's table, and beneath it which tasks are no part of Delta_MTL."""
    tasks, runs = tasks_of(one), results["runs"]
    titles = [f"{name} {task.metric}{' ↓' if lower_is_better(task.metric) else ''}" for name, task in tasks.items()]
    head = ["", *titles, "Δ_MTL, %", "M parameters", "learning rate", "seeds"]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for system in SYSTEMS:
        own = [run for run in runs if run["set"] == one and run["system"] == system]
        if own:
            columns = [[run["validation"][name][task.metric] for run in own] for name, task in tasks.items()]
            cells = [*map(spread, columns), spread(deltas(system, one, results), 1)]
            cells += [f"{own[0]['parameters'] / 1e6:.2f}", f"{own[0]['rate']:g}", str(len(own))]
            lines.append(f"| {system} | {' | '.join(cells)} |")
    unseen = [blind(name, one, results) for name in tasks]
    cells = ["–" if value is None else f"{value:.3f}" for value in unseen]
    lines.append(f"| the mean label, no image looked at | {' | '.join(cells)} | | | | |")
    for single in (system for system in SYSTEMS if system not in SHARED):
        count = sum(run["set"] == one and run["system"] == single for run in runs)
        missing = [name for name in tasks if count and name not in learned(single, one, results)]
        if missing:
            lines += ["", f"Not part of Δ_MTL beside {single!r}, which does not learn it: {', '.join(missing)}."]
    return lines


def changes(results: dict[str, Any]) -> list[str]:
    """Return the table of what one setting, changed for all models of a set, does to Delta_MTL, over the same seeds."""
    lines = ["| Δ_MTL, % | | changed | as above | changed | seeds |", "| --- " * 6 + "|"]
    for one in SETS:
        for system in SHARED:
            before = by_seed(system, one, results["runs"], results)
            for change in list(CHANGES)[1:]:
                runs = [run for run in results["changed"] if run["change"] == change]
                after = by_seed(system, one, runs, results)
                if seeds := sorted(before.keys() & after.keys()):
                    cells = [spread([values[seed] for seed in seeds], 1) for values in (before, after)]
                    lines.append(f"| {one} | {system} | {change} | {' | '.join(cells)} | {len(seeds)} |")
    return lines


def deltas(system: str, one: str, results: dict[str, Any]) -> list[float]:
    """Return a system's Delta_MTL in percent on a set, a figure a seed that its single-task counterpart has, too."""
    return list(by_seed(system, one, results["runs"], results).values())


def by_seed(system: str, one: str, runs: Runs, results: dict[str, Any]) -> dict[int, float]:
    """Return Delta_MTL by seed.

    Over the tasks that the counterpart has learned, on the mean of its seeds without changes: others are no yardstick.
    """
    single = single_of(system)
    tasks, counted = tasks_of(one), learned(single, one, results)
    own, other = (
        {
            run["seed"]: {name: {tasks[name].metric: run["validation"][name][tasks[name].metric]} for name in counted}
            for run in runs
            if (run["set"], run["system"]) == (one, name)
        }
        for name in (system, single)
    )
    if not counted:
        return {}
    return {seed: delta_mtl(own[seed], other[seed]) for seed in sorted(own.keys() & other.keys())}


def single_of(system: str) -> str:
    """Return the single-task system on the backbone of another."""
    backbone = SYSTEMS[system][1]
    return next(name for name, (model, own) in SYSTEMS.items() if model == "single-task" and own is backbone)


def learned(single: str, one: str, results: dict[str, Any]) -> list[str]:
    """Return the tasks of a set in which a system is, on the mean of its seeds, better than the mean label."""
    own = [run["validation"] for run in results["runs"] if (run["set"], run["system"]) == (one, single)]
    found = []
    for name, task in tasks_of(one).items() if own else ():
        least = blind(name, one, results)
        score = mean(task.score(figures[name][task.metric]) for figures in own)
        if score > (LEARNED if least is None else task.score(least)):
            found.append(name)
    return found


def blind(task: str, one: str, results: dict[str, Any]) -> float | None:
    """Return what the mean label reaches in a task, by the metric that choices go by; nothing for boxes."""
    figures = results["blind"][one].get(task, {})
    return figures.get(tasks_of(one)[task].metric)


def spread(values: list[float], digits: int = 3) -> str:
    """Return mean and standard deviation."""
    if not values:
        return "–"
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")
