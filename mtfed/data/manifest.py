"""The data of a site: a folder or zip with a manifest, which has one row per image and one column per task.

The manifest is a CSV or Parquet file with the columns

* ``image``: path inside the folder,
* ``patient``: the patient's number or pseudonym,
* ``split`` (optional): train, val or test; empty means train,
* one column for each task, whose cells contain a class, a number, boxes, or the path of a file (see ``mtfed config``).
  An empty cell means that the image has no label for the task.

The columns ``modality``, ``body-part`` and ``dimensions`` describe an image; where a cell is empty, or there is no such
column, what the site file (:mod:`.site_file`) gives for all images applies. Other columns are kept, but not used.
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
from ..tasks.task import Task
from .formats import file_of, files_of
from .manifest_table import MANIFEST, ManifestTable, read_manifest_table
from .root import Root
from .site_file import DIMENSIONS, SITE_FILE, find_site_file, write_site_file

if TYPE_CHECKING:
    from .feature_shift import Scanners

COLUMNS = ("image", "patient", "split")
NO_CELLS: Mapping[str, str] = {}  # shared by all rows without other cells, of which there may be many
SPLITS = {"": "train", "train": "train", "val": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True, slots=True)
class Row:
    """One image: its path, its patient, and its labels by task; a task without a label is absent."""

    image: str
    patient: str
    split: str
    labels: dict[str, str]
    number: int = field(default=0, compare=False)  # its index in SiteData.pool
    others: Mapping[str, str] = field(default_factory=dict, compare=False)  # cells of columns that are not tasks


@dataclass(frozen=True)
class SiteData:
    """The rows of one site, and the root of their files.

    Several simulated sites may share one manifest; ``pool`` contains all its rows in the manifest's order, and a row's
    ``number`` is its index there.
    """

    key: str
    root: Root
    rows: tuple[Row, ...]
    pool: tuple[Row, ...] = ()
    scanners: Scanners | None = None  # how the images are made to differ from those of other simulated sites
    site_cells: Mapping[str, str] = field(default_factory=dict)  # cells of all rows in columns that the manifest lacks
    dimensions: int = 2  # of images without a label, unless their own cell names others

    def part(self, split: str) -> SiteData:
        """Return the rows of one split."""
        return replace(self, rows=tuple(row for row in self.rows if row.split == split))

    def count(self, task: str) -> int:
        """Return how many rows are labelled for a task."""
        return sum(task in row.labels for row in self.rows)

    def read(self, name: str, what: str) -> bytes:
        """Return a file's bytes; raise :class:`MtfedError` that names it, as ``what``, if it cannot be read."""
        try:
            return self.root.read(name)
        except (KeyError, FileNotFoundError, NotADirectoryError):
            reason = "there is no such file; add it, or correct the manifest"
        except OSError as error:
            reason = f"{error.strerror or error}; repair or remove it"
        except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            reason = f"{error}; repair or remove it"
        raise MtfedError(f"Cannot read {what} {name} of site {self.key}: {reason}.")


def read_site(path: Path, key: str, tasks: list[str], site_cells: Mapping[str, str] = NO_CELLS) -> SiteData:
    """Read a site's manifest and what its site file gives for all images.

    Args:
        path: the site's folder or zip.
        key: the site's name.
        tasks: the columns that contain labels.
        site_cells: the modality, body part and dimensions of all images; they precede those of the site file.

    Raises:
        MtfedError: naming file, line and column of the first fault.
    """
    root = Root(path)
    table = read_manifest_table(root)
    cells = {name: cell for name, cell in (find_site_file(root).cells | dict(site_cells)).items() if name not in tasks}
    rows = tuple(_rows(table, tasks, cells))
    check_patients(rows, str(table.path))
    return SiteData(key, root, rows, rows, None, {name: cells[name] for name in cells if name not in table.columns})


def _rows(table: ManifestTable, tasks: list[str], site_cells: Mapping[str, str]) -> Iterator[Row]:
    """Yield the rows of a manifest; empty cells are filled with those of the site."""
    index = {name: i for i, name in enumerate(table.columns)}
    image, patient, split = index["image"], index["patient"], index.get("split")
    labelled = [(task, index[task]) for task in tasks if task in index]
    other = [(name, i) for name, i in index.items() if name and name not in {*COLUMNS, *tasks}]
    shared: dict[tuple[str, ...], Mapping[str, str]] = {}  # rows with equal cells share them: there may be many rows
    for number, cells in enumerate(table.rows):
        name = cells[split].lower() if split is not None else ""
        if name not in SPLITS:
            raise MtfedError(f"{table.where(number)}: split should be train, val or test, it is {name!r}.")
        if not cells[image] or not cells[patient]:
            problem = "image and patient must not be empty; patients keep training and test apart"
            raise MtfedError(f"{table.where(number)}: {problem}.")
        labels = {task: cells[i] for task, i in labelled if cells[i]}
        key = tuple(cells[i] for _, i in other)
        if (others := shared.get(key)) is None:
            own = {name: cell for (name, _), cell in zip(other, key, strict=True) if cell}
            if (dimensions := own.get(DIMENSIONS, "2")) not in ("2", "3"):
                raise MtfedError(
                    f"{table.where(number)}: dimensions should be 2 (an image) or 3 (a volume), it is {dimensions!r}; "
                    "correct it, or rename the column if it describes something else."
                )
            others = shared[key] = own | {name: cell for name, cell in site_cells.items() if name not in own}
        yield Row(cells[image], cells[patient], SPLITS[name], labels, number, others)


def check_patients(rows: Sequence[Row], where: str) -> None:
    """Refuse a manifest in which a patient is in two splits, or an image belongs to two patients."""
    for first, row in split_conflicts(rows):
        raise MtfedError(
            f"{where}: patient {row.patient!r} is in {first.split} and in {row.split}; "
            "put all images of a patient into one split."
        )
    for first, row in patient_conflicts(rows):
        problem = f"is of patient {first.patient!r} and of patient {row.patient!r}"
        if location(first) != location(row):
            problem = f"is of patient {row.patient!r}, and the folder that it is in of patient {first.patient!r}"
        raise MtfedError(
            f"{where}: image {row.image!r} {problem}; name each image under one patient, so that it cannot be in two "
            "splits."
        )


def split_conflicts(rows: Iterable[Row]) -> Iterator[tuple[Row, Row]]:
    """Yield each row that is in another split than the first row of its patient, preceded by that first row."""
    seen: dict[str, Row] = {}
    for row in rows:
        if (first := seen.setdefault(row.patient, row)).split != row.split:
            yield first, row


def patient_conflicts(rows: Iterable[Row]) -> Iterator[tuple[Row, Row]]:
    """Yield each row that has another patient than the first row of its image, preceded by that first row.

    Slices of a volume belong to one image, and so do a folder and the files in it.
    """
    seen: dict[str, Row] = {}
    for row in rows:
        if (first := seen.setdefault(location(row), row)).patient != row.patient:
            yield first, row
    for path, row in seen.items():
        if (first := seen.get(dirname(path) or ".", row)).patient != row.patient:
            yield first, row


def location(row: Row) -> str:
    """Return the normalised path of the file or folder that contains a row's image."""
    return normpath(file_of(row.image))


def write_site(data: SiteData, folder: Path, tasks: Mapping[str, Task]) -> None:
    """Write a site as a folder of its own: manifest with all its columns, images, files of labels, and site file.

    There is a site file only if the site has one that describes its images in place of the manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    labelled = sorted({task for row in data.rows for task in row.labels if not tasks[task].spec.every_image})
    others = [
        name for name in dict.fromkeys(name for row in data.rows for name in row.others) if name not in data.site_cells
    ]
    in_files = [task for task in labelled if tasks[task].spec.in_files]
    if data.site_cells:
        write_site_file(folder / SITE_FILE, data.site_cells)
    written: set[str] = set()
    with open(folder / MANIFEST, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*COLUMNS, *labelled, *others])
        for row in data.rows:
            cells = [row.labels.get(task, "") for task in labelled] + [row.others.get(name, "") for name in others]
            table.writerow([row.image, row.patient, row.split, *cells])
            names = {row.image: "image"} | {row.labels[task]: "label" for task in in_files if task in row.labels}
            for name in names.keys() - written:
                _copy(data, name, names[name], folder)
            written |= names.keys()


def _copy(data: SiteData, name: str, what: str, folder: Path) -> None:
    """Copy all files of an image or a label."""
    for member in files_of(data, name):
        content = data.read(member, what)  # before any folder is made: a path must not lead out of this one
        target = folder / member
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
