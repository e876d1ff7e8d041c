"""A site's data is a folder (or zip) with a manifest, CSV or Parquet: one row an image, one column a task.

Columns: ``image`` (path inside the folder), ``patient``, optionally ``split`` (train, val, test; empty = train), and a
column for every task, of which ``mtfed config`` says what its cells hold: a class, a number, boxes, the path of a file.
An empty cell means that the image has no label for that task. Other columns are left alone.
"""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from posixpath import dirname, normpath
from typing import TYPE_CHECKING

from ..errors import MtfedError
from ..tasks.specs import KIND_SPECS
from ..tasks.task import Task
from .formats import file_of, files_of
from .manifest_table import MANIFEST, PARQUET, ManifestTable, has_manifest, read_manifest_table
from .root import Root

if TYPE_CHECKING:
    from .feature_shift import Scanners

__all__ = ["MANIFEST", "PARQUET", "Row", "SiteData", "check_patients", "has_manifest", "read_site", "write_site"]
COLUMNS = ("image", "patient", "split")
NONE: Mapping[str, str] = {}  # shared by the rows without other cells, of which there may be many
SPLITS = {"": "train", "train": "train", "val": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True, slots=True)
class Row:
    """One image: where it is, whose it is, and its labels by task (absent = no label)."""

    image: str
    patient: str
    split: str
    labels: dict[str, str]
    number: int = field(default=0, compare=False)  # its place in :attr:`SiteData.pool`
    others: Mapping[str, str] = field(default_factory=dict, compare=False)  # cells of columns that are no task


@dataclass(frozen=True)
class SiteData:
    """The rows that one site holds, and where their files are.

    Several simulated sites may divide the rows of one manifest among them; ``pool`` is all of these, in the manifest's
    order. A row's ``number`` is its place there.
    """

    key: str
    root: Root
    rows: tuple[Row, ...]
    pool: tuple[Row, ...] = ()
    scanners: Scanners | None = None  # how its images are made to differ from other simulated sites'

    def part(self, split: str) -> SiteData:
        """Return the rows of one split."""
        return replace(self, rows=tuple(row for row in self.rows if row.split == split))

    def count(self, task: str) -> int:
        """Return how many rows are labelled for a task."""
        return sum(task in row.labels for row in self.rows)

    def read(self, name: str, what: str) -> bytes:
        """Return a file's bytes; raise :class:`MtfedError` that names it, as ``what``, if there is none."""
        try:
            return self.root.read(name)
        except (KeyError, FileNotFoundError, NotADirectoryError):
            reason = "there is no such file; add it, or mend the manifest"
        except OSError as error:
            reason = f"{error.strerror or error}; mend or remove it"
        except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            reason = f"{error}; mend or remove it"
        raise MtfedError(f"Cannot read {what} {name} of site {self.key}: {reason}.")


def read_site(path: Path, key: str, tasks: list[str]) -> SiteData:
    """Read a site's manifest; raise :class:`MtfedError` naming file, line and column of the first fault."""
    root = Root(path)
    table = read_manifest_table(root)
    rows = tuple(_rows(table, tasks))
    check_patients(rows, str(table.path))
    return SiteData(key, root, rows, rows)


def _rows(table: ManifestTable, tasks: list[str]) -> Iterator[Row]:
    """Yield what the rows of a manifest say."""
    place = {name: i for i, name in enumerate(table.columns)}
    image, patient, split = place["image"], place["patient"], place.get("split")
    labelled = [(task, place[task]) for task in tasks if task in place]
    other = [(name, i) for name, i in place.items() if name and name not in {*COLUMNS, *tasks}]
    for number, cells in enumerate(table.rows):
        told = cells[split].lower() if split is not None else ""
        if told not in SPLITS:
            raise MtfedError(f"{table.where(number)}: split should be train, val or test, it is {told!r}.")
        if not cells[image] or not cells[patient]:
            raise MtfedError(
                f"{table.where(number)}: image and patient must not be empty; patients keep training and test apart."
            )
        labels = {task: cells[i] for task, i in labelled if cells[i]}
        others = {name: cells[i] for name, i in other if cells[i]} if other else NONE
        yield Row(cells[image], cells[patient], SPLITS[told], labels, number, others)


def check_patients(rows: Sequence[Row], where: str) -> None:
    """Refuse a manifest that puts one patient into two splits, or one image under two patients."""
    for first, row in divided(rows):
        raise MtfedError(
            f"{where}: patient {row.patient!r} is in {first.split} and in {row.split}; "
            "put all images of a patient into one split."
        )
    for first, row in shared(rows):
        told = f"is of patient {first.patient!r} and of patient {row.patient!r}"
        if location(first) != location(row):
            told = f"is of patient {row.patient!r}, and the folder that it is in of patient {first.patient!r}"
        raise MtfedError(
            f"{where}: image {row.image!r} {told}; name each image under one patient, so that it cannot be in two "
            "splits."
        )


def divided(rows: Iterable[Row]) -> Iterator[tuple[Row, Row]]:
    """Yield the rows that are in another split than the first one of their patient, behind that one."""
    seen: dict[str, Row] = {}
    for row in rows:
        if (first := seen.setdefault(row.patient, row)).split != row.split:
            yield first, row


def shared(rows: Iterable[Row]) -> Iterator[tuple[Row, Row]]:
    """Yield the rows that are of another patient than the first one of their image, behind that one.

    Slices of a volume are of one image, and so are a folder and the files in it.
    """
    seen: dict[str, Row] = {}
    for row in rows:
        if (first := seen.setdefault(location(row), row)).patient != row.patient:
            yield first, row
    for place, row in seen.items():
        if (first := seen.get(dirname(place) or ".", row)).patient != row.patient:
            yield first, row


def location(row: Row) -> str:
    """Return the file or folder that a row's image is in, the same however the manifest writes it."""
    return normpath(file_of(row.image))


def write_site(data: SiteData, folder: Path, tasks: Mapping[str, Task]) -> None:
    """Write a site as a folder of its own: manifest with all its columns, images, and the files that labels name."""
    folder.mkdir(parents=True, exist_ok=True)
    held = sorted({task for row in data.rows for task in row.labels})
    others = list(dict.fromkeys(name for row in data.rows for name in row.others))
    in_files = [task for task in held if KIND_SPECS[tasks[task].kind].in_files]
    written: set[str] = set()
    with open(folder / MANIFEST, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*COLUMNS, *held, *others])
        for row in data.rows:
            cells = [row.labels.get(task, "") for task in held] + [row.others.get(name, "") for name in others]
            table.writerow([row.image, row.patient, row.split, *cells])
            named = {row.image: "image"} | {row.labels[task]: "label" for task in in_files if task in row.labels}
            for name in named.keys() - written:
                _copy(data, name, named[name], folder)
            written |= named.keys()


def _copy(data: SiteData, name: str, what: str, folder: Path) -> None:
    """Copy the files that an image or a label is made of."""
    for member in files_of(data, name):
        content = data.read(member, what)  # before any folder is made: a path must not lead out of this one
        target = folder / member
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
