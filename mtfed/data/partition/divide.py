"""Divide a set: its schemes, then the deal, then what every site keeps."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...tasks.task import Task
from ..manifest import Row
from ..partition_names import is_flower, read_partition
from . import schemes
from .deal import MIN_PATIENTS, Deal, Division, Group, Options
from .fill import fill_up, serve
from .patients import patients_of

SITES = 8  # that a set makes unless told otherwise
LONGEST = 32  # name of a site, as it stands in tables


def partition(rows: Sequence[Row], tasks: dict[str, Task], sites: int, options: Options) -> Division:
    """Deal the patients of a set to sites; a site keeps the labels of the tasks that it holds.

    Every holder of a task gets at least :data:`.deal.MIN_PATIENTS` patients to train it on. The same arguments give
    the same parts, in whatever order the patients come.

    Raises:
        MtfedError: where the patients do not suffice, or the set lacks a column.
    """
    deal = _deal(rows, tasks, sites, options)
    names = read_partition(options.scheme)
    for name in names:
        if is_flower([name]):
            from .flwr_datasets import assign

            assign(deal, name)
        else:
            getattr(schemes, name)(deal)
    return divide(deal, "column" in names or "modality" in names)


def divide(deal: Deal, named: bool = False) -> Division:
    """Return what a deal comes to; ``named``: sites are called by the group that they are bound to."""
    serve(deal, f"partition {deal.options.scheme!r}")
    candidates = deal.candidates()
    dealt = deal.deal(candidates)
    fill_up(deal, dealt, candidates)
    parts = tuple(
        tuple(
            replace(row, labels=kept)
            for patient in part
            for row in deal.patients[patient].rows
            if (kept := {task: label for task, label in row.labels.items() if task in held})
        )
        for part, held in zip(dealt, deal.holds, strict=True)
    )
    left_out = tuple(name for name, sites in candidates.items() if not sites)
    return Division(tuple(site_names(deal.seats if named else [()] * deal.sites)), parts, left_out)


def default_sites(rows: Sequence[Row], tasks: dict[str, Task], options: Options) -> int:
    """Return how many sites a set makes: where it is divided by column one a value, else eight.

    Values of too few patients for a site are counted as one.
    """
    names = read_partition(options.scheme)
    if is_flower(names):
        from .flwr_datasets import own_number

        return own_number(names[0], _deal(rows, tasks, SITES, options)) or SITES
    columns = [options.column] * ("column" in names) + ["modality"] * ("modality" in names)
    if not columns:
        return SITES
    deal = _deal(rows, tasks, 1, options)
    cells = [schemes.cells_of(deal.patients, name) for name in columns]
    deal.groups = {name: tuple(cell[name] for cell in cells) for name in deal.patients}
    groups = set(deal.groups.values())
    if "column" not in names:
        return max(len(groups), SITES)
    labelled = [deal.labelled(task) for task in tasks]
    small = {group for group in groups if all(len(found[group]) < MIN_PATIENTS for found in labelled)}
    # Those with too few patients for a site share one, or join the smallest of the others.
    together = any(sum(len(found[group]) for group in small) >= MIN_PATIENTS for found in labelled)
    return max(len(groups) - len(small) + together, 1)


def site_names(seats: Sequence[Group]) -> list[str]:
    """Return a name for every site, after its group if it has one; no two alike."""
    if not any(seats):
        return [f"hospital-{i + 1:0{len(str(len(seats)))}d}" for i in range(len(seats))]
    called = [_slug("-".join(group)) or "site" for group in seats]
    total, seen = Counter(called), Counter[str]()
    names: list[str] = []
    for name in called:
        seen[name] += 1
        number = f"-{seen[name]:0{len(str(total[name]))}d}" if total[name] > 1 else ""
        names.append(name + number)
    return names if len(set(names)) == len(names) else [f"{name}-{i + 1}" for i, name in enumerate(called)]


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return words if len(words) <= LONGEST else words[:LONGEST].rpartition("-")[0] or words[:LONGEST]


def _deal(rows: Sequence[Row], tasks: dict[str, Task], sites: int, options: Options) -> Deal:
    return Deal(patients_of(rows, tasks), tasks, sites, options, np.random.default_rng([options.seed, sites]))
