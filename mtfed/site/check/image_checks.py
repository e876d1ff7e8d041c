"""Checks of images. Each function yields what it finds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

import numpy as np

from ...data.vocabulary import TABLES, has_word
from ...report.html import count
from .examine import ExaminedImage
from .occurrence import Occurrence, abbreviate, shorten
from .survey import Survey

MAX_DEVIATIONS = 8.0  # beyond is an outlier; practically no value of a normal distribution is that far out
MIN_SHIFT = 0.5  # share of the usual range of values in an image; smaller deviations matter little
MIN_IMAGES = 8  # images needed to know what is usual
MAX_RATIO = 4.0  # between a size or a spacing and the median
NEARLY_BLANK = 0.98  # share of the most frequent value


def with_fault(fault: str, survey: Survey) -> Iterator[Occurrence]:
    """Yield the images with a fault."""
    for image in survey.examined:
        if image.fault == fault:
            name = survey.rows[image.number].image
            yield Occurrence(name, shorten(image.reason, name, survey.data.key))


def unreadable(within_limit: bool, survey: Survey) -> Iterator[Occurrence]:
    """Yield the images that cannot be read if their number is within max-unreadable, or beyond it, as requested."""
    if bool(too_many_unreadable(survey)) != within_limit:
        yield from with_fault("unreadable", survey)


def too_many_unreadable(survey: Survey) -> list[Occurrence]:
    """Return the splits in which training would have to skip more images than max-unreadable allows."""
    labelled, skipped = Counter[str](), Counter[str]()
    for image in survey.examined:
        if survey.rows[image.number].labels:
            split = survey.split[image.number]
            labelled[split] += 1
            skipped[split] += bool(image.fault) or any(label.fault for label in image.labels.values())
    limit = survey.config.max_unreadable
    return [
        Occurrence(
            f"split {split}",
            f"{skipped[split]} of {total} labelled images cannot be used, max-unreadable allows {limit:.1%}",
        )
        for split, total in labelled.items()
        if skipped[split] > limit * total
    ]


def without_words(survey: Survey) -> Iterator[Occurrence]:
    """Yield the texts of the columns modality and body-part that contain no word of the vocabulary."""
    for column in TABLES:
        texts = Counter(text for row in survey.rows if (text := row.others.get(column, "")))
        for text, images in texts.items():
            if not has_word(text, column):
                yield Occurrence(f"{column} {text!r}", count(images, "image"))


def blank(survey: Survey) -> Iterator[Occurrence]:
    """Yield the images whose values are all the same."""
    for image in survey.readable:
        if image.low == image.high:
            yield Occurrence(survey.rows[image.number].image, f"every value is {image.low:g}")


def nearly_blank(survey: Survey) -> Iterator[Occurrence]:
    """Yield the images whose values are nearly all the same."""
    for image in survey.readable:
        if image.low < image.high and image.mode_share >= NEARLY_BLANK:
            detail = f"{image.mode_share:.1%} of its values are about the same"
            yield Occurrence(survey.rows[image.number].image, detail, (image.number,))


def mixed_value_types(survey: Survey) -> Iterator[Occurrence]:
    """Yield the types of values that most images do not have, such as 8 bits among Hounsfield units."""
    groups = _by_value_type(survey)
    usual = max(groups, key=lambda value_type: len(groups[value_type]), default="")
    for value_type, group in groups.items():
        if value_type != usual:
            names = abbreviate([survey.rows[image.number].image for image in group])
            low, high = min(image.low for image in group), max(image.high for image in group)
            detail = f"{count(len(group), 'image')} with values from {low:g} to {high:g}, such as {names}; "
            detail += f"the most common type is {usual} ({count(len(groups[usual]), 'image')})"
            yield Occurrence(value_type, detail, tuple(image.number for image in group[:4]))


def intensity_outliers(survey: Survey) -> Iterator[Occurrence]:
    """Yield the images whose values are far from those of the other images with the same type of values."""
    for value_type, group in _by_value_type(survey).items():
        group = [image for image in group if image.low < image.high]
        if len(group) < MIN_IMAGES:
            continue
        extent = float(np.median([image.high - image.low for image in group]))
        for name, measure in MEASURES.items():
            values = np.array([measure(image) for image in group])
            for index in _outliers(values, MIN_SHIFT * extent):
                number, value, median = group[index].number, values[index], float(np.median(values))
                detail = f"{name} {value:.4g}, the median of the images with {value_type} is {median:.4g}"
                yield Occurrence(survey.rows[number].image, detail, (number,))


MEASURES: dict[str, Callable[[ExaminedImage], float]] = {
    "mean value": lambda image: image.mean,
    "highest value": lambda image: image.high,
    "lowest value": lambda image: image.low,
}


def _outliers(values: np.ndarray, min_shift: float) -> list[int]:
    """Return the indices of values that are further from the median than scatter explains and than ``min_shift``."""
    median = np.median(values)
    # In a normal distribution, these percentiles are 2.56 deviations apart; if there are several sorts of images, they
    # are further apart. They never are the outermost values themselves.
    low, high = np.percentile(values, 10, method="higher"), np.percentile(values, 90, method="lower")
    deviation = max(1.4826 * float(np.median(abs(values - median))), float(high - low) / 2.56)
    return [int(i) for i in np.nonzero(abs(values - median) > max(MAX_DEVIATIONS * deviation, min_shift))[0]]


def _by_value_type(survey: Survey) -> dict[str, list[ExaminedImage]]:
    groups: dict[str, list[ExaminedImage]] = defaultdict(list)
    for image in survey.readable:
        groups[image.value_type].append(image)
    return groups


def size_outliers(survey: Survey) -> Iterator[Occurrence]:
    """Yield the images that are far larger or smaller than the others."""
    sides = {image.number: float(max(image.shape)) for image in survey.readable}
    for number, side, median in _ratio_outliers(sides):
        detail = f"its longest side has {side:.0f} pixels, the median is {median:.0f}"
        yield Occurrence(survey.rows[number].image, detail, (number,))


def spacing_outliers(survey: Survey) -> Iterator[Occurrence]:
    """Yield the images whose pixels are far larger or smaller than those of the others, in millimetres."""
    finest = {image.number: min(image.spacing) for image in survey.readable if image.spacing}
    spacings = {number: spacing for number, spacing in finest.items() if spacing > 0}
    for number, spacing, median in _ratio_outliers(spacings):
        detail = f"its pixels are {spacing:.3g} mm apart, the median is {median:.3g} mm"
        yield Occurrence(survey.rows[number].image, detail, (number,))


def _ratio_outliers(values: dict[int, float]) -> Iterator[tuple[int, float, float]]:
    """Yield the rows whose value is far larger or smaller than the median, the value, and the median."""
    if len(values) < MIN_IMAGES:
        return
    median = float(np.median(list(values.values())))
    for number, value in values.items():
        if not median / MAX_RATIO <= value <= median * MAX_RATIO:
            yield number, value, median


def missing_spacings(survey: Survey) -> Iterator[Occurrence]:
    """Yield the images without a pixel spacing if others have one."""
    without = [image for image in survey.readable if not image.spacing]
    if len(without) < len(survey.readable):
        for image in without:
            yield Occurrence(survey.rows[image.number].image, "its file contains no pixel spacing")


def unlisted(survey: Survey) -> Iterator[Occurrence]:
    """Yield the images in the folder that no row names."""
    yield from (Occurrence(name) for name in survey.unlisted)
