"""Withhold labels of simulated sites, to study training with few labels; the images stay."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from ...tasks.task import Task
from ..manifest import Row
from .patients import Stratum, shuffled, stratum_of


def withhold_labels(rows: Sequence[Row], tasks: dict[str, Task], share: float, seed: str) -> tuple[Row, ...]:
    """Return all rows, with the labels of only a share of the labelled training patients.

    Each stratum of patients (tasks and classes) keeps its share, and at least one. Patients who are alone in their
    stratum are drawn together; of these, each class keeps at least one that has no other. With a larger share the same
    patients keep their labels, and others do, too.
    """
    by_patient: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.split == "train" and row.labels:
            by_patient[row.patient].append(row)
    strata: dict[Stratum, list[str]] = defaultdict(list)
    for patient, images in by_patient.items():
        strata[stratum_of(images, tasks)].append(patient)
    single = {patients[0]: stratum for stratum, patients in strata.items() if len(patients) == 1}
    chosen: set[str] = set()
    for patients in strata.values():
        if len(patients) > 1:
            chosen.update(shuffled(patients, seed)[: max(round(share * len(patients)), 1)])
    covered = {item for stratum, patients in strata.items() if len(patients) > 1 for item in stratum}
    for rank, patient in enumerate(shuffled(list(single), seed)):
        if rank < round(share * len(single)) or not covered.issuperset(single[patient]):
            chosen.add(patient)
            covered.update(single[patient])
    lose = by_patient.keys() - chosen
    return tuple(replace(row, labels={}) if row.patient in lose and row.split == "train" else row for row in rows)


def sites_without_labels(tasks: Sequence[frozenset[str]], share: float, seed: int) -> frozenset[int]:
    """Return which sites' labels are withheld: a share of them, but never all sites of a task.

    Args:
        tasks: the tasks of each site.
        share: share of the sites; fewer are returned if more would leave a task without a site.
        seed: seed of the draw. With a larger share the same sites are returned, and others, too.
    """
    chosen: set[int] = set()
    for site in random.Random(f"{seed}/unlabelled").sample(range(len(tasks)), len(tasks)):
        if len(chosen) >= round(share * len(tasks)):
            break
        others = [own for other, own in enumerate(tasks) if other != site and other not in chosen]
        if tasks[site] <= frozenset().union(*others):
            chosen.add(site)
    return frozenset(chosen)
