"""Partitions: who holds what, by every scheme and on random federations; patients are never divided."""

from __future__ import annotations

import csv
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, SMALL, TASKS, mtfed

from mtfed.config import flatten, read_config
from mtfed.config.help import describe_keys
from mtfed.data.federation import default_sites, division, simulated_site
from mtfed.data.federation import test_data as server_test_data
from mtfed.data.manifest import Row, read_site
from mtfed.data.partition import MIN_PATIENTS, Division, Options, partition, stratum_of, tasks_in_turn
from mtfed.data.partition import default_sites as sites_of_set
from mtfed.data.partition.allocation import allocate_sites
from mtfed.data.partition.divide import site_names
from mtfed.data.partition.flwr_datasets import partition_with, read_options
from mtfed.data.partition.schemes import SCHEMES
from mtfed.data.partition.validation import hold_out
from mtfed.data.partition_names import PARTITIONS, read_partition
from mtfed.errors import MtfedError
from mtfed.federation.holdings import holdings, table
from mtfed.federation.holdings_chart import draw

GRADE = {"task.grade.kind": "classification", "task.grade.classes": "no, yes, maybe"}
MASK = {"task.mask.kind": "segmentation", "task.mask.classes": "background, blob"}
STAGE = {"task.stage.kind": "ordinal", "task.stage.classes": "low, high"}
KEYS: dict[str, Any] = SMALL | GRADE | MASK | STAGE
CONFIG = read_config(KEYS)
SAMPLE = read_config(TASKS | SMALL)
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
HOSPITALS = ("Ost", "West", "Süd", "Nord")


def set_rows(seed: int, patients: int = 160, splits: str = "ttttttvs") -> list[Row]:
    """Draw the rows of a set: patients with one to three images, each with labels of some tasks."""
    rng = random.Random(seed)
    rows: list[Row] = []
    for patient in range(patients):
        split = {"t": "train", "v": "val", "s": "test"}[rng.choice(splits)]
        others = {"site": rng.choices(HOSPITALS, (8, 4, 2, 2))[0], "modality": rng.choice(["CT", "MR"])}
        for image in range(rng.choice([1, 1, 2, 3])):
            name = f"{patient}-{image}"
            labels = {"grade": rng.choice(["no", "yes", "2"]), "mask": f"{name}m.png", "stage": rng.choice("01")}
            kept = {task: label for task, label in labels.items() if rng.random() < 0.6}
            rows.append(Row(f"{name}.png", f"p{patient}", split, kept, len(rows), others))
    return rows


def to_divide(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.split != "test"]


def site_of(found: Division) -> dict[str, int]:
    """Return where each patient is; fail if any is at two sites."""
    places: dict[str, set[int]] = defaultdict(set)
    for site, part in enumerate(found.parts):
        for row in part:
            places[row.patient].add(site)
    assert all(len(sites) == 1 for sites in places.values())
    return {patient: min(sites) for patient, sites in places.items()}


def write_set(folder: Path, rows: list[Row]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "patient", "split", *CONFIG.tasks, "site", "modality"])
        for row in rows:
            cells = [row.labels.get(task, "") for task in CONFIG.tasks]
            table.writerow([row.image, row.patient, row.split, *cells, row.others["site"], row.others["modality"]])
    return folder


@pytest.mark.parametrize("scheme", SUMS)
def test_any_federation(scheme: str) -> None:
    divided = 0
    for seed in range(8):
        rng = random.Random(seed)
        rows, sites = set_rows(seed, rng.choice([40, 160, 300])), rng.choice([2, 4, 5, 8])
        sites = 10 if "column + modality" in scheme else sites  # it makes eight groups
        options = Options(scheme, rng.choice([0.1, 1.0, 100.0]), seed=seed)
        try:
            found = partition(to_divide(rows), CONFIG.tasks, sites, options)
        except MtfedError as error:
            assert any(word in str(error) for word in SHORT)
            continue
        divided += 1
        check_division(rows, found, sites, scheme)
        assert found == partition(to_divide(rows), CONFIG.tasks, sites, options)
        rng.shuffle(rows)
        assert site_of(found) == site_of(partition(to_divide(rows), CONFIG.tasks, sites, options))
    assert divided >= 2


def check_division(rows: list[Row], found: Division, sites: int, scheme: str) -> None:
    assert len(found.parts) == len(found.names) == len(set(found.names)) == sites
    places = site_of(found)
    labelled = {row.patient for row in rows if row.labels and row.split != "test"}
    assert places.keys() | set(found.left_out) == labelled and not places.keys() & set(found.left_out)
    if not any(word in scheme for word in ("column", "modality", "flwr")):
        assert not found.left_out
    whole = {row.image: row for row in rows}
    for site, part in enumerate(found.parts):
        held = {task for row in part for task in row.labels}
        assert held and [row.patient for row in part if row.split == "test"] == []
        for row in part:
            kept = {task: label for task, label in whole[row.image].labels.items() if task in held}
            assert row == replace(whole[row.image], labels=kept)
        here = {patient for patient, place in places.items() if place == site}
        images = {row.image for row in rows if row.patient in here and row.labels.keys() & held}
        assert {row.image for row in part} == images  # all images of its patients that it has labels for
        for task in held:
            assert len({row.patient for row in part if task in row.labels and row.split == "train"}) >= MIN_PATIENTS
    for key in [key for key in ("column", "modality") if key in scheme]:
        cells = [Counter(row.others[key.replace("column", "site")] for row in part) for part in found.parts]
        assert (scheme.startswith("column") and sites < len(HOSPITALS)) or all(len(one) == 1 for one in cells)


def reference(rows: list[Row], sites: int, alpha: float, seed: int) -> list[list[Row]]:
    """Deal the sample as the first release did, whose results are published; no site of it was below the minimum."""
    tasks, holds = SAMPLE.tasks, tasks_in_turn(list(SAMPLE.tasks), sites)
    patients: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        patients[row.patient].append(row)
    kinds: dict[Any, list[str]] = defaultdict(list)
    for patient in sorted(patients):
        kinds[stratum_of(patients[patient], tasks)].append(patient)
    rng = np.random.default_rng([seed, sites])
    dealt: list[list[str]] = [[] for _ in range(sites)]
    for kind in sorted(kinds):
        candidates = [site for site in range(sites) if any(task in holds[site] for task, _ in kind)]
        order = rng.permutation(len(kinds[kind]))
        ends = np.round(np.cumsum(rng.dirichlet([alpha] * len(candidates))) * len(order)).astype(int)
        for site, start, end in zip(candidates, [0, *ends[:-1]], ends, strict=True):
            dealt[site].extend(kinds[kind][i] for i in order[start:end])
    for task in tasks:
        labelled = {p for p, images in patients.items() if any(task in row.labels for row in images)}
        parts = [dealt[site] for site in range(sites) if task in holds[site]]
        for part in parts:
            while sum(patient in labelled for patient in part) < MIN_PATIENTS:
                richest = max(parts, key=lambda other: sum(patient in labelled for patient in other))
                moved = next(patient for patient in reversed(richest) if patient in labelled)
                richest.remove(moved)
                part.append(moved)
    return [[row for patient in part for row in patients[patient]] for part in dealt]


@pytest.mark.parametrize(("sites", "alpha", "seed"), [(1, 1, 0), (3, 1, 0), (8, 1, 0), (8, 0.1, 5), (25, 0.3, 2)])
def test_the_sample_is_divided_as_ever(sites: int, alpha: float, seed: int) -> None:
    config = SAMPLE.model_copy(update={"partition_alpha": alpha, "partition_seed": seed})
    found = division(config, sites)
    assert found is not None and not found.left_out
    pool = simulated_site(config, 0, sites).pool
    assert list(map(list, found.parts)) == reference([r for r in pool if r.split == "train"], sites, alpha, seed)
    assert found.names == tuple(f"hospital-{i + 1:0{len(str(sites))}d}" for i in range(sites))


def test_a_patient_with_labels_of_two_tasks_stays_together() -> None:
    rows = [Row(f"{i}.png", f"p{i}", "train", {"pneumonia": str(i % 2), "lungs": "m.png"}) for i in range(60)]
    assert len(site_of(partition(rows, SAMPLE.tasks, 3, Options()))) == 60


@pytest.mark.parametrize(("sites", "both"), [(1, 1), (2, 0), (3, 1), (8, 2), (16, 5)])
def test_who_holds_what(sites: int, both: int) -> None:
    held = tasks_in_turn(["a", "b"], sites)
    assert sum(tasks == ("a", "b") for tasks in held) == both
    assert {task for tasks in held for task in tasks} == {"a", "b"}


def graded(count: int = 1200) -> list[Row]:
    """Return one image a patient, of three classes."""
    return [Row(f"{i}.png", f"p{i:04d}", "train", {"grade": ("no", "yes", "maybe")[i % 3]}) for i in range(count)]


def test_what_the_schemes_do() -> None:
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


def test_patients_of_whom_each_is_a_kind_of_its_own_go_everywhere() -> None:
    tasks = read_config({f"task.t{i}.{k}": v for i in range(8) for k, v in MASK_KEYS.items()}).tasks
    rows = [
        Row(f"{number}.png", f"p{number}", "train", {f"t{bit}": "m.png" for bit in range(8) if number >> bit & 1})
        for number in range(1, 256)
    ]
    sizes = [len(part) for part in partition(rows, tasks, 8, Options("dirichlet", 1.0)).parts]
    assert sum(sizes) == 255 and min(sizes) > 12 and max(sizes) < 60


MASK_KEYS = {"kind": "segmentation", "classes": "background, blob"}


def test_sites_are_called_by_what_they_hold() -> None:
    rows = to_divide(set_rows(0))
    assert partition(rows, CONFIG.tasks, 4, Options("column")).names == ("nord", "ost", "sud", "west")
    assert partition(rows, CONFIG.tasks, 3, Options("column")).names == ("ost", "west", "other")
    assert partition(rows, CONFIG.tasks, 6, Options("column")).names == (
        "nord", "ost-1", "ost-2", "ost-3", "sud", "west",
    )  # fmt: skip
    assert partition(rows, CONFIG.tasks, 3, Options("modality")).names in (
        ("ct-1", "ct-2", "mr"),
        ("ct", "mr-1", "mr-2"),
    )
    assert partition(rows, CONFIG.tasks, 2, Options("iid")).names == ("hospital-1", "hospital-2")
    assert site_names([("北京",), ("北京",), ("A/../b",), ("a b",), ("x" * 40 + " y",)])[:2] == ["site-1", "site-2"]
    for seats in ([("a",), ("a",), ("a-1",)], [("Ä",), ("a",)], [("a b c " * 9,)] * 12):
        names = site_names(seats)
        assert len(set(names)) == len(names) and all(name.isascii() and "/" not in name for name in names)


def test_large_groups_get_more_sites() -> None:
    assert Counter(allocate_sites({("a",): 60, ("b",): 30, ("c",): 1}, 7)) == {("a",): 4, ("b",): 2, ("c",): 1}


def test_the_number_of_sites() -> None:
    rows = to_divide(set_rows(0))
    for scheme, sites in (("column", 4), ("column + tasks", 4), ("modality", 8), ("iid", 8), ("column + modality", 8)):
        assert sites_of_set(rows, CONFIG.tasks, Options(scheme)) == sites
    tiny = [Row(f"{n}.png", f"t{n}", "train", {"grade": "no"}, 0, {"site": f"tiny {n}"}) for n in range(3)]
    assert sites_of_set(rows + tiny, CONFIG.tasks, Options("column")) == 5  # the three share a site
    assert partition(rows + tiny, CONFIG.tasks, 5, Options("column")).names[-1] == "other"
    assert sites_of_set(rows + tiny[:1], CONFIG.tasks, Options("column")) == 4  # the one goes to the smallest
    held = [Row(f"{n}.png", f"h{n}", "train" if n else "val", {"grade": "no"}, 0, {"site": "held"}) for n in range(4)]
    lone = [Row("l.png", "l", "train", {"grade": "no"}, 0, {"site": "Ost", "modality": "lone"})]
    for more, scheme in ((held[:2], "column"), (held, "column"), (lone, "column + modality")):
        sites = sites_of_set(rows + more, CONFIG.tasks, Options(scheme))
        assert len(partition(rows + more, CONFIG.tasks, sites, Options(scheme)).names) == sites


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
def test_what_cannot_be_divided(scheme: str, sites: int, change: dict[str, str] | None, sentence: str) -> None:
    rows = to_divide(set_rows(0))
    if change is not None:
        rows = [replace(row, others={**row.others, **change}) for row in rows]
    with pytest.raises(MtfedError, match=sentence):
        partition(rows, CONFIG.tasks, sites, Options(scheme))


def test_a_task_that_no_group_can_serve() -> None:
    rows = [Row(f"{i}.png", f"p{i}", "train", {"grade": "no"}, 0, {"site": "ab"[i % 2]}) for i in range(20)]
    for i, place in enumerate("ab"):
        rows.append(Row(f"m{i}.png", f"m{i}", "train", {"mask": "m.png", "stage": "0"}, 0, {"site": place}))
    with pytest.raises(
        MtfedError, match=r"No site can hold task 'mask': .* leaves its 2 patients at sites with 1 at most"
    ):
        partition(rows, CONFIG.tasks, 2, Options("column"))
    with pytest.raises(MtfedError, match=r"patients do not suffice|can serve mask to at most 1 sites"):
        partition(rows, CONFIG.tasks, 2, Options("iid"))
    alone = [Row("x.png", "x", "train", {"grade": "no"}, 0, {"site": "c"}), *rows[:20]]
    with pytest.raises(MtfedError, match="makes 1 site of 'c', where no task has more than 1 to train it on"):
        partition(alone, read_config(SMALL | GRADE).tasks, 3, Options("column"))
    half = [replace(row, others={}) if row.patient == "p3" else row for row in rows[:20]]
    with pytest.raises(MtfedError, match=r"1 of 20 patients have nothing in column 'site', 'p3' is one"):
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
        ({"partition": "flwr:"}, "expected the name of a partitioner"),
        ({"partition": "flwr:os.system"}, "expected the name of a partitioner"),
        ({"partition": "flwr:IidPartitioner + iid"}, "expected nothing but 'tasks' beside"),
        ({"partition": "flwr:A + flwr:B"}, "expected nothing but 'tasks' beside"),
        ({"partition-options": "alpha=1"}, "Config key partition-options: expected partition = 'flwr:NAME' with it"),
        ({"partition-column": ""}, "Config key partition-column: "),
        ({"partition-alpha": 0}, "Config key partition-alpha: expected greater than 0"),
        ({"feature-shift": 1.5}, "Config key feature-shift: expected less than or equal to 1"),
    ],
)
def test_wrong_keys(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MtfedError, match=sentence):
        read_config(KEYS | keys)


def test_every_scheme_is_told() -> None:
    told = describe_keys()
    for name in PARTITIONS:
        assert name in SCHEMES and f"\n{name} " in told
    assert (
        "\nflwr:NAME " in told
        and max(map(len, told.split("Partition schemes")[1].split("Strategies")[0].splitlines())) < 120
    )


# Flower's partitioners


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
def test_flowers_partitioners(name: str, options: str) -> None:
    rows, tasks = graded(150), read_config(SMALL | GRADE).tasks
    found = partition(rows, tasks, 3, Options(f"flwr:{name}", flower=options))
    check_division(rows, found, 3, "flwr")
    rows.reverse()
    again = partition(rows, tasks, 3, Options(f"flwr:{name}", flower=options))
    assert site_of(again) == site_of(found)


def test_a_partitioner_of_your_own() -> None:
    from flwr_datasets.partitioner import GroupedNaturalIdPartitioner, NaturalIdPartitioner, SizePartitioner

    rows = set_rows(2)
    found = partition_with(NaturalIdPartitioner(partition_by="site"), to_divide(rows), CONFIG.tasks)
    named = Options("flwr:NaturalIdPartitioner", flower="partition_by=site")
    assert len(found.parts) == 4 == sites_of_set(to_divide(rows), CONFIG.tasks, named)
    assert all(len({row.others["site"] for row in part}) == 1 for part in found.parts)
    check_division(rows, found, 4, "flwr")
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
        ("DirichletPartitioner", "beta=1", "takes partition_by, alpha, .* there is no 'beta' for it"),
        ("DirichletPartitioner", "num_partitions=2", "there is no 'num_partitions' for it"),
        ("DirichletPartitioner", "alpha=none", "refuses them"),
        ("DirichletPartitioner", "partition_by=colour", "cannot divide"),
    ],
)
def test_wrong_options(name: str, text: str, sentence: str) -> None:
    with pytest.raises(MtfedError, match=sentence):
        partition(to_divide(set_rows(1)), CONFIG.tasks, 3, Options(f"flwr:{name}", flower=text))


# Through the config


@pytest.mark.parametrize("scheme", ["tasks + dirichlet", "column", "modality + quantity"])
def test_a_set_is_divided_and_its_test_rows_are_the_servers(tmp_path: Path, scheme: str) -> None:
    rows = set_rows(3)
    folder = write_set(tmp_path / "set", rows)
    config = read_config(KEYS | {"data": str(folder), "partition": scheme})
    sites = default_sites(config)
    parts = [simulated_site(config, i, sites) for i in range(sites)]
    test = server_test_data(config)
    assert test is not None and {row.image for row in test.rows} == {row.image for row in rows if row.split == "test"}
    seen = Counter(patient for part in parts for patient in {row.patient for row in part.rows})
    assert set(seen.values()) == {1} and not seen.keys() & {row.patient for row in test.rows}
    assert {row.split for part in parts for row in part.rows} == {"train", "val"}
    own = {row.patient for row in rows if row.split == "val"} & seen.keys()
    assert own <= {row.patient for part in parts for row in part.part("val").rows}
    for part in parts:
        train, held = ({row.patient for row in part.part(split).rows} for split in ("train", "val"))
        assert train and not train & held
        assert all(part.pool[row.number].image == row.image for row in part.rows)
    again = config.model_copy(update={"seed": 9, "model": "ctan"})
    assert parts == [simulated_site(again, i, sites) for i in range(sites)]
    pool = simulated_site(config.model_copy(update={"pooled": True}), 0, 1)
    assert sorted(row.image for row in pool.rows) == sorted(row.image for part in parts for row in part.rows)
    other = config.model_copy(update={"partition_seed": 1})
    if scheme != "column":
        assert [p.rows for p in parts] != [simulated_site(other, i, sites).rows for i in range(sites)]


def test_who_is_held_out_hardly_changes_with_others() -> None:
    def held(count: int) -> set[str]:
        rows = [Row(f"{i}.png", f"p{i}", "train", {"grade": "no"}, 0) for i in range(count)]
        return {row.patient for row in hold_out(rows, CONFIG.tasks, 0.2, "0/site") if row.split == "val"}

    assert len(held(1000)) == 200
    assert all(len(held(count) - held(count + 1)) <= 1 for count in (3, 50, 200, 1000))


@pytest.mark.parametrize("share", [0.2, 0.75, 0.99])
def test_a_task_that_can_be_trained_keeps_a_patient_to_train_on(share: float) -> None:
    rng = random.Random(3)
    for _ in range(30):
        rows = [
            Row(f"{i}.png", f"p{i}", "train", {task: label for task, label in labels.items() if rng.random() < 0.4}, 0)
            for i, labels in enumerate({"grade": rng.choice(["no", "yes"]), "mask": "m.png"} for _ in range(12))
        ]
        kept = hold_out(rows, CONFIG.tasks, share, "0/site")
        for task in ("grade", "mask"):
            assert any(task in row.labels for row in rows) == any(task in r.labels for r in kept if r.split == "train")


def test_sites_without_validation_hold_some_out(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", set_rows(4, splits="t"))
    config = read_config(KEYS | {"data": str(folder)})
    assert server_test_data(config) is None and default_sites(config) == 8
    assert all(simulated_site(config, i, 8).part("val").rows for i in range(8))


def test_real_hospitals() -> None:
    index = ROOT.parent / "shared/data/covid_cxr/index.csv"
    if not index.exists():
        pytest.skip("the set is not here")
    with open(index, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    rows = [
        Row(line["file"], line["patient"], line["split"], {"grade": "no"}, i, {"site": line["client"]})
        for i, line in enumerate(lines)
    ]
    tasks = read_config(SMALL | GRADE).tasks
    sites = sites_of_set(to_divide(rows), tasks, Options("column"))
    found = partition(to_divide(rows), tasks, sites, Options("column"))
    check_division(rows, found, sites, "")
    assert {"americas", "eastasia"} <= set(found.names) and not found.left_out


# Who holds what


def test_who_is_told_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = write_set(tmp_path / "set", set_rows(5))
    config = read_config(KEYS | {"data": str(folder), "partition": "column + tasks"})
    found, test = holdings(config, 4)
    lines = table(found, test, config.tasks).splitlines()
    assert lines[0].split("  ")[-1] == "stage (low/high)" and len(lines) == 1 + 4 + 2
    assert [line.split()[0] for line in lines[1:5]] == ["nord", "ost", "sud", "west"]
    for i, one in enumerate(found):
        data = simulated_site(config, i, 4)
        assert one.images == len(data.rows) and all(one.count(task) == data.count(task) for task in config.tasks)
        assert one.counts["grade"].keys() <= {"no", "yes", "maybe"}  # by name, as by index
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        draw(found, config.tasks, tmp_path / f"who{suffix}")
        assert (tmp_path / f"who{suffix}").read_bytes().startswith(start)
    assert "nord" in (tmp_path / "who.svg").read_text() and "maybe" in (tmp_path / "who.svg").read_text()


def test_the_command(tmp_path: Path) -> None:
    done = mtfed("data", "partition", "--num-supernodes", 3, "-c", "partition=tasks + quantity")
    assert done.returncode == 0 and "hospital-3" in done.stdout and "server's test" in done.stdout
    for arguments, sentence in (
        (("-c", "partition=task"), "unknown scheme 'task'; did you mean 'tasks'?"),
        (("--out", tmp_path / "who.gif"), "Expected --out to end with .png, .svg, .pdf"),
    ):
        done = mtfed("data", "partition", *arguments)
        assert done.returncode == 2 and sentence in done.stderr


PLACES: list[tuple[Callable[[Path], object], str]] = [
    (
        lambda path: None,
        r"expected 'sample' or a folder of site folders \(each with a manifest.csv or manifest.parquet",
    ),
    (lambda path: path.mkdir(), "or a folder or zip with one of its own, a set to divide; got "),
    (lambda path: path.write_text("no zip"), "expected 'sample'"),
]


@pytest.mark.parametrize(("make", "sentence"), PLACES)
def test_data_that_is_neither_set_nor_sites(tmp_path: Path, make: Callable[[Path], object], sentence: str) -> None:
    make(tmp_path / "data")
    with pytest.raises(MtfedError, match=sentence):
        default_sites(read_config(KEYS | {"data": str(tmp_path / "data")}))


def test_a_set_of_its_own_comes_before_folders_within(tmp_path: Path) -> None:
    write_set(tmp_path / "set" / "originals", set_rows(7))
    config = read_config(KEYS | {"data": str(tmp_path / "set"), "partition": "column"})
    assert division(config, 1) is None and default_sites(config) == 1
    write_set(tmp_path / "whole", set_rows(6))
    write_set(tmp_path / "whole" / "originals", set_rows(7))
    config = read_config(KEYS | {"data": str(tmp_path / "whole"), "partition": "column"})
    assert division(config, 4) is not None and default_sites(config) == 4
    assert len(read_site(tmp_path / "whole", "s", list(config.tasks)).rows) == len(set_rows(6))
