"""Divide a set by a sum of schemes: functions that change the rules of an allocation, which is then drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from ...config.partitions import is_flower, read_partition
from ...errors import MtfedError, unknown
from ...tasks.task import Task
from ..manifest import Row
from . import flwr_datasets
from .allocation import MIN_PATIENTS, Allocation, Division, Options
from .divide import divide
from .patients import Patient, patients_of

DEFAULT_SITES = 8


def column(allocation: Allocation) -> None:
    """Give each site the patients with one value of a column.

    If there are more sites than values, sites share the largest values. If there are fewer, the last site gets all of
    the smallest values.
    """
    name = allocation.options.column
    allocation.group(cells_of(allocation.patients, name), f"column {name!r}", join=True)


def modality(allocation: Allocation) -> None:
    """Give each site patients with one value of the column ``modality``; several sites share a value.

    Within the values of another column, small groups share a site, as in :func:`column`.
    """
    cells = cells_of(allocation.patients, "modality")
    allocation.group(cells, "column 'modality'", join=allocation.is_grouped)


def tasks(allocation: Allocation) -> None:
    """Give sites the tasks in turn: one task each, then all tasks to one site, and again from the first.

    If sites are bound to groups of patients, a site skips tasks that its group has too few patients for.
    """
    turns = tasks_in_turn(list(allocation.tasks), allocation.sites)
    if not allocation.is_grouped:
        allocation.site_tasks = turns
        return
    labelled = {task: allocation.training_patients(task) for task in allocation.tasks}
    for site, group in enumerate(allocation.site_groups):
        possible = [task for task in allocation.tasks if len(labelled[task].get(group, ())) >= MIN_PATIENTS]
        options = [tuple(task for task in turn if task in possible) for turn in (*turns[site:], *turns)]
        allocation.site_tasks[site] = next(filter(None, options), ())


def dirichlet(allocation: Allocation) -> None:
    """Draw the sites' shares of every stratum (tasks and classes of a patient) from Dirichlet(alpha)."""
    allocation.by_stratum = True
    allocation.shares.append(lambda sites: allocation.rng.dirichlet([allocation.options.alpha] * len(sites)))


def quantity(allocation: Allocation) -> None:
    """Draw the sites' shares of all patients once from Dirichlet(alpha)."""
    drawn = allocation.rng.dirichlet([allocation.options.alpha] * allocation.sites)
    # A small alpha gives many sites a share of 0, and some of these may be the only sites of a group.
    smallest = np.finfo(float).tiny
    allocation.shares.append(lambda sites: (drawn[list(sites)] + smallest) / (drawn[list(sites)] + smallest).sum())


def iid(allocation: Allocation) -> None:
    """Give the sites equal shares, which an allocation does without any scheme."""


SCHEMES: dict[str, Callable[[Allocation], None]] = {
    scheme.__name__: scheme for scheme in (column, modality, tasks, dirichlet, quantity, iid)
}


def tasks_in_turn(tasks: Sequence[str], sites: int) -> list[tuple[str, ...]]:
    """Return the tasks of each site: one task each, then all tasks at one site, and again from the first."""
    if sites == 1 or not tasks:
        return [tuple(tasks)] * sites
    cycle = [(task,) for task in tasks] + ([tuple(tasks)] if len(tasks) > 1 else [])
    return [cycle[i % len(cycle)] for i in range(sites)]


def cells_of(patients: dict[str, Patient], name: str) -> dict[str, str]:
    """Return every patient's cell in a column; if its images differ, the most frequent cell."""
    cells = {}
    for patient in patients.values():
        counts = Counter(row.others.get(name) or row.labels.get(name, "") for row in patient.rows)
        del counts[""]
        if counts:
            cells[patient.name] = min(counts, key=lambda cell: (-counts[cell], cell))
    if not cells:
        columns = sorted({key for patient in patients.values() for row in patient.rows for key in row.others})
        reason = unknown("column", name, columns) if columns else f"the manifest has no column {name!r}, only tasks."
        raise MtfedError(f"Config key partition: {reason}")
    if empty := [patient for patient in patients if patient not in cells]:
        raise MtfedError(
            f"Config key partition: {len(empty)} of {len(patients)} patients have nothing in column {name!r}, "
            f"for example {empty[0]!r}; fill it in, or name another partition-column."
        )
    return cells


def partition(rows: Sequence[Row], tasks: dict[str, Task], sites: int, options: Options) -> Division:
    """Divide the patients of a set among sites; a site keeps the labels of its own tasks.

    Every site gets at least :data:`.allocation.MIN_PATIENTS` training patients for each of its tasks. The same
    arguments give the same parts, regardless of the order of the rows.

    Raises:
        MtfedError: if there are too few patients, or the set lacks a column.
    """
    allocation = _allocation(rows, tasks, sites, options)
    names = read_partition(options.scheme)
    for name in names:
        if is_flower([name]):
            flwr_datasets.assign(allocation, name)
        else:
            SCHEMES[name](allocation)
    return divide(allocation, by_group="column" in names or "modality" in names)


def default_sites(rows: Sequence[Row], tasks: dict[str, Task], options: Options) -> int:
    """Return how many sites a set makes by default: one for each value of a column that it is divided by, else eight.

    Values with too few patients for a site count as one value.
    """
    names = read_partition(options.scheme)
    if is_flower(names):
        return flwr_datasets.own_sites(names[0], _allocation(rows, tasks, DEFAULT_SITES, options)) or DEFAULT_SITES
    columns = [options.column] * ("column" in names) + ["modality"] * ("modality" in names)
    if not columns:
        return DEFAULT_SITES
    allocation = _allocation(rows, tasks, 1, options)
    cells = [cells_of(allocation.patients, name) for name in columns]
    allocation.groups = {name: tuple(cell[name] for cell in cells) for name in allocation.patients}
    groups = set(allocation.groups.values())
    if "column" not in names:
        return max(len(groups), DEFAULT_SITES)
    names_of_tasks: list[str | None] = [*tasks, *([None] if options.every_patient else [])]
    by_task = [allocation.training_patients(task) for task in names_of_tasks]
    small = {group for group in groups if all(len(patients[group]) < MIN_PATIENTS for patients in by_task)}
    # Groups with too few patients share a site, or if they are too few together, join the smallest of the others.
    shared = any(sum(len(patients[group]) for group in small) >= MIN_PATIENTS for patients in by_task)
    return max(len(groups) - len(small) + shared, 1)


def _allocation(rows: Sequence[Row], tasks: dict[str, Task], sites: int, options: Options) -> Allocation:
    patients = patients_of(rows, tasks, unlabelled=options.every_patient)
    return Allocation(patients, tasks, sites, options, np.random.default_rng([options.seed, sites]))
