"""What may be wrong with who is who: patients, images that are the same, names in headers."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from posixpath import normpath

from ...data.manifest import location, patient_conflicts, split_conflicts
from .duplicates import Pair
from .survey import Survey, SurveyedImage, few


def bad_lines(survey: Survey) -> Iterator[SurveyedImage]:
    """Lines of the manifest that are no rows."""
    yield from (SurveyedImage(where, said) for where, said in survey.lines)


def split_patients(survey: Survey) -> Iterator[SurveyedImage]:
    """Patients that are in two splits."""
    for patient in dict.fromkeys(row.patient for _, row in split_conflicts(survey.rows)):
        held = defaultdict(list)
        for row in survey.patients[patient]:
            held[row.split].append(row)
        told = "; ".join(f"{split}: {few([row.image for row in images])}" for split, images in held.items())
        yield SurveyedImage(patient, told, tuple(images[0].number for images in held.values()))


def two_patients(survey: Survey) -> Iterator[SurveyedImage]:
    """Images that are named under two patients."""
    held: dict[str, set[str]] = defaultdict(set)
    for first, row in patient_conflicts(survey.rows):
        held[location(first)] |= {first.patient, row.patient}
    yield from (SurveyedImage(image, f"is of the patients {few(sorted(patients))}") for image, patients in held.items())


def named_twice(survey: Survey) -> Iterator[SurveyedImage]:
    """Images that several rows name."""
    held = Counter((normpath(row.image), row.patient) for row in survey.rows)
    yield from (SurveyedImage(image, f"{count} rows name it") for (image, _), count in held.items() if count > 1)


def duplicates(exact: bool, across: bool, survey: Survey) -> Iterator[SurveyedImage]:
    """Pairs of images that are the same or nearly, of different patients or splits, or of one patient."""
    for pair in survey.pairs:
        first, second = survey.rows[pair.first], survey.rows[pair.second]
        apart = first.patient != second.patient or first.split != second.split
        if pair.exact != exact or apart != across or normpath(first.image) == normpath(second.image):
            continue
        told = [_alike(pair)]
        if first.patient != second.patient:
            told.append(f"patients {first.patient} and {second.patient}")
        if first.split != second.split:
            told.append(f"in {first.split} and in {second.split}")
        yield SurveyedImage(f"{first.image} and {second.image}", ", ".join(told), (pair.first, pair.second))


def _alike(pair: Pair) -> str:
    return "the same values" if pair.exact else f"correlation {math.floor(1000 * pair.correlation) / 1000:.3f}"


def tags(names: frozenset[str], survey: Survey) -> Iterator[SurveyedImage]:
    """Identifying attributes that files fill, and how many files."""
    files: dict[str, tuple[str, ...]] = {}  # once each, of a folder and of a row of its own
    for found in survey.examined:
        files |= found.tags
    counts = Counter(name for filled in files.values() for name in filled if name in names)
    for name, count in counts.most_common():
        yield SurveyedImage(name, f"{count:,} file{'s' * (count != 1)}")
