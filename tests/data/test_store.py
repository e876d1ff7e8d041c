"""Stores: what they contain, and how they are mapped."""

from __future__ import annotations

import os
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.cached_site import graded, opened, stores
from helpers.hospitals import TASKS, keys, write_site
from mtfed.config import read_config
from mtfed.data import decoding
from mtfed.data.manifest import SiteData, read_site
from mtfed.data.root import Root
from mtfed.data.stamps import Stamps
from mtfed.data.store import map_array

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("threads", [1, 5])
def test_a_cached_store_equals_decoding_into_memory(
    tmp_path: Path, dimensions: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtfed.data.decoding.usable_cores", lambda: threads)
    monkeypatch.setattr(decoding, "CHUNK", 1)
    folder = write_site(tmp_path / "s", list(TASKS), 9, dimensions)
    config = read_config({"image-size": 16, "dimensions": dimensions, **keys()})
    result = {}
    for where in ("", "off"):
        monkeypatch.setenv("MTFED_CACHE", where)
        for split in ("train", "val"):
            result[where, split] = opened(folder, config, split)
    assert len(stores(folder)) == 1
    for split in ("train", "val"):
        cached, fresh = result["", split], result["off", split]
        assert cached.images.equal(fresh.images) and len(cached) == len(fresh) > 1
        assert list(cached.labels) == list(fresh.labels) == list(config.tasks)
        for task, labels in fresh.labels.items():
            assert labels.rows.equal(cached.labels[task].rows)
            assert labels.values.dtype == cached.labels[task].values.dtype
            torch.testing.assert_close(cached.labels[task].values, labels.values, rtol=0, atol=0, equal_nan=True)
        order = torch.randperm(len(fresh))
        for first, second in zip(cached.batches(3, order), fresh.batches(3, order), strict=True):
            assert first.images.equal(second.images) and list(first.labels) == list(second.labels)


def test_boxes_are_padded_to_the_longest_of_a_shard(tmp_path: Path) -> None:
    graded(tmp_path, 4)
    many = ";".join(["1,1,3,3"] * 5)
    rows = "".join(f"{i}.png,{i},{split},{cell}\n" for i, (split, cell) in enumerate(
        [("train", '"2,2,4,4"'), ("val", f'"{many}"'), ("train", "none"), ("val", "none")]))  # fmt: skip
    (tmp_path / "manifest.csv").write_text("image,patient,split,blobs\n" + rows)
    config = read_config({"image-size": 16, **keys("blobs")})
    assert opened(tmp_path, config).labels["blobs"].values.shape == (2, 1, 5)
    assert opened(tmp_path, config, "val").labels["blobs"].values.shape == (2, 5, 5)
    rows = "".join(f"{i}.png,{i},{split},none\n" for i, split in enumerate(("train", "train", "val")))
    (tmp_path / "manifest.csv").write_text("image,patient,split,blobs\n" + rows)
    assert opened(tmp_path, config).labels["blobs"].values.shape == (2, 0, 5)


@pytest.mark.parametrize("damage", ["cut", "foreign", "pickle", "faults", "missing"])
def test_a_broken_store_is_made_again(tmp_path: Path, damage: str) -> None:
    folder = graded(tmp_path)
    before = opened(folder).images
    target = folder / ".mtfed-cache" / stores(folder)[0]
    images = target / "images.npy"
    if damage == "cut":
        images.write_bytes(images.read_bytes()[:-100])
    elif damage == "foreign":
        images.write_bytes(b"something else")
    elif damage == "pickle":
        np.save(images, np.array([{"a": 1}], object))
    elif damage == "faults":
        (target / "faults.json").write_text("[")
    else:
        images.unlink()
    assert opened(folder).images.equal(before) and stores(folder) == [target.name]


def test_maps_keep_no_file_open_and_are_private(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(24, dtype=np.int16).reshape(4, 6))
    opened_files = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    result = map_array(tmp_path / "a.npy")
    assert result[2].tolist() == list(range(12, 18))
    result[2] = 0
    assert np.load(tmp_path / "a.npy")[2, 0] == 12
    assert not opened_files or len(os.listdir("/proc/self/fd")) == opened_files


def test_exchanged_files_have_new_stamps(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (1, 1))
    before = Root(tmp_path).stamp("a")
    for name, new in (("a", "c"), ("b", "a"), ("c", "b")):
        (tmp_path / name).rename(tmp_path / new)
    assert Root(tmp_path).stamp("a") != before


def test_stamps_of_files_folders_and_slices(tmp_path: Path) -> None:
    for name in ("a.png", "b#c.png", "scan.npz", "series/1.dcm", "series/2.dcm"):
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_bytes(name.encode())
    with zipfile.ZipFile(tmp_path / "site.zip", "w") as file:
        for path in (tmp_path / "site").rglob("*.*"):
            file.write(path, str(path.relative_to(tmp_path / "site")))
    for root in (Root(tmp_path / "site"), Root(tmp_path / "site.zip")):
        stamps = Stamps(SiteData("s", root, ()))
        assert stamps["a.png"] == root.stamp("a.png") and stamps["b#c.png"] == root.stamp("b#c.png")
        assert stamps["scan.npz#12"] == (("scan.npz", *root.stamp("scan.npz")),)
        assert stamps["series"] == tuple((f"series/{i}.dcm", *root.stamp(f"series/{i}.dcm")) for i in (1, 2))
        assert stamps["none.png"] is stamps["../site/x"] is stamps[""] is None


def test_slices_of_a_volume_stay_together(tmp_path: Path) -> None:
    data = read_site(graded(tmp_path), "h", ["grade"])
    rows = [replace(data.rows[0], image=name) for name in ("a#0", "a#1", "a#2", "b", "c", "d")]
    assert [list(chunk) for chunk in decoding.chunk_rows(rows, 1)] == [[0, 1, 2], [3], [4], [5]]
    assert [list(chunk) for chunk in decoding.chunk_rows(rows, 4)] == [[0, 1, 2, 3], [4, 5]]
    assert list(decoding.chunk_rows([], 4)) == []
