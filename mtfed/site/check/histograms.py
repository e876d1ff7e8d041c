"""Small charts of the page: histograms, and bars that show a share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...report.html import Html, escape, tag, with_minus

BINS = 28
WIDTH, HEIGHT, AXIS_HEIGHT = 320, 96, 18  # pixels of the bars, and of the numbers below them
MIN_LOG_RATIO = 30  # between the highest and the lowest value of a logarithmic axis
BAR_COLOUR = "#56789c"


def histogram(values: Sequence[float], title: str) -> Html:
    """Return a histogram of the finite values; its axis is logarithmic if they span several orders of magnitude."""
    finite = np.array([value for value in values if math.isfinite(value)])
    if not len(finite):
        return escape("")
    low, high = float(finite.min()), float(finite.max())
    if low == high:
        return tag("figure", tag("figcaption", f"{title}: always {short_number(low)}"))
    is_log = low > 0 and high / low > MIN_LOG_RATIO
    counts, edges = np.histogram(np.log(finite) if is_log else finite, BINS)
    step = WIDTH / BINS
    elements = []
    for i, height in enumerate(counts / counts.max() * (HEIGHT - 4)):
        if counts[i]:
            height = max(height, 1.5)
            place = {"x": f"{i * step:.1f}", "y": f"{HEIGHT - height:.1f}"}
            elements.append(tag("rect", **place, width=f"{step - 1.5:.1f}", height=f"{height:.1f}", fill=BAR_COLOUR))
    elements.append(tag("line", x1=0, x2=WIDTH, y1=HEIGHT + 0.5, y2=HEIGHT + 0.5, stroke="#9aa5b1"))
    middle = (edges[0] + edges[-1]) / 2
    for position, anchor, x in ((edges[0], "start", 0), (middle, "middle", WIDTH / 2), (edges[-1], "end", WIDTH)):
        text = short_number(math.exp(position) if is_log else float(position))
        style = {"text_anchor": anchor, "font_size": 11, "fill": "#5b6675"}
        elements.append(tag("text", text, x=x, y=HEIGHT + AXIS_HEIGHT - 4, **style))
    ends, median = f"{short_number(low)} to {short_number(high)}", short_number(float(np.median(finite)))
    description = f"{title}: {len(finite)} images, from {ends}, median {median}"
    box = f"0 0 {WIDTH} {HEIGHT + AXIS_HEIGHT}"
    svg = tag("svg", *elements, viewBox=box, role="img", aria_label=description)
    return tag("figure", tag("figcaption", title), svg)


def short_number(value: float) -> str:
    """Return a number with as few digits as it needs to be understood."""
    if value and (abs(value) < 0.01 or abs(value) >= 1e6):
        return with_minus(f"{value:.2g}")
    digits = 0 if abs(value) >= 100 or value == round(value) else 1 if abs(value) >= 10 else 2
    return with_minus(f"{value:,.{digits}f}")


def share_bar(part: int, whole: int) -> Html:
    """Return a bar that shows the share of a part in a whole."""
    share = 100 * part / whole if whole else 0
    rectangles = [
        tag("rect", width=100, height=10, fill="#e9edf2"),
        tag("rect", width=f"{share:.1f}", height=10, fill=BAR_COLOUR),
    ]
    return tag("svg", *rectangles, viewBox="0 0 100 10", preserveAspectRatio="none", class_="bar", aria_hidden="true")
