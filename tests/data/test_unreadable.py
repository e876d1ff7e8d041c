"""Images that cannot be read are left out, up to a share."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from helpers.cached_site import GRADED, break_files, counting, graded, opened, rewrite, stores
from helpers.hospitals import keys, write_site
from mtfed.config import read_config
from mtfed.data import cache, decoding
from mtfed.data.loading import load_shard
from mtfed.data.simulated_sites import site_folder
from mtfed.errors import MtfedError

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize(
    ("share", "split", "files", "message"),
    [
        (0.0, "train", ["0.png"], "Cannot read 1 of 4 train images of site h, and config key max-unreadable allows a "
         r"share of 0; `mtfed site check` lists them, the first is: Cannot read image 0.png of site h: .*"),
        (0.2, "train", ["0.png", "3.png"], "Cannot read 2 of 4 train images of site h, .* share of 0.2; .* 0.png"),
        (0.5, "val", ["2.png", "5.png"], "Cannot read 2 of 2 val images of site h"),
        (0.75, "train", ["0.png", "3.png", "4.png"], ""),
        (0.25, "train", ["0.png"], ""),
        (0.0, "train", ["2.png"], ""),  # in the other split
    ],
)  # fmt: skip
def test_the_share_of_unreadable_images(
    tmp_path: Path, share: float, split: str, files: list[str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = GRADED.model_copy(update={"max_unreadable": share})
    folder = break_files(graded(tmp_path), *files)
    for _ in range(2):  # decoded first, then read from the store
        if message:
            with pytest.raises(MtfedError, match=message):
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
        assert [text.split(" of site h: ")[0] for text in messages] == [f"Left out {name}" for name in gone]
        assert all("Cannot read image" in text and "\0" not in text for text in messages)
        caplog.clear()


def test_the_last_images_of_a_task_cannot_be_left_out(tmp_path: Path) -> None:
    folder = write_site(tmp_path / "s", ["grade", "outline"], 8)
    rewrite(folder, lambda line: line if line.startswith("0.npz") else line.rpartition(",")[0] + ",\n")
    np.savez(folder / "0.npz", image=np.zeros((32, 32), np.uint8), mask=np.zeros((3, 3), np.uint8))
    config = read_config({"image-size": 16, "max-unreadable": 0.5, **keys("grade", "outline")})
    with pytest.raises(MtfedError, match=r"any train image of site h that is labelled for task outline, .*Mask 0\.npz"):
        opened(folder, config)


@pytest.mark.parametrize("error", [KeyError("x"), MemoryError(), RecursionError("deep"), AssertionError("a\nb")])
def test_any_exception_of_a_decoder_is_a_fault(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = decoding.Source.pixels

    def pixels(source: decoding.Source, channels: int) -> np.ndarray:
        if source.image == "3.png":
            raise error
        return original(source, channels)

    monkeypatch.setattr(decoding.Source, "pixels", pixels)
    assert len(opened(graded(tmp_path), GRADED.model_copy(update={"max_unreadable": 0.3}))) == 3
    (record,) = caplog.records
    assert f"Cannot read image 3.png of site h or its labels: {type(error).__name__}" in record.getMessage()
    assert "\n" not in record.getMessage() and record.levelno == logging.WARNING and record.name == "mtfed.data"


def test_an_image_is_read_again_after_a_fault_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, folder = decoding.Source.pixels, graded(tmp_path)

    def pixels(source: decoding.Source, channels: int) -> np.ndarray:
        if source.image == "3.png":
            raise OSError(5, "Input/output error")
        return original(source, channels)

    some = GRADED.model_copy(update={"max_unreadable": 0.3})
    monkeypatch.setattr(decoding.Source, "pixels", pixels)
    assert len(opened(folder, some)) == 3
    monkeypatch.setattr(decoding.Source, "pixels", original)
    cache._open.clear()  # as in another process
    seen = counting(monkeypatch)
    assert len(opened(folder, some)) == 4 and set(seen) == {"3.png"} and len(stores(folder)) == 1


def test_a_repaired_image_is_read_again(tmp_path: Path) -> None:
    folder = break_files(graded(tmp_path), "1.png")
    with pytest.raises(MtfedError):
        opened(folder)
    good = graded(tmp_path / "good")
    (folder / "1.png").write_bytes((good / "1.png").read_bytes())
    assert opened(folder).images.equal(opened(good).images)
