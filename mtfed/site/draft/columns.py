"""Tables that lie beside images: which column names the images, and what the others could be labels of."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ...data.formats import stem_of
from ...data.manifest import SPLITS
from .names import task_name

PATIENT = re.compile(r"(patient|subject|person|case|participant)[-_ ]?(id|number|no|name)?|pid", re.IGNORECASE)
SPLIT = re.compile(r"split|set|subset|partition", re.IGNORECASE)
# Left out of a drafted manifest: training has no use for who it was.
PERSON = re.compile(
    r".*(patient|first|last|family|given|sur|full)[-_ ]?name.*|.*(birth|dob|address|phone|e-?mail|ssn|insurance).*|"
    r"name|initials|physician|doctor|zip([-_ ]?code)?|post[-_ ]?code|mrn",
    re.IGNORECASE,
)
BOX_CLASS = re.compile(r"(class|label|category|finding|lesion|type)[-_ ]?(name|type)?", re.IGNORECASE)
CORNER = (  # the columns of a box: its corner and size, or two corners
    (("x", "y", "w", "h"), True),
    (("x", "y", "width", "height"), True),
    (("bbox-x", "bbox-y", "bbox-w", "bbox-h"), True),
    (("bbox-x", "bbox-y", "bbox-width", "bbox-height"), True),
    (("xmin", "ymin", "xmax", "ymax"), False),
    (("x-min", "y-min", "x-max", "y-max"), False),
    (("x1", "y1", "x2", "y2"), False),
)
MAX_CLASSES = 12  # different words or numbers that a column of classes holds
MAX_FINDINGS = 40  # different words between separators that a column of findings holds
UNKNOWN = frozenset({"", "na", "n/a", "nan", "null", "unknown", "?", "-"})
NOTHING = frozenset({"no finding", "no findings", "none", "normal", "healthy", "negative"})


@dataclass
class Candidate:
    """What a column could be: a task of a kind, or something to carry along."""

    column: str  # as the manifest is to call it
    kind: str  # of a task; empty: no task
    cells: dict[str, str]  # by image
    classes: tuple[str, ...] = ()
    range: tuple[float, float] | None = None
    source: str = ""  # where it is from, in words
    doubt: str = ""  # what a person should look at, as what follows "task NAME: "


@dataclass
class LabelTable:
    """A table of which a column names images."""

    name: str
    key: str  # that column
    rows: dict[str, list[dict[str, str]]]  # by image
    unmatched: int = 0  # lines that name no image here
    odd: list[int] = field(default_factory=list)  # lines of another length than the header, from 1
    patients: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # columns that name persons


def read_label_table(root: Path, name: str, images: Sequence[str]) -> LabelTable | None:
    """Return what a table holds of the images; ``None`` if no column of it names them."""
    lines, odd = _lines(root / name)
    if not lines:
        return None
    known = _named(images)
    key, hits = "", 0
    for column in lines[0]:
        matched = len({known[_key(line[column])] for line in lines if _key(line[column]) in known})
        if matched > hits:
            key, hits = column, matched
    matches = sum(_key(line[key]) in known for line in lines) if key else 0
    if not key or 2 * matches < len(lines):
        return None
    rows: dict[str, list[dict[str, str]]] = {}
    for line in lines:
        for image in known.get(_key(line[key]), ()):
            rows.setdefault(image, []).append({column: cell for column, cell in line.items() if column != key})
    table = LabelTable(name, key, rows, len(lines) - matches, odd)
    _read_columns(table)
    return table


def _lines(path: Path) -> tuple[list[dict[str, str]], list[int]]:
    """Return the lines of a CSV with a header, by column, and which have another length; none of what is no table."""
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    except OSError:
        return [], []
    head = text.split("\n", 1)[0]
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
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


def _named(images: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return images by what a table may call them: their path, its end, their name, or that without suffix.

    A name that several images have stands for none of them.
    """
    found: dict[str, set[str]] = {}
    for image in images:
        parts = PurePosixPath(image).parts
        names = {"/".join(parts[start:]) for start in range(len(parts))}
        for name in names | {name[: len(name) - len(parts[-1])] + stem_of(parts[-1]) for name in names}:
            found.setdefault(name.lower(), set()).add(image)
    return {name: tuple(held) for name, held in found.items() if len(held) == 1}


def _key(cell: str) -> str:
    return cell.replace("\\", "/").removeprefix("./").lower()


def _read_columns(table: LabelTable) -> None:
    columns = list(dict.fromkeys(column for rows in table.rows.values() for row in rows for column in row))
    taken: set[str] = set()
    if (boxes := _boxes(table, columns, taken)) is not None:
        table.candidates.append(boxes)
    for column in columns:
        if column in taken:
            continue
        cells = {image: rows[0][column] for image, rows in table.rows.items() if _known(rows[0][column])}
        several = any(len({row[column] for row in rows}) > 1 for rows in table.rows.values())
        if PATIENT.fullmatch(column) and cells and not re.search("name", column, re.IGNORECASE):
            table.patients = table.patients or cells
        elif PERSON.fullmatch(column):
            table.left_out.append(column)
        elif SPLIT.fullmatch(column) and {cell.lower() for cell in cells.values()} <= SPLITS.keys():
            table.splits = table.splits or {image: SPLITS[cell.lower()] for image, cell in cells.items()}
        elif cells and not several:
            table.candidates.append(guess(column, cells, f"column {column!r} of {table.name}"))


def guess(column: str, cells: Mapping[str, str], source: str) -> Candidate:
    """Return what a column of one cell an image could be, by what stands in it."""
    found = Candidate(task_name(column), "", dict(cells), source=source)
    distinct = sorted(set(cells.values()))
    numbers = _numbers(distinct)
    if len(distinct) < 2:
        return found
    if numbers and len(distinct) <= MAX_CLASSES and all(number == round(number) for number in numbers):
        if len(distinct) * 2 > len(cells):
            return found  # hardly any number twice
        return _numbered(found)
    if numbers:
        if len(distinct) == len(cells) and all(n == round(n) for n in numbers) and _sequence(numbers):
            return found  # the numbers of rows
        found.kind, found.range = "regression", widened(numbers)
        found.doubt = (
            "is the range that of what can come, or only of what is here? All sites of a federation need the same."
        )
        return found
    separator = next((mark for mark in ";|" if any(mark in cell for cell in distinct)), "")
    if separator:
        return _findings(found, separator)
    if len(distinct) <= MAX_CLASSES and 2 * len(distinct) <= len(cells):
        found.kind, found.classes = "classification", tuple(distinct)
    return found


def _numbered(found: Candidate) -> Candidate:
    """Read a column of few whole numbers as classes; -1 beside others stands for no label."""
    held = {image: int(float(cell)) for image, cell in found.cells.items()}
    if unknown := min(held.values()) == -1 and len(set(held.values())) > 2:
        held = {image: number for image, number in held.items() if number >= 0}
    found.kind, found.classes = "classification", tuple(str(number) for number in sorted(set(held.values())))
    found.cells = {image: str(number) for image, number in held.items()}
    doubts = ["-1 is taken for no label;"] if unknown else []
    if len(found.classes) > 2:
        doubts.append(
            "are its numbers classes, grades in their order (kind ordinal), or amounts (kind regression, with a range)?"
        )
    found.doubt = " ".join(doubts)
    return found


def _findings(found: Candidate, separator: str) -> Candidate:
    """Read a column of several findings a cell as labels of each."""
    listed = {image: [word.strip() for word in cell.split(separator)] for image, cell in found.cells.items()}
    words = Counter(word for words in listed.values() for word in words if word)
    present = [word for word in sorted(words) if word.lower() not in NOTHING]
    if not present or len(words) > MAX_FINDINGS or any(";" in word or "," in word for word in present):
        return found
    found.kind, found.classes = "multi-label", tuple(present)
    found.cells = {
        image: "; ".join(word for word in words if word in present) or "none" for image, words in listed.items()
    }
    return found


def _boxes(table: LabelTable, columns: Sequence[str], taken: set[str]) -> Candidate | None:
    """Return the boxes that columns such as x, y, w, h hold, one line a box."""
    plain = {re.sub(r"[-_ ]+", "-", column.lower()): column for column in columns}
    form = next(((names, sizes) for names, sizes in CORNER if set(names) <= plain.keys()), None)
    if form is None:
        return None
    ends = [plain[name] for name in form[0]]
    classed = [column for column in columns if BOX_CLASS.fullmatch(column) and column not in ends]
    told = {column: [row[column] for rows in table.rows.values() for row in rows if row[column]] for column in classed}
    named = next(iter(sorted(classed, key=lambda column: bool(_numbers(told[column])))), "")  # words before numbers
    listed: dict[str, list[tuple[str, str]]] = {}
    for image, rows in table.rows.items():
        listed[image] = []
        for row in rows:
            numbers = _numbers([row[end] for end in ends])
            if len(numbers) == 4 and all(map(math.isfinite, numbers)):
                x, y, w, h = numbers if form[1] else (*numbers[:2], numbers[2] - numbers[0], numbers[3] - numbers[1])
                kind = re.sub(r"[,;]", " ", row[named]) if named else ""
                listed[image].append((",".join(f"{number:.6g}" for number in (x, y, w, h)), kind))
    classes = sorted({kind for boxes in listed.values() for _, kind in boxes if kind})
    taken |= set(ends)
    if len(classes) > 1 and any(len(boxes) > 1 for boxes in listed.values()):
        taken.add(named)  # of single boxes the class may be the image's own, too
    cells = {
        image: "; ".join(f"{box},{kind}" if len(classes) > 1 else box for box, kind in boxes) or "none"
        for image, boxes in listed.items()
    }
    source = f"columns {', '.join(ends)} of {table.name}"
    doubt = ""
    if empty := sum(cell == "none" for cell in cells.values()):
        doubt = (
            f"{empty} images have lines without a box in {table.name}, which is taken for 'none to find'; "
            "empty their cells if nobody looked."
        )
    return Candidate("boxes", "detection", cells, tuple(classes) or ("finding",), None, source, doubt)


def widened(numbers: Iterable[float]) -> tuple[float, float]:
    """Return round ends of a range that holds all numbers.

    >>> widened([3.2, 87.0])
    (0.0, 90.0)
    """
    held = [number for number in numbers if math.isfinite(number)]
    low, high = min(held), max(held)
    step = 10 ** math.floor(math.log10((high - low) or abs(high) or 1))
    ends = math.floor(low / step) * step, math.ceil(high / step) * step
    ends = ends if ends[0] < ends[1] else (ends[0], ends[0] + step)
    return round(ends[0], 9) + 0.0, round(ends[1], 9) + 0.0


def _known(cell: str) -> bool:
    return cell.lower() not in UNKNOWN


def _numbers(cells: Sequence[str]) -> list[float]:
    """Return cells as numbers; none if one is no number."""
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        return []


def _sequence(numbers: Sequence[float]) -> bool:
    return max(numbers) - min(numbers) == len(numbers) - 1
