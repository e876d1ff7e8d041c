"""Small drawings of the page: how numbers are spread, and shares of a whole."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...report.html import Html, escape, tag, with_minus

BARS = 28
WIDTH, HEIGHT, FOOT = 320, 96, 18  # of a drawing, and of the numbers beneath


def histogram(values: Sequence[float], title: str) -> Html:
    """Return how numbers are spread, as bars; on a scale of logarithms where they go over several magnitudes."""
    held = np.array([value for value in values if math.isfinite(value)])
    if not len(held):
        return escape("")
    low, high = float(held.min()), float(held.max())
    if low == high:
        said = f"{written(low)} throughout"
        return tag("figure", tag("figcaption", f"{title}: {said}"))
    logarithmic = low > 0 and high / low > 30
    scaled = np.log(held) if logarithmic else held
    counts, edges = np.histogram(scaled, BARS)
    step, most = WIDTH / BARS, counts.max()
    drawn = [
        tag("rect", x=f"{i * step:.1f}", y=f"{HEIGHT - max(h, 1.5):.1f}", width=f"{step - 1.5:.1f}",
            height=f"{max(h, 1.5):.1f}", fill="#56789c")
        for i, count in enumerate(counts) if count for h in [count / most * (HEIGHT - 4)]
    ]  # fmt: skip
    drawn.append(tag("line", x1=0, x2=WIDTH, y1=HEIGHT + 0.5, y2=HEIGHT + 0.5, stroke="#9aa5b1"))
    middle = (edges[0] + edges[-1]) / 2
    ends = (edges[0], "start", 0), (middle, "middle", WIDTH / 2), (edges[-1], "end", WIDTH)
    for value, anchor, x in ends:
        said = written(math.exp(value) if logarithmic else float(value))
        drawn.append(tag("text", said, x=x, y=HEIGHT + FOOT - 4, text_anchor=anchor, font_size=11, fill="#5b6675"))
    alt = f"{title}: {len(held)} images, from {written(low)} to {written(high)}, half of them below "
    alt += written(float(np.median(held)))
    svg = tag("svg", *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT + FOOT}", role="img", aria_label=alt)
    return tag("figure", tag("figcaption", title), svg)


def written(value: float) -> str:
    """Return a number as short as it can be understood."""
    if value and (abs(value) < 0.01 or abs(value) >= 1e6):
        return with_minus(f"{value:.2g}")
    digits = 0 if abs(value) >= 100 or value == round(value) else 1 if abs(value) >= 10 else 2
    return with_minus(f"{value:,.{digits}f}")


def share(part: int, whole: int, colour: str = "#56789c") -> Html:
    """Return a bar that is filled as far as a part is of the whole."""
    filled = 100 * part / whole if whole else 0
    bar = [
        tag("rect", width=100, height=10, fill="#e9edf2"),
        tag("rect", width=f"{filled:.1f}", height=10, fill=colour),
    ]
    return tag("svg", *bar, viewBox="0 0 100 10", preserveAspectRatio="none", class_="bar", aria_hidden="true")
