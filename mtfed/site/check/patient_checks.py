"""Checks of patients, duplicate images, and identifying DICOM attributes. Each function yields what it finds."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Set
from posixpath import normpath

from ...data.manifest import location, patient_conflicts, split_conflicts
from .occurrence import Occurrence, abbreviate
from .survey import Survey


def divided_patients(survey: Survey) -> Iterator[Occurrence]:
    """Yield the patients that are in two splits."""
    for patient in dict.fromkeys(row.patient for _, row in split_conflicts(survey.rows)):
        by_split = defaultdict(list)
        for row in survey.patients[patient]:
            by_split[row.split].append(row)
        detail = "; ".join(f"{split}: {abbreviate([row.image for row in rows])}" for split, rows in by_split.items())
        yield Occurrence(patient, detail, tuple(rows[0].number for rows in by_split.values()))


def shared_images(survey: Survey) -> Iterator[Occurrence]:
    """Yield the images that belong to two patients."""
    patients: dict[str, set[str]] = defaultdict(set)
    for first, second in patient_conflicts(survey.rows):
        patients[location(first)] |= {first.patient, second.patient}
    for image, names in patients.items():
        yield Occurrence(image, f"listed under the patients {abbreviate(sorted(names))}")


def repeated_images(survey: Survey) -> Iterator[Occurrence]:
    """Yield the images that several rows name."""
    counts = Counter((normpath(row.image), row.patient) for row in survey.rows)
    yield from (Occurrence(image, f"in {count} rows") for (image, _), count in counts.items() if count > 1)


def duplicates(exact: bool, across: bool, survey: Survey) -> Iterator[Occurrence]:
    """Yield pairs of images that are the same or nearly the same.

    Args:
        exact: whether all their values are equal; else they are nearly the same.
        across: whether they have different patients or splits; else the same.
        survey: the site.
    """
    for pair in survey.duplicates:
        first, second = survey.rows[pair.first], survey.rows[pair.second]
        is_across = first.patient != second.patient or first.split != second.split
        if pair.exact != exact or is_across != across or normpath(first.image) == normpath(second.image):
            continue
        rounded = math.floor(1000 * pair.correlation) / 1000
        details = ["identical values" if pair.exact else f"correlation {rounded:.3f}"]
        if first.patient != second.patient:
            details.append(f"patients {first.patient} and {second.patient}")
        if first.split != second.split:
            details.append(f"splits {first.split} and {second.split}")
        yield Occurrence(f"{first.image} and {second.image}", ", ".join(details), (pair.first, pair.second))


def with_tags(names: Set[str], survey: Survey) -> Iterator[Occurrence]:
    """Yield those of some DICOM attributes that files fill, with the number of files."""
    tags: dict[str, tuple[str, ...]] = {}  # by file, because several rows can name the same file
    for image in survey.examined:
        tags |= image.tags
    counts = Counter(name for filled in tags.values() for name in filled if name in names)
    for name, count in counts.most_common():
        yield Occurrence(name, f"{count:,} file{'s' * (count != 1)}")
