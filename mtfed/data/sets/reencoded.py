"""Sets that somebody has re-encoded small: an index, and zips of images and masks, or an ``.npz`` a volume.

``index.csv`` has one row an image, with the columns ``id``, ``file`` and ``split``; ``images.zip`` holds what ``file``
names, ``masks.zip`` holds ``ID.png`` of class indices, and ``volumes/ID.npz`` the arrays of a volume.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import MtfedError
from ...tasks.specs import KIND_SPECS
from .dataset import Reader, Sample
from .tables import read_csv

INDEX = "index.csv"
IMAGES = "images"  # folder of what was unpacked, within the set's folder
BROKEN = (KeyError, OSError, ValueError, EOFError, RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error)

Row = dict[str, str]
Place = Callable[[Row], tuple[Path, Path]]  # the folders that a row's image and its labels go to
Files = Callable[[Path, Iterable[Row], Place], Iterator[tuple[Row, str]]]  # writes them; yields each image's file name


def read_index(source: Path) -> list[Row]:
    """Return the rows of a copy's index."""
    rows = read_csv(source / INDEX, ("id", "file", "split"))
    for row in rows:
        if row["id"] != Path(row["id"]).name:
            raise MtfedError(f"{source / INDEX}: id {row['id']!r} should be a plain name, as files are called by it.")
    return rows


def mask_of(row: Row) -> str:
    """Return the file name of a row's mask, empty if it has none."""
    return f"{row['id']}-mask.png" if row.get("has_mask", "1") == "1" else ""


def pictures(source: Path, rows: Iterable[Row], place: Place) -> Iterator[tuple[Row, str]]:
    """Unpack images as they are, and masks as 0 and 1."""
    with _open(source / "images.zip") as images:
        masks = _open(source / "masks.zip") if (source / "masks.zip").exists() else None
        for row in rows:
            image, labels = place(row)
            image.mkdir(parents=True, exist_ok=True)
            name = Path(row["file"]).name
            (image / name).write_bytes(_member(images, row["file"]))
            if masks is not None and mask_of(row):
                mask = _picture(_member(masks, f"{row['id']}.png"), f"{row['id']}.png of {source / 'masks.zip'}") > 0
                labels.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask.astype(np.uint8)).save(labels / mask_of(row))
            yield row, name


def volumes(convert: Callable[[Row, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]) -> Files:
    """Return what writes one file a volume, image and labels alike: arrays that ``convert`` makes of those given."""

    def files(source: Path, rows: Iterable[Row], place: Place) -> Iterator[tuple[Row, str]]:
        for row in rows:
            folder, _ = place(row)
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{row['id']}.npz"
            path = source / "volumes" / name
            try:
                with np.load(path, allow_pickle=False) as file:
                    arrays = convert(row, dict(file))
            except BROKEN as error:
                raise MtfedError(f"Cannot read {path}: {error}; get it again.") from None
            np.savez_compressed(folder / name, **arrays)  # type: ignore[arg-type]
            yield row, name

    return files


@dataclass(frozen=True)
class Copy:
    """How the rows of a copy's index become images and labels: task -> the cell of a row, empty where it has none.

    A cell that is a path is a file's name among the labels.
    """

    cells: Mapping[str, Callable[[Row], str]]
    site: Callable[[Row], str] = lambda row: ""
    patient: str = "id"  # column of what must not be parted between splits
    split: Callable[[Row], str] = lambda row: row["split"]
    rows: Callable[[Path], list[Row]] = read_index
    files: Files = pictures

    def reader(self, tasks: Mapping[str, Mapping[str, str]]) -> Reader:
        """Return what reads the copy as a data set with these tasks."""
        in_files = {name for name, task in tasks.items() if KIND_SPECS[task["kind"]].in_files}

        def read(folder: Path, labels: Path) -> Iterator[Sample]:
            root = labels.parent
            images = root / IMAGES if self.files is pictures else labels
            for row, name in self.files(folder, self.rows(folder), lambda row: (images, labels)):
                found = {task: cell(row) for task, cell in self.cells.items()}
                paths = {task: _within(labels, cell) for task, cell in found.items() if cell and task in in_files}
                image, patient = _within(images, name), row[self.patient]
                yield Sample(image, patient, found | paths, self.split(row), self.site(row))

        return read


def _within(folder: Path, name: str) -> str:
    return f"{folder.name}/{name}"


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except BROKEN as error:
        raise MtfedError(f"Cannot read {path}: {error}; get it again.") from None


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except KeyError:
        raise MtfedError(f"{archive.filename} holds no {name}, which {INDEX} names; get both again.") from None
    except BROKEN as error:
        raise MtfedError(f"Cannot read {name} of {archive.filename}: {error}; get it again.") from None


def _picture(content: bytes, what: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image)
    except (*BROKEN, Image.DecompressionBombError) as error:
        raise MtfedError(f"Cannot read {what}: {error}; get it again.") from None
