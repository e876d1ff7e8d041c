"""Patients that are held out for validation."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from helpers.divided_sets import CONFIG, KEYS, SAMPLE, set_rows, write_set
from mtfed.config import read_config
from mtfed.data.manifest import Row
from mtfed.data.partition import hold_out
from mtfed.data.simulated_sites import default_sites, simulated_site
from mtfed.data.simulated_sites import test_data as server_test_data


def test_held_out_patients_hardly_change_with_new_patients() -> None:
    def held_out(count: int) -> set[str]:
        rows = [Row(f"{i}.png", f"p{i}", "train", {"grade": "no"}, 0) for i in range(count)]
        return {row.patient for row in hold_out(rows, CONFIG.tasks, 0.2, "0/site") if row.split == "val"}

    assert len(held_out(1000)) == 200
    assert all(len(held_out(count) - held_out(count + 1)) <= 1 for count in (3, 50, 200, 1000))


@pytest.mark.parametrize("share", [0.2, 0.75, 0.99])
def test_a_task_keeps_a_training_patient(share: float) -> None:
    rng = random.Random(3)
    for _ in range(30):
        rows = [
            Row(f"{i}.png", f"p{i}", "train", {task: label for task, label in labels.items() if rng.random() < 0.4}, 0)
            for i, labels in enumerate({"grade": rng.choice(["no", "yes"]), "mask": "m.png"} for _ in range(12))
        ]
        out = hold_out(rows, CONFIG.tasks, share, "0/site")
        for task in ("grade", "mask"):
            assert any(task in row.labels for row in rows) == any(task in r.labels for r in out if r.split == "train")


def test_sites_without_validation_hold_some_out(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", set_rows(4, splits="t"))
    config = read_config(KEYS | {"data": str(folder)})
    assert server_test_data(config) is None and default_sites(config) == 8
    assert all(simulated_site(config, i, 8).part("val").rows for i in range(8))


GRADED = {"kind": "classification", "classes": "no, yes"}


def test_hold_out_keeps_a_manifests_own_choice() -> None:
    rows = [Row("a.png", "1", "train", {"pneumonia": "0"}), Row("b.png", "2", "val", {"pneumonia": "0"})]
    assert hold_out(rows, SAMPLE.tasks, 0.5, "x") == tuple(rows)


def test_patients_alone_in_their_stratum_are_held_out_together() -> None:
    tasks = read_config({f"task.t{i}.{k}": v for i in range(6) for k, v in GRADED.items()}).tasks
    labels = [{f"t{bit}": "0" for bit in range(6) if number >> bit & 1} for number in range(1, 51)]
    rows = [Row(f"{i}.png", f"p{i}", "train", of_patient) for i, of_patient in enumerate(labels)]
    result = hold_out(rows, tasks, 0.2, "x")
    assert sum(row.split == "val" for row in result) == 10 and result == hold_out(rows[::-1], tasks, 0.2, "x")[::-1]
    extra = [Row(f"m{i}.png", f"m{i}", "train", labels[0]) for i in range(9)]  # one stratum of 10, 49 of 1
    split = {row.patient: row.split for row in hold_out(rows + extra, tasks, 0.2, "x")}
    assert sum(split[patient] == "val" for patient in ("p0", *(row.patient for row in extra))) == 2
    assert list(split.values()).count("val") == 2 + 10
