"""Who holds what: patients are dealt to sites by task and by class, and never divided."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..errors import MtfedError
from ..tasks import Task
from .manifest import Row

MIN_PATIENTS = 4  # a site needs some to train on and some to hold out


def held_tasks(tasks: Sequence[str], sites: int) -> list[tuple[str, ...]]:
    """Return which tasks each site holds: one after the other, then a site with all, and again."""
    if sites == 1:
        return [tuple(tasks)]
    cycle = [(task,) for task in tasks] + ([tuple(tasks)] if len(tasks) > 1 else [])
    return [cycle[i % len(cycle)] for i in range(sites)]


def partition(rows: Sequence[Row], tasks: dict[str, Task], sites: int, alpha: float, seed: int) -> list[list[Row]]:
    """Deal labelled rows to sites: a Dirichlet(alpha) share of every class for each site that holds the task.

    Every holder gets at least ``MIN_PATIENTS`` patients a task. Raises :class:`MtfedError` where the patients do not
    suffice. The same arguments give the same parts.
    """
    holds = held_tasks(list(tasks), sites)
    parts: list[list[Row]] = [[] for _ in range(sites)]
    taken: dict[str, int] = {}  # patient -> site, for patients with labels of several tasks
    rng = np.random.default_rng([seed, sites])
    for name in tasks:
        holders = [site for site in range(sites) if name in holds[site]]
        by_class: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            if name in row.labels and row.patient not in taken:
                label = row.labels[name] if tasks[name].kind == "classification" else ""
                by_class[label][row.patient].append(row)
        patients = sum(len(group) for group in by_class.values())
        if patients < MIN_PATIENTS * len(holders):
            raise MtfedError(
                f"The data can serve {name} to at most {patients // MIN_PATIENTS} sites ({patients} patients, "
                f"{MIN_PATIENTS} a site), but {len(holders)} of {sites} sites hold it; ask for fewer sites."
            )
        dealt: list[list[list[Row]]] = [[] for _ in holders]
        for label in sorted(by_class):
            group = [by_class[label][patient] for patient in sorted(by_class[label])]
            order = rng.permutation(len(group))
            ends = np.round(np.cumsum(rng.dirichlet([alpha] * len(holders))) * len(group)).astype(int)
            for part, start, end in zip(dealt, [0, *ends[:-1]], ends, strict=True):
                part.extend(group[i] for i in order[start:end])
        _fill_up(dealt)
        for site, images in zip(holders, dealt, strict=True):
            for image_rows in images:
                taken |= {row.patient: site for row in image_rows}
                parts[site].extend(replace(row, labels=_keep(row, holds[site])) for row in image_rows)
    return parts


def _fill_up(dealt: list[list[list[Row]]]) -> None:
    """Move patients from the largest part to parts below the minimum."""
    for part in dealt:
        while len(part) < MIN_PATIENTS:
            part.append(max(dealt, key=len).pop())


def _keep(row: Row, tasks: tuple[str, ...]) -> dict[str, str]:
    return {task: label for task, label in row.labels.items() if task in tasks}


def hold_out(rows: Sequence[Row], tasks: dict[str, Task], share: float, seed: str) -> tuple[Row, ...]:
    """Set patients aside for validation where a site has not done so itself; returns all rows, splits filled in.

    Each kind of patient (by tasks and classes) gives its share, so that a rare class is in both parts where it can be.
    """
    if any(row.split == "val" for row in rows):
        return tuple(rows)
    kinds: dict[tuple, list[str]] = defaultdict(list)
    by_patient: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.split == "train":
            by_patient[row.patient].append(row)
    for patient, images in by_patient.items():
        labels = {(t, v if tasks[t].kind == "classification" else "") for row in images for t, v in row.labels.items()}
        kinds[tuple(sorted(labels))].append(patient)
    held: set[str] = set()
    for kind in sorted(kinds):
        patients = sorted(kinds[kind])
        random.Random(f"{seed}/{kind}").shuffle(patients)
        held.update(patients[: max(round(share * len(patients)), int(len(patients) > 1))])
    return tuple(replace(row, split="val") if row.patient in held and row.split == "train" else row for row in rows)
