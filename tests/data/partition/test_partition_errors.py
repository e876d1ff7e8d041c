"""Partitions that are impossible, and keys that are wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from helpers import SMALL
from helpers.divided_sets import (
    CONFIG,
    GRADE,
    KEYS,
    set_rows,
    to_divide,
)
from mtfed.config import flatten, read_config
from mtfed.config.partitions import PARTITIONS, read_partition
from mtfed.config_help import describe_keys
from mtfed.data.manifest import Row
from mtfed.data.partition import Options, partition
from mtfed.data.partition.schemes import SCHEMES
from mtfed.errors import MtfedError


@pytest.mark.parametrize(
    ("scheme", "sites", "change", "sentence"),
    [
        ("tasks", 2, None, "No site would hold task 'stage': .* 2 sites the tasks in turn, and there are 3; ask for"),
        (
            "tasks",
            200,
            None,
            r"The data can serve grade to at most \d+ sites \(\d+ patients, 2 a site\), but 100 of 200",
        ),
        ("iid", 80, None, r"can serve grade to at most \d+ sites"),
        (
            "modality",
            1,
            None,
            "column 'modality' divides the patients into 2 groups, .* but 1 sites .* ask for 2 or more",
        ),
        (
            "column",
            3,
            {"site": ""},
            r"160 of 160|Unknown column 'site'; did you mean|the manifest has no column 'site'",
        ),
        ("flwr:Dirichlet", 3, None, "Unknown partitioner of flwr-datasets 'Dirichlet'; did you mean"),
        ("flwr:VerticalSizePartitioner", 3, None, "Unknown partitioner of flwr-datasets 'VerticalSize"),
        ("flwr:NaturalIdPartitioner", 3, None, r"makes \d+ sites of these data, but 3 are asked for"),
        ("flwr:IdToSizeFncPartitioner", 3, None, "IdToSizeFncPartitioner needs partition_id_to_size_fn"),
    ],
)
def test_impossible_partitions(scheme: str, sites: int, change: dict[str, str] | None, sentence: str) -> None:
    rows = to_divide(set_rows(0))
    if change is not None:
        rows = [replace(row, others={**row.others, **change}) for row in rows]
    with pytest.raises(MtfedError, match=sentence):
        partition(rows, CONFIG.tasks, sites, Options(scheme))


def test_a_task_without_enough_patients_in_any_group() -> None:
    rows = [Row(f"{i}.png", f"p{i}", "train", {"grade": "no"}, 0, {"site": "ab"[i % 2]}) for i in range(20)]
    for i, place in enumerate("ab"):
        rows.append(Row(f"m{i}.png", f"m{i}", "train", {"mask": "m.png", "stage": "0"}, 0, {"site": place}))
    with pytest.raises(
        MtfedError, match=r"No site can hold task 'mask': .* leaves its 2 patients at sites with 1 at most"
    ):
        partition(rows, CONFIG.tasks, 2, Options("column"))
    with pytest.raises(MtfedError, match=r"not enough patients|can serve mask to at most 1 sites"):
        partition(rows, CONFIG.tasks, 2, Options("iid"))
    alone = [Row("x.png", "x", "train", {"grade": "no"}, 0, {"site": "c"}), *rows[:20]]
    with pytest.raises(MtfedError, match="makes 1 site of 'c', where no task has more than 1 to train it on"):
        partition(alone, read_config(SMALL | GRADE).tasks, 3, Options("column"))
    half = [replace(row, others={}) if row.patient == "p3" else row for row in rows[:20]]
    with pytest.raises(MtfedError, match=r"1 of 20 patients have nothing in column 'site', for example 'p3'"):
        partition(half, read_config(SMALL | GRADE).tasks, 2, Options("column"))


@pytest.mark.parametrize(
    ("scheme", "names"),
    [
        ("dirichlet+tasks", ("tasks", "dirichlet")),
        (" iid ", ("iid",)),
        ("tasks + flwr:IidPartitioner", ("flwr:IidPartitioner", "tasks")),
    ],
)
def test_schemes_are_read(scheme: str, names: tuple[str, ...]) -> None:
    assert read_partition(scheme) == names
    config = read_config(KEYS | {"partition": scheme})
    assert read_config(flatten(config)) == config


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"partition": "dirichle"}, "Config key partition: unknown scheme 'dirichle'; did you mean 'dirichlet'"),
        ({"partition": ""}, "Config key partition: unknown scheme ''; expected one of: column"),
        ({"partition": "tasks +"}, "unknown scheme ''"),
        ({"partition": "tasks + tasks"}, "expected each scheme once"),
        ({"partition": "iid + dirichlet"}, "expected either 'iid' or 'dirichlet'"),
        ({"partition": "flwr:"}, "expected a partitioner.s name"),
        ({"partition": "flwr:os.system"}, "expected a partitioner.s name"),
        ({"partition": "flwr:IidPartitioner + iid"}, "expected nothing but 'tasks' next to"),
        ({"partition": "flwr:A + flwr:B"}, "expected nothing but 'tasks' next to"),
        ({"partition-options": "alpha=1"}, "Config key partition-options: expected partition = 'flwr:NAME' with it"),
        ({"partition-column": ""}, "Config key partition-column: "),
        ({"partition-alpha": 0}, "Config key partition-alpha: expected greater than 0"),
        ({"feature-shift": 1.5}, "Config key feature-shift: expected less than or equal to 1"),
    ],
)
def test_wrong_keys_are_refused(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MtfedError, match=sentence):
        read_config(KEYS | keys)


def test_every_scheme_is_described() -> None:
    text = describe_keys()
    for name in PARTITIONS:
        assert name in SCHEMES and f"\n{name} " in text
    assert (
        "\nflwr:NAME " in text
        and max(map(len, text.split("Partition schemes")[1].split("Strategies")[0].splitlines())) < 120
    )
