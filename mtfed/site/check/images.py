"""What may be wrong with images: each function yields what it finds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

import numpy as np

from .examine import Examined
from .survey import Survey, SurveyedImage, few, plain

FAR = 8.0  # deviations from the median at which an image stands out; of a normal distribution none is so far out
MIN_SHIFT = 0.5  # of an image's usual extent of values: what is less matters little
MIN_IMAGES = 8  # that it takes to say what is usual
TIMES = 4.0  # by which a size or a spacing that stands out differs from the usual
NEARLY_BLANK = 0.98  # share of an image's values that are all the same


def image_faults(faults: tuple[str, ...], survey: Survey) -> Iterator[SurveyedImage]:
    """Images with one of some faults."""
    for found in survey.examined:
        if found.fault in faults:
            image = survey.rows[found.number].image
            yield SurveyedImage(image, plain(found.said, image, survey.data.key))


def unreadable(within: bool, survey: Survey) -> Iterator[SurveyedImage]:
    """Images that cannot be read, if they are as many as max-unreadable allows, or if they are more."""
    if bool(too_many(survey)) != within:
        yield from image_faults(("unreadable",), survey)


def too_many(survey: Survey) -> list[SurveyedImage]:
    """Splits of which training would have to leave out more images than max-unreadable allows."""
    labelled, left = Counter[str](), Counter[str]()
    for found in survey.examined:
        if survey.rows[found.number].labels:
            split = survey.split[found.number]
            labelled[split] += 1
            left[split] += bool(found.fault) or any(label.fault for label in found.labels.values())
    allowed = survey.config.max_unreadable
    return [
        SurveyedImage(f"split {split}", f"{left[split]} of {count} labelled images cannot be used, {allowed:.1%} are allowed")
        for split, count in labelled.items() if left[split] > allowed * count
    ]  # fmt: skip


def blank(survey: Survey) -> Iterator[SurveyedImage]:
    """Images of which all values are the same."""
    for found in survey.readable:
        if found.low == found.high:
            yield SurveyedImage(survey.rows[found.number].image, f"every value is {found.low:g}")


def nearly_blank(survey: Survey) -> Iterator[SurveyedImage]:
    """Images of which nearly all values are the same."""
    for found in survey.readable:
        if found.low < found.high and found.mostly >= NEARLY_BLANK:
            said = f"{found.mostly:.1%} of its values are about the same"
            yield SurveyedImage(survey.rows[found.number].image, said, (found.number,))


def mixed_kinds(survey: Survey) -> Iterator[SurveyedImage]:
    """Images whose values are held in another way than most are, as 8 bits beside Hounsfield units."""
    held = _kinds(survey)
    usual = max(held, key=lambda kind: len(held[kind]), default="")
    for kind, group in held.items():
        if kind != usual:
            ranged = f"{min(e.low for e in group):g} to {max(e.high for e in group):g}"
            said = f"{_count(group)} of {kind} ({ranged}), as {few([survey.rows[e.number].image for e in group])}; "
            said += f"{_count(held[usual])} are of {usual}"
            yield SurveyedImage(kind, said, tuple(found.number for found in group[:4]))


def far_intensities(survey: Survey) -> Iterator[SurveyedImage]:
    """Images whose values lie far from those of the others of their kind."""
    for kind, group in _kinds(survey).items():
        group = [found for found in group if found.low < found.high]
        if len(group) < MIN_IMAGES:
            continue
        extent = float(np.median([found.high - found.low for found in group]))
        for name, measure in MEASURES.items():
            values = np.array([measure(found) for found in group])
            for index in _far(values, MIN_SHIFT * extent):
                number, value, usual = group[index].number, values[index], float(np.median(values))
                said = f"{name} {value:.4g}, of the images of {kind} it is {usual:.4g} in the middle"
                yield SurveyedImage(survey.rows[number].image, said, (number,))


MEASURES: dict[str, Callable[[Examined], float]] = {
    "mean value": lambda found: found.mean,
    "highest value": lambda found: found.high,
    "lowest value": lambda found: found.low,
}


def _far(values: np.ndarray, least: float) -> list[int]:
    """Return which values lie further from the middle than scatter explains, and further than ``least``."""
    middle = np.median(values)
    # 2.56 deviations apart, and wider where images are of several sorts; never the outermost themselves.
    low, high = np.percentile(values, 10, method="higher"), np.percentile(values, 90, method="lower")
    spread = max(1.4826 * float(np.median(abs(values - middle))), float(high - low) / 2.56)
    return [int(i) for i in np.nonzero(abs(values - middle) > max(FAR * spread, least))[0]]


def _kinds(survey: Survey) -> dict[str, list[Examined]]:
    held: dict[str, list[Examined]] = defaultdict(list)
    for found in survey.readable:
        held[found.kind].append(found)
    return held


def far_sizes(survey: Survey) -> Iterator[SurveyedImage]:
    """Images that are far larger or smaller than the others."""
    longest = {found.number: float(max(found.shape)) for found in survey.readable}
    for number, value, usual in _times_off(longest):
        said = f"its longest side has {value:.0f} pixels, that of others {usual:.0f}"
        yield SurveyedImage(survey.rows[number].image, said, (number,))


def far_spacings(survey: Survey) -> Iterator[SurveyedImage]:
    """Images whose pixels are far larger or smaller than those of the others, in millimetres."""
    finest = {found.number: min(found.spacing) for found in survey.readable if found.spacing and min(found.spacing) > 0}
    for number, value, usual in _times_off(finest):
        yield SurveyedImage(
            survey.rows[number].image, f"{value:.3g} mm between pixels, of others {usual:.3g} mm", (number,)
        )


def _times_off(values: dict[int, float]) -> Iterator[tuple[int, float, float]]:
    if len(values) < MIN_IMAGES:
        return
    usual = float(np.median(list(values.values())))
    for number, value in values.items():
        if not usual / TIMES <= value <= usual * TIMES:
            yield number, value, usual


def some_spacings(survey: Survey) -> Iterator[SurveyedImage]:
    """Images that do not say how large their pixels are, where others do."""
    without = [found for found in survey.readable if not found.spacing]
    if len(without) < len(survey.readable):
        for found in without:
            yield SurveyedImage(survey.rows[found.number].image, "its file tells no spacing")


def _count(group: list[Examined]) -> str:
    return f"{len(group):,} image{'s' * (len(group) != 1)}"


def unnamed(survey: Survey) -> Iterator[SurveyedImage]:
    """Images in the folder that no row names."""
    yield from (SurveyedImage(name) for name in survey.unnamed)
