"""Decoded once and mapped: what a store holds, when it is made anew, who waits for it, what is left out of it."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TASKS as TASKS_OF_SAMPLE
from helpers.hospitals import TASKS, keys, write_site
from PIL import Image

from mtfed.config import Config, read_config
from mtfed.data import cache, decoding, fingerprint
from mtfed.data.cache import cache_folder, open_store
from mtfed.data.feature_shift import site_shift
from mtfed.data.federation import simulated_site, site_folder
from mtfed.data.manifest import Row, SiteData, read_site
from mtfed.data.root import Root
from mtfed.data.shard import Labels, Normalisation, Shard, load_shard, standardise
from mtfed.data.stamps import Stamps
from mtfed.data.store import Decoded, map_array
from mtfed.errors import MtfedError
from mtfed.progress import counted

GRADED = read_config({"image-size": 16, **keys("grade")})
SAMPLE = read_config(TASKS_OF_SAMPLE | {"image-size": 16})


@pytest.fixture(autouse=True)
def _in_its_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MTFED_CACHE", raising=False)
    cache._unwritable.clear()
    yield
    cache._open.clear()


def graded(folder: Path, images: int = 6) -> Path:
    """Write a site of 16 px pictures with a grade, of which every third validates."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["image,patient,split,grade"]
    for i in range(images):
        pixels = np.random.default_rng(i).integers(0, 255, (16, 16), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(f"{i}.png,p{i},{'val' if i % 3 == 2 else 'train'},{i % 2}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def stores(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / ".mtfed-cache").glob("*-*"))


def opened(folder: Path, config: Config = GRADED, split: str = "train") -> Shard:
    """Load as a new process would."""
    cache._open.clear()
    return load_shard(site_folder(folder, "h", config), config, split)


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the images decoded from now on."""
    seen: list[str] = []
    plain = decoding.decode_row

    def decode_row(data: SiteData, row: Row, config: Config) -> Decoded | str:
        seen.append(row.image)
        return plain(data, row, config)

    monkeypatch.setattr(decoding, "decode_row", decode_row)
    return seen


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("threads", [1, 5])
def test_a_store_holds_what_decoding_gives(
    tmp_path: Path, dimensions: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtfed.data.decoding.usable_cores", lambda: threads)
    monkeypatch.setattr(decoding, "CHUNK", 1)
    folder = write_site(tmp_path / "s", list(TASKS), 9, dimensions)
    config = read_config({"image-size": 16, "dimensions": dimensions, **keys()})
    found = {}
    for where in ("", "off"):
        monkeypatch.setenv("MTFED_CACHE", where)
        for split in ("train", "val"):
            found[where, split] = opened(folder, config, split)
    assert len(stores(folder)) == 1
    for split in ("train", "val"):
        kept, fresh = found["", split], found["off", split]
        assert kept.images.equal(fresh.images) and len(kept) == len(fresh) > 1
        assert list(kept.labels) == list(fresh.labels) == list(config.tasks)
        for task, labels in fresh.labels.items():
            assert labels.rows.equal(kept.labels[task].rows)
            assert labels.values.dtype == kept.labels[task].values.dtype
            torch.testing.assert_close(kept.labels[task].values, labels.values, rtol=0, atol=0, equal_nan=True)
        order = torch.randperm(len(fresh))
        for one, other in zip(kept.batches(3, order), fresh.batches(3, order), strict=True):
            assert one.images.equal(other.images) and list(one.labels) == list(other.labels)


def test_boxes_are_padded_as_a_part_needs_it(tmp_path: Path) -> None:
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


def test_parts_share_the_pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MTFED_CACHE", str(tmp_path / "elsewhere"))
    seen = counting(monkeypatch)
    shards = [load_shard(simulated_site(SAMPLE, i, 8), SAMPLE, split) for i in (1, 2, 7) for split in ("train", "val")]
    assert len({shard._images.data_ptr() for shard in shards}) == 1 and len(seen) == len(set(seen))
    assert len(list((tmp_path / "elsewhere").glob("*/*-*"))) == 1
    held = [(task, labels._values.data_ptr()) for shard in shards for task, labels in shard.labels.items()]
    assert len(set(held)) == 2 < len(held)
    for shard in shards:
        assert len(shard) < len(shard._images) and shard.images.equal(shard.take(torch.arange(len(shard))))
    alone = [task for task in SAMPLE.tasks if simulated_site(SAMPLE, 0, 8).count(task)]
    assert list(load_shard(simulated_site(SAMPLE, 0, 8), SAMPLE, "train").labels) == alone == ["lungs"]


def test_a_shard_of_plain_tensors() -> None:
    images = torch.arange(4 * 9, dtype=torch.uint8).view(4, 1, 3, 3)
    shard = Shard(images, {"grade": Labels(torch.tensor([1, 3]), torch.tensor([5, 6]))})
    assert shard.images is images and len(shard) == 4 and shard.count("grade") == 2
    part = Shard(images, {}, torch.tensor([3, 1]))
    assert len(part) == 2 and part.take(torch.tensor([1])).equal(images[1:2])


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


def rewrite(folder: Path, change: Callable[[str], str]) -> None:
    lines = (folder / "manifest.csv").read_text().splitlines(keepends=True)
    (folder / "manifest.csv").write_text("".join([lines[0], *map(change, lines[1:])]))


@pytest.mark.parametrize("what", CHANGES)
def test_what_makes_a_store_anew(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, settings, anew = CHANGES[what]
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
    assert bool(seen) == (anew and what != "a row")  # whose others are taken over
    assert (before not in stores(folder)) == (anew and not settings and what != "our own code")
    assert len(stores(folder)) == (2 if (settings and anew) or what == "our own code" else 1)


def test_only_what_changed_is_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_site(tmp_path / "s", list(TASKS), 8)
    config = read_config({"image-size": 16, **keys()})
    opened(folder, config)
    (folder / "3.png").write_bytes((folder / "1.png").read_bytes())
    rewrite(folder, lambda line: "" if line.startswith("0.npz") else line)
    seen = counting(monkeypatch)
    kept = {split: opened(folder, config, split) for split in ("train", "val")}
    assert seen == ["3.png"] and len(stores(folder)) == 1
    monkeypatch.setenv("MTFED_CACHE", "off")
    for split, shard in kept.items():
        fresh = opened(folder, config, split)
        assert shard.images.equal(fresh.images)
        for task, labels in fresh.labels.items():
            torch.testing.assert_close(shard.labels[task].values, labels.values, rtol=0, atol=0, equal_nan=True)


def test_stores_that_nobody_opens_go(tmp_path: Path) -> None:
    folder = graded(tmp_path)
    for size in (8, 12):
        opened(folder, read_config({"image-size": size, **keys("grade")}))
    old, kept = stores(folder)
    os.utime(folder / ".mtfed-cache" / old, (1, 1))
    opened(folder)
    assert old not in stores(folder) and kept in stores(folder) and len(stores(folder)) == 2


def test_where_a_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    place = cache_folder(Root(archive))
    assert place is not None and place.parent == tmp_path / "user" / "mtfed" and place.name.startswith("site.zip-")
    assert opened(archive).images.equal(opened(folder).images) and len(list(place.glob("*-*"))) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    place = cache_folder(Root(archive))
    assert place is not None and place.parent == tmp_path / "home" / ".cache" / "mtfed"
    monkeypatch.setenv("MTFED_CACHE", str(tmp_path / "all"))
    places = {cache_folder(Root(folder)), cache_folder(Root(archive)), cache_folder(Root(tmp_path / "other" / "site"))}
    assert len(places) == 3 and all(place and place.parent == tmp_path / "all" for place in places)
    monkeypatch.setenv("MTFED_CACHE", "off")
    assert cache_folder(Root(folder)) is None


@pytest.mark.parametrize("obstacle", ["no folder", "disk full", "no room told", "deleted"])
def test_training_goes_on_where_nothing_can_be_kept(
    tmp_path: Path, obstacle: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = graded(tmp_path)
    if obstacle == "no folder":
        (folder / ".mtfed-cache").write_text("a file")
    elif obstacle == "disk full":
        monkeypatch.setattr(os, "posix_fallocate", _full, raising=False)
    elif obstacle == "no room told":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    else:
        plain = decoding.fill_arrays

        def fill(*given: object) -> dict[int, str]:
            told = plain(*given)  # type: ignore[arg-type]
            shutil.rmtree(folder / ".mtfed-cache", ignore_errors=True)
            return told

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
    found = map_array(tmp_path / "a.npy")
    assert found[2].tolist() == list(range(12, 18))
    found[2] = 0
    assert np.load(tmp_path / "a.npy")[2, 0] == 12
    assert not opened_files or len(os.listdir("/proc/self/fd")) == opened_files


def _decode_slowly(folder: Path, notes: Path, doomed: bool = False) -> None:
    plain = decoding.decode_row

    def decode_row(data: SiteData, row: Row, config: Config) -> Decoded | str:
        with open(notes, "a", encoding="utf-8") as file:
            file.write(row.image + "\n")
        if doomed and row.image == "3.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(data, row, config)

    decoding.decode_row = decode_row  # type: ignore[assignment]
    assert opened(folder).images.shape == (4, 1, 16, 16)


@pytest.mark.parametrize("method", sorted({"fork", "spawn"} & set(multiprocessing.get_all_start_methods())))
def test_processes_that_ask_at_once_decode_once(tmp_path: Path, method: str) -> None:
    folder, notes = graded(tmp_path / "s"), tmp_path / "notes"
    context = multiprocessing.get_context(method)
    processes = [context.Process(target=_decode_slowly, args=(folder, notes)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(notes.read_text().split()) == sorted(f"{i}.png" for i in range(6)) and len(stores(folder)) == 1


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="kills a forked process")
def test_a_killed_process_leaves_nothing_that_counts(tmp_path: Path) -> None:
    folder, notes = graded(tmp_path / "s"), tmp_path / "notes"
    process = multiprocessing.get_context("fork").Process(target=_decode_slowly, args=(folder, notes, True))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert [path.name[:11] for path in (folder / ".mtfed-cache").glob("*-*")] == ["unfinished-"]
    assert len(opened(folder)) == 4 and len(stores(folder)) == 1 and "unfinished" not in stores(folder)[0]


def test_without_locks_the_first_one_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = graded(tmp_path)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    plain, inner = decoding.fill_arrays, []

    def fill(*given: object) -> dict[int, str]:
        if not inner:
            inner.append(True)
            inner.append(opened(folder))  # another process, faster than this one
        return plain(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "fill_arrays", fill)
    assert opened(folder).images.equal(inner[1].images) and len(stores(folder)) == 1


def broken(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize(
    ("share", "split", "files", "told"),
    [
        (0.0, "train", ["0.png"], "Cannot read 1 of 4 train images of site h, and config key max-unreadable allows a "
         r"share of 0; `mtfed site check` lists them, the first is: Cannot read image 0.png of site h: .*"),
        (0.2, "train", ["0.png", "3.png"], "Cannot read 2 of 4 train images of site h, .* share of 0.2; .* 0.png"),
        (0.5, "val", ["2.png", "5.png"], "Cannot read 2 of 2 val images of site h"),
        (0.75, "train", ["0.png", "3.png", "4.png"], ""),
        (0.25, "train", ["0.png"], ""),
        (0.0, "train", ["2.png"], ""),  # of the other split
    ],
)  # fmt: skip
def test_how_many_may_be_unreadable(
    tmp_path: Path, share: float, split: str, files: list[str], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = GRADED.model_copy(update={"max_unreadable": share})
    folder = broken(graded(tmp_path), *files)
    for _ in range(2):  # decoded, and found in the store
        if told:
            with pytest.raises(MtfedError, match=told):
                opened(folder, config, split)
            continue
        left = [name for name in ("0.png", "1.png", "3.png", "4.png") if name not in files]
        cache._open.clear()
        site = site_folder(folder, "h", config)
        shard = load_shard(site, config, split)
        assert len(shard) == len(left) == shard.count("grade")
        assert shard.labels["grade"].values.tolist() == [int(name[0]) % 2 for name in left]
        load_shard(site, config, split)
        messages = [record.getMessage() for record in caplog.records]
        gone = [name for name in files if name != "2.png"]
        assert [message.split(" of site h: ")[0] for message in messages] == [f"Left out {name}" for name in gone]
        assert all("Cannot read image" in message and "\0" not in message for message in messages)
        caplog.clear()


def test_the_last_images_of_a_task_cannot_be_left_out(tmp_path: Path) -> None:
    folder = write_site(tmp_path / "s", ["grade", "outline"], 8)
    rewrite(folder, lambda line: line if line.startswith("0.npz") else line.rpartition(",")[0] + ",\n")
    np.savez(folder / "0.npz", image=np.zeros((32, 32), np.uint8), mask=np.zeros((3, 3), np.uint8))
    config = read_config({"image-size": 16, "max-unreadable": 0.5, **keys("grade", "outline")})
    with pytest.raises(MtfedError, match=r"any train image of site h that is labelled for task outline, .*Mask 0\.npz"):
        opened(folder, config)


@pytest.mark.parametrize("error", [KeyError("x"), MemoryError(), RecursionError("deep"), AssertionError("a\nb")])
def test_whatever_a_decoder_raises_is_a_fault(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = decoding.Source.pixels

    def pixels(source: decoding.Source, channels: int) -> np.ndarray:
        if source.image == "3.png":
            raise error
        return plain(source, channels)

    monkeypatch.setattr(decoding.Source, "pixels", pixels)
    assert len(opened(graded(tmp_path), GRADED.model_copy(update={"max_unreadable": 0.3}))) == 3
    (record,) = caplog.records
    assert f"Cannot read image 3.png of site h or its labels: {type(error).__name__}" in record.getMessage()
    assert "\n" not in record.getMessage() and record.levelno == logging.WARNING and record.name == "mtfed.data"


def test_a_fault_of_the_machine_is_no_fault_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, folder = decoding.Source.pixels, graded(tmp_path)

    def pixels(source: decoding.Source, channels: int) -> np.ndarray:
        if source.image == "3.png":
            raise OSError(5, "Input/output error")
        return plain(source, channels)

    some = GRADED.model_copy(update={"max_unreadable": 0.3})
    monkeypatch.setattr(decoding.Source, "pixels", pixels)
    assert len(opened(folder, some)) == 3
    monkeypatch.setattr(decoding.Source, "pixels", plain)
    cache._open.clear()  # as in another process
    seen = counting(monkeypatch)
    assert len(opened(folder, some)) == 4 and set(seen) == {"3.png"} and len(stores(folder)) == 1


def test_files_of_one_age_and_size_may_be_exchanged(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (1, 1))
    before = Root(tmp_path).stamp("a")
    for name, new in (("a", "c"), ("b", "a"), ("c", "b")):
        (tmp_path / name).rename(tmp_path / new)
    assert Root(tmp_path).stamp("a") != before


def test_an_image_that_is_mended_is_read_again(tmp_path: Path) -> None:
    folder = broken(graded(tmp_path), "1.png")
    with pytest.raises(MtfedError):
        opened(folder)
    good = graded(tmp_path / "good")
    (folder / "1.png").write_bytes((good / "1.png").read_bytes())
    assert opened(folder).images.equal(opened(good).images)


def by_site(data: Path, dimensions: int = 2, **settings: object) -> Config:
    chosen = {key.replace("_", "-"): value for key, value in settings.items()}
    told = {"image-size": 16, "dimensions": dimensions, "normalise": "site", "data": str(data), **keys("grade")}
    return read_config(told | chosen)


@pytest.mark.parametrize(("dimensions", "channels"), [(2, 1), (2, 3), (3, 1)])
def test_a_site_is_normalised_by_its_training_images(tmp_path: Path, dimensions: int, channels: int) -> None:
    folder = write_site(tmp_path / "s", ["grade"], 9, dimensions)
    config = by_site(tmp_path, dimensions, channels=channels)
    train, val = (opened(folder, config, split) for split in ("train", "val"))
    axes = (0, *range(2, 2 + dimensions))
    values = train.images.double()
    mean, deviation = values.mean(axes), values.std(axes, correction=0)
    (batch,) = train.batches(99)
    torch.testing.assert_close(batch.images.double().mean(axes), torch.zeros(channels).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.images.double().std(axes, correction=0), torch.ones(channels).double())
    shape = (-1, *[1] * dimensions)
    (batch,) = val.batches(99)
    expected = (val.images.double() - mean.view(shape)) / deviation.view(shape)
    torch.testing.assert_close(batch.images.double(), expected, atol=1e-5, rtol=1e-5)
    assert abs(float(batch.images.mean())) > 1e-4  # not by their own


def test_no_figure_of_held_out_images_reaches_training(tmp_path: Path) -> None:
    folder, config = graded(tmp_path / "s"), by_site(tmp_path)
    rewrite(folder, lambda line: line.replace("5.png,p5,val", "5.png,p5,test"))
    before = opened(folder, config)
    for name in ("2.png", "5.png"):
        Image.new("L", (16, 16), 255).save(folder / name)
    after = opened(folder, config)
    val, test = opened(folder, config, "val"), opened(folder, config, "test")
    assert before.normalisation and after.normalisation and val.normalisation and test.normalisation
    for scale in (after.normalisation, val.normalisation):
        assert scale.mean.equal(before.normalisation.mean) and scale.deviation.equal(before.normalisation.deviation)
    assert test.normalisation.mean.item() == 255  # the server's, by their own
    assert standardise(test.images, test.normalisation).abs().max() == 0
    by_image = opened(folder, GRADED)
    assert by_image.normalisation is None


def test_a_shifted_site_is_normalised_as_it_is_seen(tmp_path: Path) -> None:
    config = by_site(tmp_path, feature_shift=1.0)
    graded(tmp_path / "a"), graded(tmp_path / "b")
    for index in range(2):
        data = simulated_site(config, index, 2)
        assert data.scanners == site_shift(config, data.key)
        train, val = (load_shard(data, config, split) for split in ("train", "val"))
        plain = load_shard(replace(data, scanners=None), config, "train")
        assert not train.images.equal(plain.images)
        expected = Normalisation.of(torch.stack([decoding.channel_sums(image) for image in train.images]), 16 * 16)
        for shard in (train, val):
            assert shard.normalisation and shard.normalisation.mean.equal(expected.mean)


def test_splits_are_kept_apart(tmp_path: Path) -> None:
    folder, config = graded(tmp_path / "s"), by_site(tmp_path)
    data = site_folder(folder, "h", config)
    with pytest.raises(MtfedError, match="Expected one split of site h, got train and val; say which to load"):
        load_shard(data, config)
    mixed = replace(data, rows=(*data.rows, replace(data.rows[0], split="val")))
    for split in ("train", "val"):
        with pytest.raises(MtfedError, match="Site h: patient 'p0' is in train and in val"):
            load_shard(mixed, config, split)
    with pytest.raises(MtfedError, match="Config key normalise: site h has no training image"):
        load_shard(data.part("val"), config)
    assert load_shard(data.part("train"), config).normalisation is not None
    strange = replace(data, rows=(replace(data.rows[0], number=3), *data.rows[1:]))
    with pytest.raises(ValueError, match="Expected row 3 of the pool of site h to be"):
        load_shard(strange, config, "train")
    assert len(load_shard(replace(data, rows=()), config, "train")) == 0


def test_stamps_of_what_manifests_name(tmp_path: Path) -> None:
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


def test_a_process_looks_at_a_pool_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = site_folder(graded(tmp_path), "h", GRADED)
    rows = [row for row in data.rows if row.split == "train"]
    first, _ = open_store(data, GRADED, rows)
    monkeypatch.setattr(cache, "row_sources", None)
    assert open_store(data, GRADED, rows)[0] is first


def test_a_bar_is_for_long_work_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert list(counted(iter("abc"), 3, "decoding", quiet=-1)) == ["a", "b", "c"]
    assert not capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert list(counted(iter("abc"), 3, "decoding", quiet=60)) == ["a", "b", "c"]
    assert not capsys.readouterr().out
    assert list(counted(iter("abc"), 3, "decoding", quiet=-1)) == ["a", "b", "c"]
    assert "decoding" in capsys.readouterr().out
