"""Every data set in its official form becomes a manifest that trains."""

from __future__ import annotations

import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.drawings import draw_noise
from helpers.layouts import LAYOUTS, opened, prepared, shards
from mtfed.data.sets import find_set
from mtfed.data.sets.dataset import DataSet, Sample
from mtfed.data.sets.prepare import prepare
from mtfed.errors import MtfedError
from mtfed.tasks.task import Task


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_official_form_trains(name: str, tmp_path: Path) -> None:
    config, data = prepared(name, tmp_path / name)
    shards(config, data)
    # The files written are read back correctly.
    site = tomllib.loads((tmp_path / name / "site.toml").read_text())
    assert site["key"] == name and site["task"].keys() == config.tasks.keys()
    dimensions = config.dimensions
    declared = {task: Task(name=task, dimensions=dimensions, **table) for task, table in site["task"].items()}
    assert declared == config.tasks
    assert config.data == str(tmp_path / name) and config.dimensions == find_set(name).dimensions
    assert not list((tmp_path / name).rglob("*.part"))


@pytest.mark.parametrize("name", ["ham10000", "openkbp", "drive", "msd-prostate", "msd-spleen"])
def test_a_set_is_prepared_outside_its_own_folder(name: str, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    LAYOUTS[name](source)
    before = sorted(source.rglob("*"))
    for _ in range(2):
        prepare(find_set(name), source, out=out)
        assert sorted(source.rglob("*")) == before
        shards(*opened(name, out))


def test_official_splits_are_kept(tmp_path: Path) -> None:
    for name in ("ham10000", "isic2017", "isic2018", "isic2018-diagnosis", "openkbp", "drive"):
        _, data = prepared(name, tmp_path / name)
        splits = {row.split for row in data.rows}
        assert splits == ({"train", "test"} if name in ("ham10000", "drive") else {"train", "val", "test"}), name


def test_lesions_count_as_patients(tmp_path: Path) -> None:
    for name in ("ham10000", "isic2018-diagnosis"):
        _, data = prepared(name, tmp_path / name)
        patients = [row.patient for row in data.rows if row.split == "train"]
        assert len(set(patients)) == len(patients) - 1, name


def test_unknown_values_are_no_labels(tmp_path: Path) -> None:
    _, data = prepared("ham10000", tmp_path / "ham")
    assert [row.labels.get("age") for row in data.rows] == ["80.0", "80.0", None, "40.0"]
    assert [row.others.get("site") for row in data.rows] == ["vidir_modern"] * 3 + [None]
    _, data = prepared("stoic", tmp_path / "stoic")
    assert [row.labels.get("severe") for row in data.rows] == [None, "no", "yes"]
    _, data = prepared("prostate-ct", tmp_path / "prostate")
    assert [sorted(row.labels) for row in data.rows] == [["dose", "structures"], ["structures"]]
    LAYOUTS["drive"](tmp_path / "drive")
    shutil.rmtree(tmp_path / "drive/test/1st_manual")  # as in newer releases
    _, data = prepared("drive", tmp_path / "drive", lambda folder: None)
    assert [row.patient for row in data.rows] == ["21"]


def test_prepared_twice_is_the_same(tmp_path: Path) -> None:
    for _ in range(2):
        prepared("busi", tmp_path, LAYOUTS["busi"] if not (tmp_path / "manifest.csv").exists() else lambda folder: None)
    first = (tmp_path / "manifest.csv").read_bytes()
    prepare(find_set("busi"), tmp_path)
    assert (tmp_path / "manifest.csv").read_bytes() == first


def test_a_patient_in_two_splits_is_refused(tmp_path: Path) -> None:
    draw_noise(tmp_path / "a.png")
    draw_noise(tmp_path / "b.png")
    items = [Sample("a.png", "1", {"lesion": "normal"}, "train"), Sample("b.png", "1", {}, "test")]
    dataset: DataSet = replace(find_set("busi"), required=(), read=lambda folder, labels: items)
    with pytest.raises(MtfedError, match="patient '1' is in train and in test"):
        prepare(dataset, tmp_path)
