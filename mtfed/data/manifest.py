"""A site's data is a folder (or zip) with a ``manifest.csv``: one row an image, one column a task.

Columns: ``image`` (path inside the folder), ``patient``, optionally ``split`` (train, val, test; empty = train), and a
column for every task, of which ``mtfed config`` says what its cells hold: a class, a number, boxes, the path of a file.
An empty cell means that the image has no label for that task. Other columns are left alone.
"""

from __future__ import annotations

import csv
import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from ..errors import MtfedError
from ..tasks import KINDS, Task
from .root import Root

MANIFEST = "manifest.csv"
COLUMNS = ("image", "patient", "split")
SPLITS = {"": "train", "train": "train", "val": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
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
    order.
    """

    key: str
    root: Root
    rows: tuple[Row, ...]
    pool: tuple[Row, ...] = ()

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
    try:
        text = root.read(MANIFEST).decode("utf-8-sig")
    except (OSError, KeyError, zipfile.BadZipFile):
        raise MtfedError(f"Expected a site folder with a {MANIFEST}, found none in {path}.") from None
    except UnicodeDecodeError:
        raise MtfedError(f"{path / MANIFEST} is not UTF-8 text; save it as CSV in UTF-8.") from None
    rows = []
    for line, record in _table(text, str(path / MANIFEST)):
        where = f"{path / MANIFEST}, line {line}"
        split = record.get("split", "").lower()
        if split not in SPLITS:
            raise MtfedError(f"{where}: split should be train, val or test, it is {split!r}.")
        image, patient = record["image"], record["patient"]
        if not image or not patient:
            raise MtfedError(f"{where}: image and patient must not be empty; patients keep training and test apart.")
        labels = {task: label for task in tasks if (label := record.get(task, ""))}
        others = {name: cell for name, cell in record.items() if cell and name not in {*COLUMNS, *tasks}}
        rows.append(Row(image, patient, SPLITS[split], labels, len(rows), others))
    check_patients(rows, str(path / MANIFEST))
    return SiteData(key, root, tuple(rows), tuple(rows))


def _table(text: str, where: str) -> list[tuple[int, dict[str, str]]]:
    """Return the line and the cells by column of every row; refuse what would put a cell into a wrong column."""
    table = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        lines = [(table.line_num, [cell.strip() for cell in cells]) for cells in table if cells]
    except csv.Error as error:
        raise MtfedError(f"{where}: line {table.line_num} is not CSV: {error}; look at its quotes.") from None
    columns = lines[0][1] if lines else []
    missing = {"image", "patient"} - set(columns)
    if missing:
        raise MtfedError(
            f"{where} lacks the column {' and '.join(sorted(missing))}; its first line must name the columns, "
            f"separated by commas, it names {', '.join(map(repr, columns)) or 'none'}."
        )
    twice = [name for name in columns if name and columns.count(name) > 1]
    if twice:
        raise MtfedError(f"{where} has two columns {twice[0]!r}; rename or remove one.")
    for line, cells in lines[1:]:
        if len(cells) != len(columns):
            raise MtfedError(
                f"{where}: line {line} has {len(cells)} cells, the first line names {len(columns)}; put cells with "
                "commas in quotes."
            )
    return [(line, dict(zip(columns, cells, strict=True))) for line, cells in lines[1:]]


def check_patients(rows: list[Row], where: str) -> None:
    """Refuse a manifest that puts one patient into two splits, or one image under two patients."""
    split_of: dict[str, str] = {}
    patient_of: dict[PurePosixPath, str] = {}
    for row in rows:
        if split_of.setdefault(row.patient, row.split) != row.split:
            raise MtfedError(
                f"{where}: patient {row.patient!r} is in {split_of[row.patient]} and in {row.split}; "
                "put all images of a patient into one split."
            )
        if (other := patient_of.setdefault(PurePosixPath(row.image), row.patient)) != row.patient:
            raise MtfedError(
                f"{where}: image {row.image!r} is of patient {other!r} and of patient {row.patient!r}; name each image "
                "under one patient, so that it cannot be in two splits."
            )


def write_site(data: SiteData, folder: Path, tasks: Mapping[str, Task]) -> None:
    """Write a site as a folder of its own: manifest, images, and the files that labels of the tasks name."""
    folder.mkdir(parents=True, exist_ok=True)
    held = sorted({task for row in data.rows for task in row.labels})
    in_files = [task for task in held if KINDS[tasks[task].kind].in_files]
    with open(folder / MANIFEST, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "patient", "split", *held])
        for row in data.rows:
            table.writerow([row.image, row.patient, row.split, *(row.labels.get(task, "") for task in held)])
            named = {row.image: "image"} | {row.labels[task]: "label" for task in in_files if task in row.labels}
            for name, what in named.items():
                content = data.read(name, what)  # before any folder is made: a path must not lead out of this one
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
