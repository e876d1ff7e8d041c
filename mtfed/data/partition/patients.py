"""Patients, who are dealt whole: all rows of one, and what kind of patient that makes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...tasks.specs import KIND_SPECS
from ...tasks.task import Task
from ..manifest import Row

Stratum = tuple[tuple[str, str], ...]  # (task, class) pairs of a patient


@dataclass(frozen=True)
class Patient:
    """One patient of a set."""

    name: str
    rows: tuple[Row, ...]  # those with a label
    split: str
    kind: Stratum
    tasks: frozenset[str]  # that have a label


def patients_of(rows: Iterable[Row], tasks: dict[str, Task]) -> dict[str, Patient]:
    """Return the patients who have any label, by name and in the order of their names."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.labels:
            found[row.patient].append(row)
    patients = {}
    for name in sorted(found):
        labelled = frozenset(task for row in found[name] for task in row.labels)
        patients[name] = Patient(
            name, tuple(found[name]), found[name][0].split, stratum_of(found[name], tasks), labelled
        )
    return patients


def stratum_of(images: Sequence[Row], tasks: dict[str, Task]) -> Stratum:
    """Return a patient's tasks and classes; masks and the like count as one class."""
    return tuple(
        sorted({(t, v if KIND_SPECS[tasks[t].kind].by_class else "") for row in images for t, v in row.labels.items()})
    )
