"""The cache: what invalidates a store, where it is, and what happens if it cannot be written."""

from __future__ import annotations

import errno
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers.cached_site import GRADED, counting, graded, opened, rewrite, stores
from helpers.hospitals import TASKS, keys, write_site
from mtfed.config import read_config
from mtfed.data import cache, decoding, fingerprint
from mtfed.data.cache import cache_folder, open_store
from mtfed.data.root import Root
from mtfed.data.simulated_sites import site_folder

pytestmark = pytest.mark.usefixtures("own_cache")

CHANGES: dict[str, tuple[Callable[[Path], object], dict[str, object], bool]] = {
    "nothing": (lambda folder: None, {}, False),
    "an image": (lambda folder: os.utime(folder / "1.png", (1, 1)), {}, True),
    "a mask": (lambda folder: os.utime(folder / "0.npz", (1, 1)), {}, True),
    "a file that nobody names": (lambda folder: (folder / "notes.txt").write_text("x"), {}, False),
    "a cell": (lambda f: rewrite(f, lambda line: line.replace(",train,1,", ",train,0,")), {}, True),
    "a row": (lambda f: rewrite(f, lambda line: "" if line.startswith("1.png") else line), {}, True),
    "patients": (lambda f: rewrite(f, lambda line: line.replace(",p", ",q")), {}, False),
    "splits": (lambda f: rewrite(f, lambda line: line.replace("val", "test")), {}, False),
    "image-size": (lambda f: None, {"image-size": 8}, True),
    "channels": (lambda f: None, {"channels": 3}, True),
    "window": (lambda f: None, {"window": "40, 400"}, True),
    "classes": (lambda f: None, {"task.grade.classes": "none, some"}, True),
    "metrics, loss, normalise": (
        lambda f: None,
        {"task.grade.metrics": "accuracy", "task.grade.loss": "focal", "normalise": "site"},
        False,
    ),
    "our own code": (lambda f: fingerprint.settings_digest.cache_clear(), {}, True),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_invalidates_a_store(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, settings, invalidates = CHANGES[what]
    folder = write_site(tmp_path / "s", ["grade", "outline"], 6)
    os.utime(folder / "0.npz", (2, 2))
    basic = {"image-size": 16, **keys("grade", "outline")}
    opened(folder, read_config(basic))
    (before,) = stores(folder)
    if what == "our own code":
        monkeypatch.setattr(fingerprint, "image_code", lambda: [b"another"])
    change(folder)
    seen = counting(monkeypatch)
    opened(folder, read_config(basic | settings))
    fingerprint.settings_digest.cache_clear()
    assert bool(seen) == (invalidates and what != "a row")  # the other rows are copied
    assert (before not in stores(folder)) == (invalidates and not settings and what != "our own code")
    assert len(stores(folder)) == (2 if (settings and invalidates) or what == "our own code" else 1)


def test_only_what_changed_is_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_site(tmp_path / "s", list(TASKS), 8)
    config = read_config({"image-size": 16, **keys()})
    opened(folder, config)
    (folder / "3.png").write_bytes((folder / "1.png").read_bytes())
    rewrite(folder, lambda line: "" if line.startswith("0.npz") else line)
    seen = counting(monkeypatch)
    cached = {split: opened(folder, config, split) for split in ("train", "val")}
    assert seen == ["3.png"] and len(stores(folder)) == 1
    monkeypatch.setenv("MTFED_CACHE", "off")
    for split, shard in cached.items():
        fresh = opened(folder, config, split)
        assert shard.images.equal(fresh.images)
        for task, labels in fresh.labels.items():
            torch.testing.assert_close(shard.labels[task].values, labels.values, rtol=0, atol=0, equal_nan=True)


def test_old_stores_are_removed(tmp_path: Path) -> None:
    folder = graded(tmp_path)
    for size in (8, 12):
        opened(folder, read_config({"image-size": size, **keys("grade")}))
    old, cached = stores(folder)
    os.utime(folder / ".mtfed-cache" / old, (1, 1))
    opened(folder)
    assert old not in stores(folder) and cached in stores(folder) and len(stores(folder)) == 2


def test_the_folder_of_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = graded(tmp_path / "site")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_folder(Root(folder)) == folder / ".mtfed-cache"
    opened(folder)
    assert not (tmp_path / "user").exists()  # pixels stay at the site
    for path in (folder / ".mtfed-cache", folder / ".mtfed-cache" / stores(folder)[0]):
        assert path.stat().st_mode & 0o777 == 0o700
    archive = tmp_path / "site.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.glob("*.*"):
            if path.is_file():
                file.write(path, path.name)
    path = cache_folder(Root(archive))
    assert path is not None and path.parent == tmp_path / "user" / "mtfed" and path.name.startswith("site.zip-")
    assert opened(archive).images.equal(opened(folder).images) and len(list(path.glob("*-*"))) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = cache_folder(Root(archive))
    assert path is not None and path.parent == tmp_path / "home" / ".cache" / "mtfed"
    monkeypatch.setenv("MTFED_CACHE", str(tmp_path / "all"))
    folders = {cache_folder(Root(folder)), cache_folder(Root(archive)), cache_folder(Root(tmp_path / "other" / "site"))}
    assert len(folders) == 3 and all(path and path.parent == tmp_path / "all" for path in folders)
    monkeypatch.setenv("MTFED_CACHE", "off")
    assert cache_folder(Root(folder)) is None


@pytest.mark.parametrize("obstacle", ["no folder", "disk full", "no space", "deleted"])
def test_training_continues_without_a_cache(
    tmp_path: Path, obstacle: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = graded(tmp_path)
    if obstacle == "no folder":
        (folder / ".mtfed-cache").write_text("a file")
    elif obstacle == "disk full":
        monkeypatch.setattr(os, "posix_fallocate", _full, raising=False)
    elif obstacle == "no space":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    else:
        original = decoding.fill_arrays

        def fill(*given: object) -> dict[int, str]:
            faults = original(*given)  # type: ignore[arg-type]
            shutil.rmtree(folder / ".mtfed-cache", ignore_errors=True)
            return faults

        monkeypatch.setattr(decoding, "fill_arrays", fill)
    shards = [opened(folder, split=split) for split in ("train", "val", "train")]
    assert [len(shard) for shard in shards] == [4, 2, 4] and shards[0].images.float().std() > 0
    assert [record.getMessage()[:26] for record in caplog.records] == ["Cannot keep decoded images"]
    assert obstacle == "no folder" or not list((folder / ".mtfed-cache").glob("*-*"))


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_cache_can_be_deleted_while_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = graded(tmp_path)
    shard = opened(folder)
    before = shard.images
    shutil.rmtree(folder / ".mtfed-cache")
    assert shard.images.equal(before) and len(next(iter(shard.batches(4))).labels["grade"].rows) == 4
    seen = counting(monkeypatch)
    assert opened(folder).images.equal(before) and len(seen) == 6 == len(set(seen))


def test_a_process_looks_up_a_pool_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = site_folder(graded(tmp_path), "h", GRADED)
    rows = [row for row in data.rows if row.split == "train"]
    first, _ = open_store(data, GRADED, rows)
    monkeypatch.setattr(cache, "row_sources", None)
    assert open_store(data, GRADED, rows)[0] is first
