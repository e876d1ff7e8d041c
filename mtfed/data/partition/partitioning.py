"""Divide a set by the schemes of its options."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...tasks.task import Task
from ..manifest import Row
from ..partition_names import is_flower, read_partition
from . import flwr_datasets
from .allocation import MIN_PATIENTS, Allocation, Division, Options
from .divide import divide
from .patients import patients_of
from .schemes import SCHEMES, cells_of

DEFAULT_SITES = 8


def partition(rows: Sequence[Row], tasks: dict[str, Task], sites: int, options: Options) -> Division:
    """Divide the patients of a set among sites; a site keeps the labels of its own tasks.

    Every site gets at least :data:`.allocation.MIN_PATIENTS` training patients for each of its tasks. The same
    arguments give the same parts, also if the rows come in another order.

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
    by_task = [allocation.training_patients(task) for task in tasks]
    small = {group for group in groups if all(len(patients[group]) < MIN_PATIENTS for patients in by_task)}
    # Groups with too few patients share a site, or if they are too few together, join the smallest of the others.
    shared = any(sum(len(patients[group]) for group in small) >= MIN_PATIENTS for patients in by_task)
    return max(len(groups) - len(small) + shared, 1)


def _allocation(rows: Sequence[Row], tasks: dict[str, Task], sites: int, options: Options) -> Allocation:
    return Allocation(patients_of(rows, tasks), tasks, sites, options, np.random.default_rng([options.seed, sites]))
