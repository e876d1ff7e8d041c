"""Partitioners of flwr-datasets."""

from __future__ import annotations

from typing import Any

import pytest

from helpers import SMALL
from helpers.divided_sets import (
    CONFIG,
    GRADE,
    check_division,
    graded,
    set_rows,
    site_of,
    to_divide,
)
from mtfed.config import read_config
from mtfed.data.partition import Options, partition
from mtfed.data.partition import default_sites as sites_of_set
from mtfed.data.partition.flwr_datasets import partition_with, read_options
from mtfed.errors import MtfedError


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DirichletPartitioner", "alpha=5.0, min_partition_size=2"),
        ("PathologicalPartitioner", "num_classes_per_partition=2, class_assignment_mode=deterministic"),
        ("ShardPartitioner", "num_shards_per_partition=2"),
        ("LinearPartitioner", ""),
        ("SizePartitioner", "partition_sizes=[60, 30, 20]"),
        ("InnerDirichletPartitioner", "partition_sizes=[60, 30, 20], alpha=5.0"),
        ("ContinuousPartitioner", "partition_by=label, strictness=0.5"),
    ],
)
def test_partitioners_of_flwr_datasets(name: str, options: str) -> None:
    rows, tasks = graded(150), read_config(SMALL | GRADE).tasks
    divided_set = partition(rows, tasks, 3, Options(f"flwr:{name}", flower=options))
    check_division(rows, divided_set, 3, "flwr")
    rows.reverse()
    again = partition(rows, tasks, 3, Options(f"flwr:{name}", flower=options))
    assert site_of(again) == site_of(divided_set)


def test_a_partitioner_of_your_own() -> None:
    from flwr_datasets.partitioner import GroupedNaturalIdPartitioner, NaturalIdPartitioner, SizePartitioner

    rows = set_rows(2)
    divided_set = partition_with(NaturalIdPartitioner(partition_by="site"), to_divide(rows), CONFIG.tasks)
    named = Options("flwr:NaturalIdPartitioner", flower="partition_by=site")
    assert len(divided_set.parts) == 4 == sites_of_set(to_divide(rows), CONFIG.tasks, named)
    assert all(len({row.others["site"] for row in part}) == 1 for part in divided_set.parts)
    check_division(rows, divided_set, 4, "flwr")
    grouped = partition_with(GroupedNaturalIdPartitioner("site", group_size=2), to_divide(rows), CONFIG.tasks)
    assert len(grouped.parts) == 2 and not grouped.left_out
    few = partition_with(SizePartitioner([20, 30]), to_divide(rows), CONFIG.tasks)
    assert len(site_of(few)) == 50 and len(few.left_out) > 40
    with pytest.raises(
        MtfedError, match=r"Partitioner SizePartitioner cannot divide .* patients .columns patient, label"
    ):
        partition_with(SizePartitioner([20, 3000]), to_divide(rows), CONFIG.tasks)


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("", {}),
        ("alpha=0.5, partition_by=label", {"alpha": 0.5, "partition_by": "label"}),
        ("sizes=[1, 2], shuffle = false,", {"sizes": [1, 2], "shuffle": False}),
    ],
)
def test_options_are_read(text: str, given: dict[str, Any]) -> None:
    assert read_options(text) == given


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("DirichletPartitioner", "alpha", "expected KEY=VALUE once a key, .* got 'alpha'"),
        ("DirichletPartitioner", "alpha=1, alpha=2", "expected KEY=VALUE once a key"),
        ("DirichletPartitioner", "beta=1", "takes partition_by, alpha, .* but not 'beta'"),
        ("DirichletPartitioner", "num_partitions=2", "but not 'num_partitions'"),
        ("DirichletPartitioner", "alpha=none", "refuses them"),
        ("DirichletPartitioner", "partition_by=colour", "cannot divide"),
    ],
)
def test_wrong_options_are_refused(name: str, text: str, sentence: str) -> None:
    with pytest.raises(MtfedError, match=sentence):
        partition(to_divide(set_rows(1)), CONFIG.tasks, 3, Options(f"flwr:{name}", flower=text))
