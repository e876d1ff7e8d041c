"""The patients of a set, each with all its rows, and those that a site holds out for validation."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ...tasks.task import Task
from ..manifest import Row

Stratum = tuple[tuple[str, str], ...]  # (task, class) pairs of a patient


@dataclass(frozen=True)
class Patient:
    """One patient of a set."""

    name: str
    rows: tuple[Row, ...]  # those with a label, or all
    split: str
    stratum: Stratum
    tasks: frozenset[str]  # tasks with a label


def patients_of(rows: Iterable[Row], tasks: dict[str, Task], *, unlabelled: bool = False) -> dict[str, Patient]:
    """Return all patients with a label by name, sorted by name; if ``unlabelled``, also the others."""
    by_patient: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.labels or unlabelled:
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


def hold_out(rows: Sequence[Row], tasks: dict[str, Task], share: float, seed: str) -> tuple[Row, ...]:
    """Return all rows, with some patients in split ``val``; unchanged if the site has validation rows already.

    Each stratum of patients (tasks and classes) gives its share, so that a rare class is in both parts if possible.
    Patients who are alone in their stratum are drawn together. A task with training patients keeps at least one.
    """
    if any(row.split == "val" for row in rows):
        return tuple(rows)
    strata: dict[Stratum, list[str]] = defaultdict(list)
    by_patient: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.split == "train":
            by_patient[row.patient].append(row)
    for patient, images in by_patient.items():
        strata[stratum_of(images, tasks)].append(patient)
    training = Counter(task for images in by_patient.values() for task in {t for row in images for t in row.labels})
    held_out: set[str] = set()
    single: list[str] = []
    for patients in (strata[stratum] for stratum in sorted(strata)):
        if len(patients) == 1:
            single += patients
        else:
            count = min(max(round(share * len(patients)), 1), len(patients) - 1)
            held_out.update(shuffled(patients, seed)[:count])
    for patient in held_out:
        training.subtract({task for row in by_patient[patient] for task in row.labels})
    count = round(share * len(single))
    for patient in shuffled(single, seed):
        labelled = {task for row in by_patient[patient] for task in row.labels}
        if count and all(training[task] > 1 for task in labelled):
            held_out.add(patient)
            training.subtract(labelled)
            count -= 1
    return tuple(replace(row, split="val") if row.patient in held_out and row.split == "train" else row for row in rows)


def shuffled(patients: Sequence[str], seed: str) -> list[str]:
    """Return patients in a random order in which the rank of each depends on its own name only.

    A site that gains patients, even between rounds of a run, therefore does not train on those that it has validated
    with.
    """
    return sorted(patients, key=lambda patient: (random.Random(f"{seed}/{patient}").random(), patient))
