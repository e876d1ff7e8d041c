"""A column of labels: which kind of task it could be, judged by its cells."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .names import task_name

MAX_CLASSES = 12  # distinct words or numbers in a column of classes
MAX_FINDINGS = 40  # distinct words between the separators in a column of findings
NO_FINDING = frozenset({"no finding", "no findings", "none", "normal", "healthy", "negative"})


@dataclass
class Candidate:
    """A drafted column: a task, or other data that the manifest keeps."""

    column: str  # its name in the manifest
    kind: str  # the task's kind, "" if the column is not a task
    cells: dict[str, str]  # image -> cell
    classes: tuple[str, ...] = ()
    range: tuple[float, float] | None = None
    source: str = ""  # where the labels come from, in words
    doubt: str = ""  # what a person should check, phrased to follow "task NAME: "


def guess(column: str, cells: Mapping[str, str], source: str) -> Candidate:
    """Return what a column with one cell per image could be, judged by its cells."""
    candidate = Candidate(task_name(column), "", dict(cells), source=source)
    distinct = sorted(set(cells.values()))
    if len(distinct) < 2:
        return candidate
    if numbers := parse_numbers(distinct):
        return _guess_numbers(candidate, numbers)
    separator = next((mark for mark in ";|" if any(mark in cell for cell in distinct)), "")
    if separator:
        return _guess_findings(candidate, separator)
    if len(distinct) <= MAX_CLASSES and 2 * len(distinct) <= len(cells):
        candidate.kind, candidate.classes = "classification", tuple(distinct)
    return candidate


def _guess_numbers(candidate: Candidate, numbers: Sequence[float]) -> Candidate:
    """Take a column with these distinct numbers for classes if they are few and whole, else for a regression."""
    count, is_whole = len(candidate.cells), all(number.is_integer() for number in numbers)
    if is_whole and len(numbers) <= MAX_CLASSES:
        return _as_classes(candidate) if 2 * len(numbers) <= count else candidate  # else hardly any number occurs twice
    if is_whole and len(numbers) == count and max(numbers) - min(numbers) == count - 1:
        return candidate  # row numbers
    candidate.kind, candidate.range = "regression", widened(numbers)
    candidate.doubt = (
        "does the range cover all possible values, or only the values in this folder? All sites of a federation need "
        "the same range."
    )
    return candidate


def _as_classes(candidate: Candidate) -> Candidate:
    """Read a column of few whole numbers as classes; -1 among three or more numbers means "no label"."""
    numbers = {image: int(float(cell)) for image, cell in candidate.cells.items()}
    has_missing = min(numbers.values()) == -1 and len(set(numbers.values())) > 2
    if has_missing:
        numbers = {image: number for image, number in numbers.items() if number >= 0}
    candidate.kind = "classification"
    candidate.classes = tuple(str(number) for number in sorted(set(numbers.values())))
    candidate.cells = {image: str(number) for image, number in numbers.items()}
    if len(candidate.classes) > 2:
        candidate.doubt = (
            "are its numbers unordered classes, ordered grades (kind ordinal), or quantities (kind regression, with a "
            "range)?"
        )
    if has_missing:
        candidate.doubt = "-1 is read as 'no label'" + (f"; {candidate.doubt}" if candidate.doubt else ".")
    return candidate


def _guess_findings(candidate: Candidate, separator: str) -> Candidate:
    """Read a column with several findings per cell as a multi-label task."""
    findings = {image: [word.strip() for word in cell.split(separator)] for image, cell in candidate.cells.items()}
    counts = Counter(word for words in findings.values() for word in words if word)
    classes = [word for word in sorted(counts) if word.lower() not in NO_FINDING]
    if not classes or len(counts) > MAX_FINDINGS or any(";" in word or "," in word for word in classes):
        return candidate
    candidate.kind, candidate.classes = "multi-label", tuple(classes)
    for image, words in findings.items():
        candidate.cells[image] = "; ".join(word for word in words if word in classes) or "none"
    return candidate


def widened(numbers: Iterable[float]) -> tuple[float, float]:
    """Return the round ends of a range that contains all numbers.

    >>> widened([3.2, 87.0])
    (0.0, 90.0)
    """
    finite = [number for number in numbers if math.isfinite(number)]
    low, high = min(finite), max(finite)
    step = 10 ** math.floor(math.log10((high - low) or abs(high) or 1))
    ends = math.floor(low / step) * step, math.ceil(high / step) * step
    ends = ends if ends[0] < ends[1] else (ends[0], ends[0] + step)
    return round(ends[0], 9) + 0.0, round(ends[1], 9) + 0.0


def parse_numbers(cells: Sequence[str]) -> list[float]:
    """Return cells as numbers, or an empty list if one of them is not a number."""
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        return []
