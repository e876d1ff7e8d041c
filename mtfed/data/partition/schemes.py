"""The schemes: each a function of its name, which changes a deal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ...errors import MtfedError, unknown
from .deal import MIN_PATIENTS, Deal
from .patients import Patient


def column(deal: Deal) -> None:
    """A site holds the patients of one value of a column.

    Where sites are more than values, they share the largest values'; where they are fewer, the last holds all the
    smallest values'.
    """
    name = deal.options.column
    deal.group(cells_of(deal.patients, name), f"column {name!r}", join=True)


def modality(deal: Deal) -> None:
    """A site holds patients of one value of the column ``modality``, and shares them with other sites.

    Within another column's values small groups share a site, as there.
    """
    deal.group(cells_of(deal.patients, "modality"), "column 'modality'", join=deal.grouped)


def tasks(deal: Deal) -> None:
    """Sites hold one task after the other, then a site all of them, and again.

    Where sites are bound to a group of patients, a site whose turn it is for a task without patients there holds the
    next that has some.
    """
    turns = held_tasks(list(deal.tasks), deal.sites)
    if not deal.grouped:
        deal.holds = turns
        return
    labelled = {task: deal.labelled(task) for task in deal.tasks}
    for site, group in enumerate(deal.seats):
        there = [task for task in deal.tasks if len(labelled[task].get(group, ())) >= MIN_PATIENTS]
        kept = [tuple(task for task in turn if task in there) for turn in (*turns[site:], *turns)]
        deal.holds[site] = next(filter(None, kept), ())


def dirichlet(deal: Deal) -> None:
    """Of every kind of patient, by tasks and classes, the sites get shares drawn from Dirichlet(alpha)."""
    deal.by_kind = True
    deal.shares.append(lambda sites: deal.rng.dirichlet([deal.options.alpha] * len(sites)))


def quantity(deal: Deal) -> None:
    """The sites get shares of all patients, drawn once from Dirichlet(alpha)."""
    drawn = deal.rng.dirichlet([deal.options.alpha] * deal.sites)
    least = np.finfo(float).tiny  # a small alpha leaves nothing to many, of whom some sites are alone with a group
    deal.shares.append(lambda sites: (drawn[list(sites)] + least) / (drawn[list(sites)] + least).sum())


def iid(deal: Deal) -> None:
    """The sites get even shares, which is what a deal does without a scheme."""


def held_tasks(tasks: Sequence[str], sites: int) -> list[tuple[str, ...]]:
    """Return which tasks each site holds: one after the other, then a site with all, and again."""
    if sites == 1:
        return [tuple(tasks)]
    cycle = [(task,) for task in tasks] + ([tuple(tasks)] if len(tasks) > 1 else [])
    return [cycle[i % len(cycle)] for i in range(sites)]


def cells_of(patients: dict[str, Patient], name: str) -> dict[str, str]:
    """Return every patient's cell in a column; of several the one that most of its images have."""
    cells = {}
    for patient in patients.values():
        found = Counter(row.others.get(name) or row.labels.get(name, "") for row in patient.rows)
        del found[""]
        if found:
            cells[patient.name] = min(found, key=lambda cell: (-found[cell], cell))
    if not cells:
        there = sorted({key for patient in patients.values() for row in patient.rows for key in row.others})
        known = unknown("column", name, there) if there else f"the manifest has no column {name!r}, only tasks."
        raise MtfedError(f"Config key partition: {known}")
    if empty := [patient for patient in patients if patient not in cells]:
        raise MtfedError(
            f"Config key partition: {len(empty)} of {len(patients)} patients have nothing in column {name!r}, "
            f"{empty[0]!r} is one; fill it in, or name another partition-column."
        )
    return cells
