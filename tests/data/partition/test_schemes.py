"""The partition schemes, alone and combined, on random federations."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from helpers import SMALL
from helpers.divided_sets import (
    CONFIG,
    GRADE,
    SAMPLE,
    check_division,
    graded,
    set_rows,
    site_of,
    to_divide,
)
from mtfed.config import read_config
from mtfed.data.manifest import Row
from mtfed.data.partition import Options, partition, tasks_in_turn
from mtfed.data.partition.allocation import allocate_sites
from mtfed.errors import MtfedError

SHORT = ("suffice", "can serve", "needs a site", "a site are needed", "cannot divide", "would hold task 'stage'")

SUMS = [
    "iid",
    "tasks",
    "dirichlet",
    "quantity",
    "tasks + dirichlet",
    "tasks + quantity",
    "dirichlet + quantity",
    "column",
    "column + tasks",
    "modality",
    "modality + quantity",
    "modality + tasks + dirichlet",
    "column + modality + tasks",
    "flwr:IidPartitioner",
    "flwr:DirichletPartitioner + tasks",
]


@pytest.mark.parametrize("scheme", SUMS)
def test_every_scheme_on_random_federations(scheme: str) -> None:
    divided = 0
    for seed in range(8):
        rng = random.Random(seed)
        rows, sites = set_rows(seed, rng.choice([40, 160, 300])), rng.choice([2, 4, 5, 8])
        sites = 10 if "column + modality" in scheme else sites  # it makes eight groups
        options = Options(scheme, rng.choice([0.1, 1.0, 100.0]), seed=seed)
        try:
            divided_set = partition(to_divide(rows), CONFIG.tasks, sites, options)
        except MtfedError as error:
            assert any(word in str(error) for word in SHORT)
            continue
        divided += 1
        check_division(rows, divided_set, sites, scheme)
        assert divided_set == partition(to_divide(rows), CONFIG.tasks, sites, options)
        rng.shuffle(rows)
        assert site_of(divided_set) == site_of(partition(to_divide(rows), CONFIG.tasks, sites, options))
    assert divided >= 2


def test_a_patient_with_labels_of_two_tasks_stays_together() -> None:
    rows = [Row(f"{i}.png", f"p{i}", "train", {"pneumonia": str(i % 2), "lungs": "m.png"}) for i in range(60)]
    assert len(site_of(partition(rows, SAMPLE.tasks, 3, Options()))) == 60


@pytest.mark.parametrize(("sites", "both"), [(1, 1), (2, 0), (3, 1), (8, 2), (16, 5)])
def test_tasks_in_turn(sites: int, both: int) -> None:
    site_tasks = tasks_in_turn(["a", "b"], sites)
    assert sum(tasks == ("a", "b") for tasks in site_tasks) == both
    assert {task for tasks in site_tasks for task in tasks} == {"a", "b"}


def test_the_shares_of_schemes() -> None:
    tasks = read_config(SMALL | GRADE).tasks

    def shares(scheme: str, alpha: float) -> np.ndarray:
        parts = partition(graded(), tasks, 6, Options(scheme, alpha)).parts
        return np.array(
            [[sum(row.labels["grade"] == k for row in part) for k in tasks["grade"].classes] for part in parts]
        )

    even = shares("iid", 1)
    assert even.sum(1).tolist() == [200] * 6 and (abs(even - 200 / 3) < 30).all()
    sized = shares("quantity", 0.5)
    large = sized[sized.sum(1) > 100]
    assert np.ptp(sized.sum(1)) > 200 and (abs(large / large.sum(1, keepdims=True) - 1 / 3) < 0.15).all()
    skewed = shares("dirichlet", 0.2)
    assert np.median((skewed / skewed.sum(1, keepdims=True)).max(1)) > 0.6
    assert shares("dirichlet", 1e4).sum(1).tolist() == pytest.approx([200] * 6, abs=10)
    both = shares("dirichlet + quantity", 1e4)
    assert both.sum(1).tolist() == pytest.approx([200] * 6, abs=10)


def test_patients_alone_in_their_stratum_are_spread() -> None:
    tasks = read_config({f"task.t{i}.{k}": v for i in range(8) for k, v in MASK_KEYS.items()}).tasks
    rows = [
        Row(f"{number}.png", f"p{number}", "train", {f"t{bit}": "m.png" for bit in range(8) if number >> bit & 1})
        for number in range(1, 256)
    ]
    sizes = [len(part) for part in partition(rows, tasks, 8, Options("dirichlet", 1.0)).parts]
    assert sum(sizes) == 255 and min(sizes) > 12 and max(sizes) < 60


MASK_KEYS = {"kind": "segmentation", "classes": "background, blob"}


def test_large_groups_get_more_sites() -> None:
    assert Counter(allocate_sites({("a",): 60, ("b",): 30, ("c",): 1}, 7)) == {("a",): 4, ("b",): 2, ("c",): 1}
