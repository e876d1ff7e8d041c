"""The sample is divided as in the first release, whose results are published."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from helpers.divided_sets import (
    SAMPLE,
)
from mtfed.data.manifest import Row
from mtfed.data.partition import MIN_PATIENTS, stratum_of, tasks_in_turn
from mtfed.data.simulated_sites import default_sites, division, simulated_site
from mtfed.data.simulated_sites import test_data as server_test_data
from mtfed.errors import MtfedError


def reference(rows: list[Row], sites: int, alpha: float, seed: int) -> list[list[Row]]:
    """Divide the sample as the first release did, where no site was below the minimum."""
    tasks, site_tasks = SAMPLE.tasks, tasks_in_turn(list(SAMPLE.tasks), sites)
    patients: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        patients[row.patient].append(row)
    strata: dict[Any, list[str]] = defaultdict(list)
    for patient in sorted(patients):
        strata[stratum_of(patients[patient], tasks)].append(patient)
    rng = np.random.default_rng([seed, sites])
    drawn: list[list[str]] = [[] for _ in range(sites)]
    for stratum in sorted(strata):
        candidates = [site for site in range(sites) if any(task in site_tasks[site] for task, _ in stratum)]
        order = rng.permutation(len(strata[stratum]))
        ends = np.round(np.cumsum(rng.dirichlet([alpha] * len(candidates))) * len(order)).astype(int)
        for site, start, end in zip(candidates, [0, *ends[:-1]], ends, strict=True):
            drawn[site].extend(strata[stratum][i] for i in order[start:end])
    for task in tasks:
        labelled = {p for p, images in patients.items() if any(task in row.labels for row in images)}
        parts = [drawn[site] for site in range(sites) if task in site_tasks[site]]
        for part in parts:
            while sum(patient in labelled for patient in part) < MIN_PATIENTS:
                richest = max(parts, key=lambda other: sum(patient in labelled for patient in other))
                moved = next(patient for patient in reversed(richest) if patient in labelled)
                richest.remove(moved)
                part.append(moved)
    return [[row for patient in part for row in patients[patient]] for part in drawn]


@pytest.mark.parametrize(("sites", "alpha", "seed"), [(1, 1, 0), (3, 1, 0), (8, 1, 0), (8, 0.1, 5), (25, 0.3, 2)])
def test_the_sample_is_divided_as_published(sites: int, alpha: float, seed: int) -> None:
    config = SAMPLE.model_copy(update={"partition_alpha": alpha, "partition_seed": seed})
    divided_set = division(config, sites)
    assert divided_set is not None and not divided_set.left_out
    pool = simulated_site(config, 0, sites).pool
    assert list(map(list, divided_set.parts)) == reference([r for r in pool if r.split == "train"], sites, alpha, seed)
    assert divided_set.names == tuple(f"hospital-{i + 1:0{len(str(sites))}d}" for i in range(sites))


TASK_NAMES = list(SAMPLE.tasks)


@pytest.mark.parametrize("sites", [1, 2, 8, 25])
def test_every_patient_is_at_one_site(sites: int) -> None:
    parts = [simulated_site(SAMPLE, i, sites) for i in range(sites)]
    patients = [row.patient for part in parts for row in part.rows]
    by_site = [{row.patient for row in part.rows} for part in parts]
    assert len(set(patients)) == sum(map(len, by_site))  # no patient at two sites
    assert len({row.image for part in parts for row in part.rows}) == len(patients) == 1665
    test_patients = {row.patient for row in server_test_data(SAMPLE).rows}
    assert not test_patients & set(patients)
    for part in parts:
        train, val = ({row.patient for row in part.part(split).rows} for split in ("train", "val"))
        assert train and val and not train & val
        for task in {task for row in part.rows for task in row.labels}:
            assert len({row.patient for row in part.rows if task in row.labels}) >= MIN_PATIENTS
    assert parts == [simulated_site(SAMPLE, i, sites) for i in range(sites)]


def test_the_default_federation_is_skewed_and_mixed() -> None:
    parts = [simulated_site(SAMPLE, i, 8) for i in range(default_sites(SAMPLE))]
    site_tasks = [frozenset(t for row in part.rows for t in row.labels) for part in parts]
    assert len(parts) == 8 and sum(len(tasks) == 2 for tasks in site_tasks) >= 2
    shares = [
        np.mean([row.labels["pneumonia"] == "1" for row in p.rows if "pneumonia" in row.labels])
        for p in parts
        if p.count("pneumonia")
    ]
    assert max(shares) - min(shares) > 0.3


def test_too_many_sites() -> None:
    with pytest.raises(MtfedError, match=r"lungs to at most 17 sites .* but 33 of 50 sites hold it"):
        simulated_site(SAMPLE, 0, 50)
