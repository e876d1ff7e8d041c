"""Who holds what: patients are dealt to sites by task and by class, and never divided."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..errors import MtfedError
from ..tasks import KINDS, Task
from .manifest import Row

MIN_PATIENTS = 2  # a task at a site: one to train on and one to hold out
Kind = tuple[tuple[str, str], ...]  # (task, class) pairs of a patient


def held_tasks(tasks: Sequence[str], sites: int) -> list[tuple[str, ...]]:
    """Return which tasks each site holds: one after the other, then a site with all, and again."""
    if sites == 1:
        return [tuple(tasks)]
    cycle = [(task,) for task in tasks] + ([tuple(tasks)] if len(tasks) > 1 else [])
    return [cycle[i % len(cycle)] for i in range(sites)]


def partition(rows: Sequence[Row], tasks: dict[str, Task], sites: int, alpha: float, seed: int) -> list[list[Row]]:
    """Deal patients to sites: of every kind of patient (by tasks and classes) a Dirichlet(alpha) share for each site
    that holds one of its tasks. A site keeps the labels of the tasks that it holds.

    Every holder gets at least ``MIN_PATIENTS`` patients a task. Raises :class:`MtfedError` where the patients do not
    suffice. The same arguments give the same parts.
    """
    holds = held_tasks(list(tasks), sites)
    patients: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.labels:
            patients[row.patient].append(row)
    kinds: dict[Kind, list[str]] = defaultdict(list)
    for patient in sorted(patients):
        kinds[kind_of(patients[patient], tasks)].append(patient)
    rng = np.random.default_rng([seed, sites])
    dealt: list[list[str]] = [[] for _ in range(sites)]
    for kind in sorted(kinds):
        candidates = [site for site in range(sites) if any(task in holds[site] for task, _ in kind)]
        order = rng.permutation(len(kinds[kind]))
        ends = np.round(np.cumsum(rng.dirichlet([alpha] * len(candidates))) * len(order)).astype(int)
        for site, start, end in zip(candidates, [0, *ends[:-1]], ends, strict=True):
            dealt[site].extend(kinds[kind][i] for i in order[start:end])
    for task in tasks:
        holders = [site for site in range(sites) if task in holds[site]]
        labelled = {patient for patient, images in patients.items() if any(task in row.labels for row in images)}
        if not labelled:
            raise MtfedError(f"No site holds task {task!r}: the data has no label for it; take the task out.")
        if len(labelled) < MIN_PATIENTS * len(holders):
            raise MtfedError(
                f"The data can serve {task} to at most {len(labelled) // MIN_PATIENTS} sites "
                f"({len(labelled)} patients, {MIN_PATIENTS} a site), but {len(holders)} of {sites} sites hold it; "
                "ask for fewer sites."
            )
        _fill_up([dealt[site] for site in holders], labelled)
    return [
        [
            replace(row, labels=kept)
            for patient in part
            for row in patients[patient]
            if (kept := {task: label for task, label in row.labels.items() if task in held})
        ]
        for part, held in zip(dealt, holds, strict=True)
    ]


def _fill_up(parts: list[list[str]], labelled: set[str]) -> None:
    """Move labelled patients from the site that has most to sites below the minimum."""
    for part in parts:
        while sum(patient in labelled for patient in part) < MIN_PATIENTS:
            richest = max(parts, key=lambda other: sum(patient in labelled for patient in other))
            moved = next(patient for patient in reversed(richest) if patient in labelled)
            richest.remove(moved)
            part.append(moved)


def kind_of(images: Sequence[Row], tasks: dict[str, Task]) -> Kind:
    """Return a patient's tasks and classes; masks and the like count as one class."""
    return tuple(
        sorted({(t, v if KINDS[tasks[t].kind].by_class else "") for row in images for t, v in row.labels.items()})
    )


def hold_out(rows: Sequence[Row], tasks: dict[str, Task], share: float, seed: str) -> tuple[Row, ...]:
    """Set patients aside for validation where a site has not done so itself; returns all rows, splits filled in.

    Each kind of patient (by tasks and classes) gives its share, so that a rare class is in both parts where it can be.
    Patients of whom each is a kind of its own give theirs together.
    """
    if any(row.split == "val" for row in rows):
        return tuple(rows)
    kinds: dict[Kind, list[str]] = defaultdict(list)
    by_patient: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.split == "train":
            by_patient[row.patient].append(row)
    for patient, images in by_patient.items():
        kinds[kind_of(images, tasks)].append(patient)
    held: set[str] = set()
    alone: list[str] = []
    for kind in sorted(kinds):
        patients = sorted(kinds[kind])
        random.Random(f"{seed}/{kind}").shuffle(patients)
        if len(patients) == 1:
            alone += patients
        else:
            held.update(patients[: max(round(share * len(patients)), 1)])
    random.Random(f"{seed}/alone").shuffle(alone)
    held.update(alone[: round(share * len(alone))])
    return tuple(replace(row, split="val") if row.patient in held and row.split == "train" else row for row in rows)
