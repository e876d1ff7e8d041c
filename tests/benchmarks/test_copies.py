"""Re-encoded copies of public sets: drawn ones, and a few images of the real ones if they are present."""

from __future__ import annotations

import csv
import io
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.fixtures.copies import BUSI
from benchmarks.images import write
from helpers.copy_sets import COPY_SETS
from helpers.layouts import opened, shards
from mtfed.data.sets import find_set
from mtfed.data.sets.prepare import prepare
from mtfed.errors import MtfedError

SHARED = Path(os.environ.get("MTFED_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
IMAGES_PER_SPLIT = 4


def shared(name: str) -> Path:
    """Return the folder of a real copy; skip the test if it is absent."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} is absent: MTFED_SHARED_DATA is not set and there is no ../shared/data/{name}")
    return SHARED / name


def table(path: Path, rows: Sequence[dict[str, str]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        index = csv.DictWriter(file, list(rows[0]))
        index.writeheader()
        index.writerows(rows)


def take_few(source: Path, folder: Path) -> Path:
    """Lay out a copy with a few rows of each split, taken from all over its index, and links to its other files."""
    folder.mkdir()
    with open(source / "index.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    chosen = []
    for split in dict.fromkeys(row["split"] for row in rows):
        rows_of_split = [row for row in rows if row["split"] == split]
        chosen += rows_of_split[:: max(len(rows_of_split) // IMAGES_PER_SPLIT, 1)]
    table(folder / "index.csv", chosen)
    for path in source.iterdir():
        if path.name != "index.csv":
            (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize("name", COPY_SETS)
def test_the_real_copies_train(name: str, tmp_path: Path) -> None:
    source = take_few(shared(name), tmp_path / "source")
    before = sorted(source.rglob("*"))
    prepared = prepare(COPY_SETS[name], source, out=tmp_path / "out")
    assert sorted(source.rglob("*")) == before
    config, data = opened(name, tmp_path / "out")
    shards(config, data)
    assert len(data.rows) == sum(prepared.splits.values())


def test_the_medmnist_copy_is_read_as_the_official_file(tmp_path: Path) -> None:
    with np.load(shared("pneumoniamnist") / "pneumoniamnist.npz") as file:
        np.savez(tmp_path / "pneumoniamnist.npz", **{name: file[name][::100] for name in file})
    prepared = prepare(find_set("pneumoniamnist"), tmp_path, out=tmp_path / "out")
    assert prepared.splits == {"train": 48, "val": 6, "test": 7}
    shards(*opened("pneumoniamnist", tmp_path / "out"))


def test_near_duplicates_stand_for_patients(tmp_path: Path) -> None:
    """BUSI's column ``group`` joins near-duplicate images, which no split separates."""
    with open(shared("busi") / "index.csv", newline="", encoding="utf-8") as file:
        groups = [row["group"] for row in csv.DictReader(file)]
    assert BUSI.patient == "group" and len(set(groups)) < len(groups)


def png(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(values).save(content, "PNG")
    return content.getvalue()


def busi(folder: Path) -> Path:
    """Draw a copy of four images; the last has no mask."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = []
    with zipfile.ZipFile(folder / "images.zip", "w") as images, zipfile.ZipFile(folder / "masks.zip", "w") as masks:
        for i, split in enumerate(("train", "train", "val", "test")):
            image = {"id": f"benign_{i}", "file": f"benign_{i}.png", "split": split, "label": "1"}
            rows.append(image | {"has_mask": str(int(i < 3)), "group": f"g{max(i, 1)}"})
            images.writestr(f"benign_{i}.png", png(rng.integers(0, 255, (16, 16)).astype(np.uint8)))
            if i < 3:
                masks.writestr(f"benign_{i}.png", png(np.eye(16, dtype=np.uint8) * 255))
    table(folder / "index.csv", rows)
    return folder


def test_a_drawn_copy_trains(tmp_path: Path) -> None:
    prepared = prepare(COPY_SETS["busi"], busi(tmp_path / "source"), out=tmp_path / "out")
    assert prepared.splits == {"train": 2, "val": 1, "test": 1}
    assert prepared.labels == {"lesion": 4, "outline": 3} and prepared.patients == 3
    shards(*opened("busi", tmp_path / "out"))


def test_the_benchmark_writes_a_folder_a_site_and_one_for_the_server(tmp_path: Path) -> None:
    write("busi", BUSI, busi(tmp_path / "source"), tmp_path / "out")
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert files == [
        *(f"hospital/benign_{i}{end}.png" for i in range(3) for end in ("-mask", "")),
        "hospital/manifest.csv",
        "test/benign_3.png",
        "test/manifest.csv",
    ]
    head = "image,patient,split,lesion,outline\r\n"
    assert (tmp_path / "out/test/manifest.csv").read_bytes().decode() == f"{head}benign_3.png,g3,test,1,\r\n"


def _index(change: Callable[[dict[str, str]], dict[str, str]]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        with open(folder / "index.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        table(folder / "index.csv", [change(row) for row in rows])

    return spoil


WRONG: list[tuple[Callable[[Path], None], str]] = [
    (lambda folder: (folder / "images.zip").unlink(), "images.zip was not found"),
    (lambda folder: (folder / "images.zip").write_bytes(b"no zip") and None, "Cannot read .*images.zip"),
    (lambda folder: (folder / "index.csv").write_text("id,file\n") and None, "lacks the column 'split'"),
    (_index(lambda row: row | {"file": "other.png"}), "contains no other.png"),
    (_index(lambda row: row | {"id": "../../up"}), "should be a plain name"),
    (_index(lambda row: row | {"has_mask": "1"}), "contains no benign_3.png"),
    (_index(lambda row: row | {"group": "g"}), "patient 'g' is in train and in val"),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG)
def test_a_wrong_copy_is_refused(spoil: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    spoil(busi(tmp_path))
    with pytest.raises(MtfedError, match=message):
        prepare(COPY_SETS["busi"], tmp_path)


@pytest.mark.parametrize("content", ["", "[]", json.dumps({"boxes": {"a": [[7, 1, 1, 2, 2]]}}), '{"boxes": {"a": 3}}'])
def test_malformed_boxes_are_refused(content: str, tmp_path: Path) -> None:
    busi(tmp_path)
    (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(MtfedError, match="is not a table of boxes"):
        prepare(COPY_SETS["bccd"], tmp_path)


def test_a_broken_volume_is_refused(tmp_path: Path) -> None:
    table(tmp_path / "index.csv", [{"id": "h1", "file": "volumes/h1.npz", "split": "train", "spacing": "1x1x1"}])
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes/h1.npz").write_bytes(b"broken")
    with pytest.raises(MtfedError, match=r"Cannot read .*h1\.npz"):
        prepare(COPY_SETS["hippocampus3d"], tmp_path)
