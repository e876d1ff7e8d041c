"""The patients of a set, each with all its rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...tasks.task import Task
from ..manifest import Row

Stratum = tuple[tuple[str, str], ...]  # (task, class) pairs of a patient


@dataclass(frozen=True)
class Patient:
    """One patient of a set."""

    name: str
    rows: tuple[Row, ...]  # those with a label
    split: str
    stratum: Stratum
    tasks: frozenset[str]  # tasks with a label


def patients_of(rows: Iterable[Row], tasks: dict[str, Task]) -> dict[str, Patient]:
    """Return all patients with a label by name, sorted by name."""
    by_patient: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.labels:
            by_patient[row.patient].append(row)
    patients = {}
    for name in sorted(by_patient):
        images = tuple(by_patient[name])
        labelled = frozenset(task for row in images for task in row.labels)
        patients[name] = Patient(name, images, images[0].split, stratum_of(images, tasks), labelled)
    return patients


def stratum_of(images: Sequence[Row], tasks: dict[str, Task]) -> Stratum:
    """Return a patient's tasks and classes; labels without classes, such as masks, count as one class."""
    return tuple(sorted({(t, v if tasks[t].spec.by_class else "") for row in images for t, v in row.labels.items()}))
