"""A site's data is a folder (or zip) with a ``manifest.csv``: one row an image, one column a task.

Columns: ``image`` (path inside the folder), ``patient``, optionally ``split`` (train, val, test; empty = train), and a
column for every task: a class index or name, or the path of a mask. An empty cell means that the image has no label
for that task. Other columns are left alone.
"""

from __future__ import annotations

import csv
import io
import os
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ..errors import MtfedError

MANIFEST = "manifest.csv"
SPLITS = {"": "train", "train": "train", "val": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Row:
    """One image: where it is, whose it is, and its labels by task (absent = no label)."""

    image: str
    patient: str
    split: str
    labels: dict[str, str]


@dataclass(frozen=True)
class SiteData:
    """The rows that one site holds, and where their files are."""

    key: str
    root: Root
    rows: tuple[Row, ...]

    def part(self, split: str) -> SiteData:
        """Return the rows of one split."""
        return replace(self, rows=tuple(row for row in self.rows if row.split == split))

    def count(self, task: str) -> int:
        """Return how many rows are labelled for a task."""
        return sum(task in row.labels for row in self.rows)


class Root:
    """Where a manifest's files are: a folder, or a zip read in place. Paths cannot lead out of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip: tuple[int, zipfile.ZipFile] | None = None

    def read(self, name: str) -> bytes:
        """Return a file's bytes; raise ``OSError`` or ``KeyError`` if there is none."""
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise MtfedError(
                f"Expected a path inside {self.path}, got {name!r}; a manifest names files of its own folder."
            )
        if self.path.is_dir():
            return (self.path / name).read_bytes()
        if self._zip is None or self._zip[0] != os.getpid():  # a forked process must not share a file position
            self._zip = os.getpid(), zipfile.ZipFile(self.path)
        return self._zip[1].read(name)

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_zip": None}


def read_site(path: Path, key: str, tasks: list[str]) -> SiteData:
    """Read a site's manifest; raise :class:`MtfedError` naming file, line and column of the first fault."""
    root = Root(path)
    try:
        text = root.read(MANIFEST).decode("utf-8-sig")
    except (OSError, KeyError, zipfile.BadZipFile):
        raise MtfedError(f"Expected a site folder with a {MANIFEST}, found none in {path}.") from None
    except UnicodeDecodeError:
        raise MtfedError(f"{path / MANIFEST} is not UTF-8 text; save it as CSV in UTF-8.") from None
    table = csv.DictReader(io.StringIO(text))
    missing = {"image", "patient"} - set(table.fieldnames or ())
    if missing:
        raise MtfedError(
            f"{path / MANIFEST} lacks the column {' and '.join(sorted(missing))}; its first line must name the columns."
        )
    rows = []
    for line, record in enumerate(table, start=2):
        where = f"{path / MANIFEST}, line {line}"
        split = (record.get("split") or "").strip().lower()
        if split not in SPLITS:
            raise MtfedError(f"{where}: split should be train, val or test, it is {split!r}.")
        image, patient = (record["image"] or "").strip(), (record["patient"] or "").strip()
        if not image or not patient:
            raise MtfedError(f"{where}: image and patient must not be empty; patients keep training and test apart.")
        labels = {task: label for task in tasks if (label := (record.get(task) or "").strip())}
        rows.append(Row(image, patient, SPLITS[split], labels))
    check_patients(rows, str(path / MANIFEST))
    return SiteData(key, root, tuple(rows))


def check_patients(rows: list[Row], where: str) -> None:
    """Refuse a manifest that puts one patient into two splits."""
    split_of: dict[str, str] = {}
    for row in rows:
        if split_of.setdefault(row.patient, row.split) != row.split:
            raise MtfedError(
                f"{where}: patient {row.patient!r} is in {split_of[row.patient]} and in {row.split}; "
                "put all images of a patient into one split."
            )


def write_site(data: SiteData, folder: Path) -> None:
    """Write a site as a folder of its own: manifest, images and masks."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = sorted({task for row in data.rows for task in row.labels})
    with open(folder / MANIFEST, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "patient", "split", *tasks])
        for row in data.rows:
            table.writerow([row.image, row.patient, row.split, *(row.labels.get(task, "") for task in tasks)])
            for name in (row.image, *(label for label in row.labels.values() if "/" in label)):
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data.root.read(name))
