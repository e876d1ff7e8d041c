"""Patients whom a site keeps for validation."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from ...tasks import Task
from ..manifest import Row
from .patients import Kind, kind_of


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
