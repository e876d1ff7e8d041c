"""Label tables: CSV files next to the images, with a column that names the images and columns that label them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ...data.formats import stem_of
from ...data.manifest import SPLITS
from .box_columns import read_boxes
from .columns import Candidate, guess

PATIENT_COLUMN = re.compile(r"(patient|subject|person|case|participant)[-_ ]?(id|number|no|name)?|pid", re.IGNORECASE)
SPLIT_COLUMN = re.compile(r"split|set|subset|partition", re.IGNORECASE)
# Left out of a drafted manifest: training does not need to know who a patient is.
PERSONAL_COLUMN = re.compile(
    r".*(patient|first|last|family|given|sur|full)[-_ ]?name.*|.*(birth|dob|address|phone|e-?mail|ssn|insurance).*|"
    r"name|initials|physician|doctor|zip([-_ ]?code)?|post[-_ ]?code|mrn",
    re.IGNORECASE,
)
MISSING_CELLS = frozenset({"", "na", "n/a", "nan", "null", "unknown", "?", "-"})


@dataclass
class LabelTable:
    """A table with a column that names images."""

    name: str
    image_column: str
    rows: dict[str, list[dict[str, str]]]  # image -> its rows, as column -> cell
    unmatched: int = 0  # rows that do not name an image of the folder
    malformed_lines: list[int] = field(default_factory=list)  # numbers of lines that are longer or shorter than line 1
    patients: dict[str, str] = field(default_factory=dict)  # image -> patient
    splits: dict[str, str] = field(default_factory=dict)  # image -> split
    candidates: list[Candidate] = field(default_factory=list)
    personal_columns: list[str] = field(default_factory=list)  # columns that identify persons; they are left out


def read_label_table(root: Path, name: str, images: Sequence[str]) -> LabelTable | None:
    """Return the labels that a table has for images, or ``None`` if none of its columns names the images."""
    lines, malformed_lines = _read_lines(root / name)
    if not lines:
        return None
    by_name = _by_name(images)
    image_column, max_matches = "", 0
    for column in lines[0]:
        matches = len({by_name[_normalise(line[column])] for line in lines if _normalise(line[column]) in by_name})
        if matches > max_matches:
            image_column, max_matches = column, matches
    matched = sum(_normalise(line[image_column]) in by_name for line in lines) if image_column else 0
    if not image_column or 2 * matched < len(lines):
        return None
    rows: dict[str, list[dict[str, str]]] = {}
    for line in lines:
        if image := by_name.get(_normalise(line[image_column])):
            cells = {column: cell for column, cell in line.items() if column != image_column}
            rows.setdefault(image, []).append(cells)
    table = LabelTable(name, image_column, rows, len(lines) - matched, malformed_lines)
    _read_columns(table)
    return table


def _read_lines(path: Path) -> tuple[list[dict[str, str]], list[int]]:
    """Return the rows of a CSV with a header, and the numbers of the lines that are longer or shorter than the header.

    Both are empty if the file cannot be read as a table.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    except OSError:
        return [], []
    first_line = text.split("\n", 1)[0]
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first_line.count))
        table = [(cells, reader.line_num) for cells in reader if cells]
    except csv.Error:
        return [], []
    header = [cell.strip() for cell in table[0][0]] if table else []
    lines = [
        {column: cell.strip() for column, cell in zip(header, cells, strict=True) if column}
        for cells, _ in table[1:]
        if len(cells) == len(header)
    ]
    return lines, [number for cells, number in table[1:] if len(cells) != len(header)]


def _by_name(images: Sequence[str]) -> dict[str, str]:
    """Return images by the names that a table may use for them: any end of the path, with or without the suffix.

    A name that several images share is left out.
    """
    matches: dict[str, set[str]] = {}
    for image in images:
        parts = PurePosixPath(image).parts
        names = {"/".join(parts[start:]) for start in range(len(parts))}
        for name in names | {name[: len(name) - len(parts[-1])] + stem_of(parts[-1]) for name in names}:
            matches.setdefault(name.lower(), set()).add(image)
    return {name: next(iter(images)) for name, images in matches.items() if len(images) == 1}


def _normalise(cell: str) -> str:
    return cell.replace("\\", "/").removeprefix("./").lower()


def _read_columns(table: LabelTable) -> None:
    """Find out what each column of a table means, and store it in the table."""
    columns = list(dict.fromkeys(column for rows in table.rows.values() for row in rows for column in row))
    boxes, box_columns = read_boxes(table.name, table.rows, columns)
    if boxes is not None:
        table.candidates.append(boxes)
    for column in columns:
        if column in box_columns:
            continue
        first = {image: rows[0][column] for image, rows in table.rows.items()}
        cells = {image: cell for image, cell in first.items() if cell.lower() not in MISSING_CELLS}
        differs_within_image = any(len({row[column] for row in rows}) > 1 for rows in table.rows.values())
        if PATIENT_COLUMN.fullmatch(column) and cells and not re.search("name", column, re.IGNORECASE):
            table.patients = table.patients or cells
        elif PERSONAL_COLUMN.fullmatch(column):
            table.personal_columns.append(column)
        elif SPLIT_COLUMN.fullmatch(column) and {cell.lower() for cell in cells.values()} <= SPLITS.keys():
            table.splits = table.splits or {image: SPLITS[cell.lower()] for image, cell in cells.items()}
        elif cells and not differs_within_image:
            table.candidates.append(guess(column, cells, f"column {column!r} of {table.name}"))
