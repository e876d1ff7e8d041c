"""Patients whom a site keeps for validation."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from ...tasks.task import Task
from ..manifest import Row
from .patients import Stratum, stratum_of


def hold_out(rows: Sequence[Row], tasks: dict[str, Task], share: float, seed: str) -> tuple[Row, ...]:
    """Set patients aside for validation where a site has not done so itself; returns all rows, splits filled in.

    Each kind of patient (by tasks and classes) gives its share, so that a rare class is in both parts where it can be.
    Patients of whom each is a kind of its own give theirs together. A task that has patients to train on keeps one.
    """
    if any(row.split == "val" for row in rows):
        return tuple(rows)
    kinds: dict[Stratum, list[str]] = defaultdict(list)
    by_patient: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.split == "train":
            by_patient[row.patient].append(row)
    for patient, images in by_patient.items():
        kinds[stratum_of(images, tasks)].append(patient)
    training = Counter(task for images in by_patient.values() for task in {t for row in images for t in row.labels})
    held: set[str] = set()
    alone: list[str] = []
    for patients in (kinds[kind] for kind in sorted(kinds)):
        if len(patients) == 1:
            alone += patients
        else:
            count = min(max(round(share * len(patients)), 1), len(patients) - 1)
            held.update(_drawn(patients, seed)[:count])
    for patient in held:
        training.subtract({task for row in by_patient[patient] for task in row.labels})
    count = round(share * len(alone))
    for patient in _drawn(alone, seed):
        labelled = {task for row in by_patient[patient] for task in row.labels}
        if count and all(training[task] > 1 for task in labelled):
            held.add(patient)
            training.subtract(labelled)
            count -= 1
    return tuple(replace(row, split="val") if row.patient in held and row.split == "train" else row for row in rows)


def _drawn(patients: Sequence[str], seed: str) -> list[str]:
    """Return patients in a random order, in which each has a place of its own: others may come and go around it.

    So a site that gains patients, between the rounds of a run too, does not train on those that it has validated with.
    """
    return sorted(patients, key=lambda patient: (random.Random(f"{seed}/{patient}").random(), patient))
