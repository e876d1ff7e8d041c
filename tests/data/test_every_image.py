"""Images without labels: every image has a label for the tasks that need none, and partitions ignore these tasks."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.pretext import KEYS, PRETEXT
from mtfed.config import Config, read_config
from mtfed.data import cache, simulated_sites
from mtfed.data.every_image import EVERY_IMAGE
from mtfed.data.fingerprint import settings_digest
from mtfed.data.loading import load_shard
from mtfed.data.manifest import read_site, write_site
from mtfed.data.simulated_sites import division, simulated_site, site_folder
from mtfed.errors import MtfedError
from mtfed.federation.holdings import holdings, table

LABELLED = {
    "task.side.kind": "classification", "task.side.classes": "left, right", "task.lung.kind": "classification",
    "task.lung.classes": "normal, other",
}  # fmt: skip
SMALL = {"image-size": 16, "encoder": "vit_nano_patch8"}


def write_set(folder: Path, labelled: int = 40, unlabelled: int = 24, test: int = 3, column: bool = False) -> Path:
    """Write a set in which some patients have a label of one of two tasks, others none."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    with open(folder / "manifest.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "patient", "split", "side", "lung", "site"])
        for i in range(labelled + unlabelled + test):
            Image.fromarray(generator.integers(0, 255, (16, 16), dtype=np.uint8)).save(folder / f"{i}.png")
            side = ("left", "right")[i // 2 % 2] if i < labelled and i % 2 else ""
            lung = ("normal", "other")[i // 4 % 2] if i < labelled and not i % 2 else ""
            site = ("north", "south")[i % 4 // 2] if i < labelled else "east"
            split = "test" if i >= labelled + unlabelled else ""
            table.writerow([f"{i}.png", f"p{i}", split, side, lung, site if column else ""])
    return folder


def config(data: Path, pretext: bool = True, labelled: bool = True, **keys: Any) -> Config:
    tasks = (KEYS if pretext else {}) | (LABELLED if labelled else {})
    return read_config(tasks | SMALL | {"data": str(data)} | {key.replace("_", "-"): v for key, v in keys.items()})


def labels_of(settings: Config, sites: int = 4) -> list[dict[str, dict[str, str]]]:
    """Return by site and patient the labels of the manifest."""
    data = [simulated_site(settings, index, sites) for index in range(sites)]
    return [{r.patient: own for r in d.rows if (own := _own(r.labels))} for d in data]


def _own(labels: dict[str, str]) -> dict[str, str]:
    return {task: cell for task, cell in labels.items() if cell != EVERY_IMAGE}


PARTITIONS = ["tasks + dirichlet", "dirichlet + quantity", "tasks", "iid", "flwr:IidPartitioner"]


@pytest.mark.parametrize("partition", PARTITIONS)
def test_labels_are_divided_as_without_pretext_tasks(tmp_path: Path, partition: str) -> None:
    folder = write_set(tmp_path / "set")
    if partition.startswith("flwr"):
        pytest.importorskip("flwr_datasets")
    with_pretext, without = (config(folder, pretext=p, partition=partition) for p in (True, False))
    assert labels_of(with_pretext) == labels_of(without)
    data = [simulated_site(with_pretext, index, 4) for index in range(4)]
    assert sorted(row.patient for d in data for row in d.rows) == sorted(f"p{i}" for i in range(64))
    assert all(row.labels.keys() >= set(PRETEXT) for d in data for row in d.rows)
    divided = division(with_pretext, 4)
    assert divided is not None and not divided.left_out


def test_a_group_without_labels_is_a_site(tmp_path: Path) -> None:
    settings = config(write_set(tmp_path / "set", column=True), partition="column")
    data = {d.key: d for d in (simulated_site(settings, index, 3) for index in range(3))}
    assert data.keys() == {"north", "south", "east"}
    assert len(data["east"].rows) == 24 and not any(_own(row.labels) for row in data["east"].rows)


@pytest.mark.parametrize("partition", PARTITIONS)
def test_a_set_without_labelled_tasks_is_divided(tmp_path: Path, partition: str) -> None:
    if partition.startswith("flwr"):
        pytest.importorskip("flwr_datasets")
    folder = write_set(tmp_path / "set")
    settings = config(folder, labelled=False, partition=partition, partition_alpha=0.1)
    data = [simulated_site(settings, index, 5) for index in range(5)]
    assert sorted(row.patient for d in data for row in d.rows) == sorted(f"p{i}" for i in range(64))
    assert all(d.part("train").rows and d.part("val").rows for d in data)
    with pytest.raises(MtfedError, match="not enough patients"):
        simulated_site(config(folder, labelled=False, partition="iid"), 0, 40)


def test_every_image_is_decoded_and_old_stores_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    folder = write_set(tmp_path / "site")
    with_pretext, without = config(folder), config(folder, pretext=False)
    assert settings_digest(with_pretext) == settings_digest(without)
    shard = load_shard(site_folder(folder, "site", without), without, "train")
    stores = set((folder / cache.FOLDER).glob("*-*"))
    whole = load_shard(site_folder(folder, "site", with_pretext), with_pretext, "train")
    assert len(shard) == 32 and len(whole) > 48  # with a fifth held out
    assert all(whole.count(kind) == len(whole) for kind in PRETEXT)
    assert stores < set((folder / cache.FOLDER).glob("*-*"))
    for batch in whole.batches(7):
        assert all(batch.labels[kind].rows.tolist() == list(range(len(batch.images))) for kind in PRETEXT)


def test_without_a_cache_every_image_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, "off")
    settings = config(write_set(tmp_path / "site"))
    whole = load_shard(site_folder(tmp_path / "site", "site", settings), settings, "train")
    assert all(whole.count(kind) == len(whole) for kind in PRETEXT) and whole.count("side") == 16


def test_the_test_images_have_labels_for_pretext_tasks(tmp_path: Path) -> None:
    test = simulated_sites.test_data(config(write_set(tmp_path / "set")))
    assert test is not None and [set(row.labels) for row in test.rows] == [set(PRETEXT)] * 3


def test_an_exported_manifest_has_no_column_for_them(tmp_path: Path) -> None:
    settings = config(write_set(tmp_path / "set"))
    write_site(simulated_site(settings, 3, 4), tmp_path / "out", settings.tasks)
    columns = (tmp_path / "out" / "manifest.csv").read_text().splitlines()[0].split(",")
    assert not set(columns) & set(PRETEXT)
    assert read_site(tmp_path / "out", "out", ["side"]).rows


def test_the_table_of_holdings_shows_the_tasks_with_labels(tmp_path: Path) -> None:
    settings = config(write_set(tmp_path / "set"))
    of_sites, test = holdings(settings, 4)
    assert sum(site.images for site in of_sites) == 64
    text = table(of_sites, test, settings.labelled_tasks)
    assert "side" in text and "views" not in text


# Few labels


def test_a_share_of_the_patients_keeps_its_labels(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", labelled=80)
    whole = config(folder, partition="iid")
    kept_before: set[str] = set()
    for share in (0.01, 0.3, 0.6):
        settings = config(folder, partition="iid", label_share=share)
        kept: set[str] = set()
        for index in range(2):
            before, after = simulated_site(whole, index, 2), simulated_site(settings, index, 2)
            assert [row.image for row in before.rows] == [row.image for row in after.rows]
            strata: dict[tuple, list[bool]] = {}
            for old, new in zip(before.rows, after.rows, strict=True):
                if old.split == "val" or not _own(old.labels):
                    assert new == old
                    continue
                assert _own(new.labels) in ({}, _own(old.labels))
                strata.setdefault(tuple(_own(old.labels).items()), []).append(bool(_own(new.labels)))
                if _own(new.labels):
                    kept.add(new.patient)
            for flags in strata.values():
                assert sum(flags) == max(round(share * len(flags)), 1)
        assert kept_before <= kept
        kept_before = kept


def test_labels_of_some_sites_are_withheld(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", labelled=80)
    before: set[int] = set()
    for share, count in ((0.2, 1), (0.4, 2), (0.99, 3)):
        held = labels_of(config(folder, partition="tasks", unlabelled=share), 5)
        empty = {index for index, labels in enumerate(held) if not labels}
        assert len(empty) >= count and before <= empty
        assert {task for labels in held for own in labels.values() for task in own} == {"side", "lung"}
        before = empty
    without = config(folder, pretext=False, partition="tasks", unlabelled=0.4)
    assert sum(not labels for labels in labels_of(without, 5)) == 2


def test_labels_are_withheld_in_folders_and_pools_of_them(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_set(tmp_path / name)
    settings = config(tmp_path, unlabelled=0.4, label_share=0.5)
    counts = [simulated_site(settings, index, 3).count("side") for index in range(3)]
    assert sum(count == 0 for count in counts) == 1 and max(counts) < 20
    pooled = simulated_site(config(tmp_path, unlabelled=0.4, label_share=0.5, pooled=True), 0, 1)
    assert pooled.count("side") == sum(counts) and pooled.count("views") == len(pooled.rows)
    load_shard(pooled, config(tmp_path, unlabelled=0.4, label_share=0.5, pooled=True), "train")


def test_images_and_volumes_have_tasks_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    lines = ["image,patient,split,side,heart,dimensions"]
    for i, cells in enumerate(["left,,", "right,,", ",,2", ",,", ",a,", ",b,", ",,3"]):
        name = f"{i}.npy" if i > 3 else f"{i}.png"
        if i > 3:
            np.save(folder / name, np.random.default_rng(i).integers(0, 255, (16, 16, 16), dtype=np.uint8))
        else:
            Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16), dtype=np.uint8)).save(folder / name)
        lines.append(f"{name},p{i},train,{cells}")
    Image.new("L", (16, 16)).save(folder / "v.png")
    lines.append("v.png,p9,val,left,,")
    (folder / "manifest.csv").write_text("\n".join(lines))
    keys = {"task.heart.kind": "classification", "task.heart.classes": "a, b", "task.heart.dimensions": 3}
    keys |= {"task.views-3d.kind": "views", "task.views-3d.dimensions": 3, "task.views.kind": "views"}
    settings = read_config(LABELLED | keys | {"image-size": 16, "volume-size": 8, "model": "medformer"})
    data = site_folder(folder, "site", settings)
    assert [set(row.labels) for row in data.part("train").rows] == [
        *[{"side", "views"}] * 2, {"views"}, {"views"}, *[{"heart", "views-3d"}] * 2, {"views-3d"},
    ]  # fmt: skip
    shard = load_shard(data, settings, "train")
    assert {task: shard.count(task) for task in settings.tasks if shard.count(task)} == {
        "side": 2, "views": 4, "heart": 2, "views-3d": 3,
    }  # fmt: skip
    shapes = [(tuple(batch.images.shape[1:]), set(batch.labels)) for batch in shard.batches(2)]
    assert all(("views-3d" in tasks) == (len(shape) == 4) for shape, tasks in shapes)
    assert {shape for shape, _ in shapes} == {(1, 16, 16), (1, 8, 8, 8)}
