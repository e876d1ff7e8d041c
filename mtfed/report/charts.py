"""Charts: curves drawn by matplotlib as inline SVG, and small marks inside tables."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..tasks.specs import METRIC_SPECS
from .html import Html, escape, number, tag, with_minus
from .records import Group, mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_DRAWN = -1.0  # lower values are cut off: R² may start at minus thousands
# An axis whose largest number reaches the first column is labelled in units of the second, with this suffix.
TICK_UNITS = ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"), (1e-2, 1.0, ""), (0.0, 1e-3, "e-3"))
Points = dict[int, tuple[float, float, float]]  # round -> mean, lowest and highest value of the runs
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",  # keep text as text, so that it uses the page's font and can be searched
    "font.size": 8.5,
    "axes.edgecolor": "#9aa5b1",
    "axes.linewidth": 0.7,
    **dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color"), "#5b6675"),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 0),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.spines.left"), False),
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e6eaef",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
}


def curves(groups: Sequence[Group], task: str, metric: str, title: str, name: str) -> Html:
    """Return a metric by round: solid for the hospitals' validation images, dashed for the test images; or the loss.

    ``name`` prefixes the ids inside the SVG, because a page contains many charts.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    styles = {"train": "-"} if metric == "loss" else {"validation": "-", "test": (0, (3, 2))}
    drawn: list[float] = []
    descriptions = []
    with matplotlib.rc_context(SETTINGS | {"svg.hashsalt": name}):  # type: ignore[arg-type]
        figure = Figure(figsize=(4.1, 2.6))
        axes = figure.add_axes((0.12, 0.15, 0.87, 0.82))  # the same in every chart, so that charts line up
        for i, group in enumerate(groups):
            width = 1.4 + 0.5 * min(len(groups) - 1 - i, 2)  # wider for earlier lines, which then show through
            for split, style in styles.items():
                if points := _by_round(group, task, split, metric):
                    descriptions.append(f"{group.label}, {split}: {_describe(points)}")
                    drawn += [end for _, *ends in points.values() for end in ends]
                    _draw(axes, points, group.colour, style, width)
        if metric != "loss":
            drawn += _baselines(axes, groups, task, metric)
        if drawn:
            bottom, top = limits(drawn, share=metric in METRIC_SPECS and not METRIC_SPECS[metric].in_units)
            marked = [tick for tick in MaxNLocator(nbins=6).tick_values(bottom, top) if bottom <= tick <= top]
            axes.set_yticks(marked, ticks(marked))
            axes.set_ylim(bottom, top)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        axes.set_xlabel("round")
        axes.margins(x=0.03)
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # so that the same runs give the same page
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    if not descriptions:
        return escape("")
    svg = _inline(buffer.getvalue(), name, f"{title} by round. {'; '.join(descriptions)}.")
    note = f" (values below {with_minus(f'{MIN_DRAWN:g}')} are not drawn)" if min(drawn) < MIN_DRAWN else ""
    return tag("figure", tag("figcaption", title, note), svg)


def limits(drawn: Sequence[float], *, share: bool) -> tuple[float, float]:
    """Return the limits of an axis: slightly beyond the values, but within the range that the metric can reach.

    Args:
        drawn: the values; those below :data:`MIN_DRAWN` are cut off.
        share: whether the metric is at most 1.
    """
    low, high = min(drawn), max(drawn)
    if cut := low < MIN_DRAWN:
        low, high = MIN_DRAWN, max(high, 0.0)
    margin = 0.05 * ((high - low) or abs(high) or 1.0)
    bottom = MIN_DRAWN if cut else low - margin
    top = high + margin
    return max(bottom, 0.0) if low >= 0 else bottom, min(top, 1.0) if share and high <= 1 else top


def ticks(values: Sequence[float]) -> list[str]:
    """Return the labels of evenly spaced ticks, all with the same number of decimals and short enough for the axis."""
    largest, step = max(map(abs, values)), abs(values[-1] - values[0]) / max(len(values) - 1, 1)
    size, sign = next((size, sign) for minimum, size, sign in TICK_UNITS if largest >= minimum)
    decimals = next(d for d in range(6) if d == 5 or math.isclose(step / size, round(step / size, d), rel_tol=1e-6))
    return [with_minus(f"{value / size:.{decimals}f}{sign if value else ''}") for value in values]


def strip(dots: Sequence[float], middle: float, low: float, high: float, colour: str, digits: int = 3) -> Html:
    """Return values as dots on a scale from ``low`` to ``high``, with their mean as a bar."""

    def x(value: float) -> str:
        return f"{4 + 112 * (value - low) / (high - low):.1f}"

    marks = [tag("line", x1=4, x2=116, y1=8, y2=8, stroke="#dde3ea")]
    opacity = 0.45 if len(dots) > 1 else 1
    marks += [tag("circle", cx=x(dot), cy=8, r=3.4, fill=colour, fill_opacity=opacity) for dot in dots]
    if len(dots) > 1:
        marks.append(tag("line", x1=x(middle), x2=x(middle), y1=1, y2=15, stroke=colour, stroke_width=2))
    ends = f"{number(min(dots), digits)} to {number(max(dots), digits)}" if len(dots) > 1 else ""
    label = f"{len(dots)} from {ends}" if ends else number(mean(dots), digits)
    return tag("svg", *marks, viewBox="0 0 120 16", role="img", aria_label=label)


def stacked_bar(parts: Sequence[tuple[str, float]], longest: float, colours: Sequence[str]) -> Html:
    """Return a horizontal bar of parts (name, amount); an amount of ``longest`` fills the width."""
    rectangles, start = [], 0.0
    for (_, amount), colour in zip(parts, colours, strict=True):
        width = 100 * amount / longest if longest else 0.0
        rectangles.append(tag("rect", x=f"{start:.2f}", y=0, width=f"{width:.2f}", height=10, fill=colour))
        start += width
    label = ", ".join(f"{amount:g} {name}" for name, amount in parts)
    stretched = {"viewBox": "0 0 100 10", "preserveAspectRatio": "none", "class": "bar"}
    return tag("svg", *rectangles, role="img", aria_label=label, **stretched)


def _by_round(group: Group, task: str, split: str, metric: str) -> Points:
    """Return mean, lowest and highest value over a group's runs, by round."""
    series = [run.series(task, split, metric) for run in group.runs]
    points = {}
    for server_round in sorted({r for by_round in series for r in by_round}):
        values = [by_round[server_round] for by_round in series if server_round in by_round]
        points[server_round] = (fmean(values), min(values), max(values))
    return points


def _describe(points: Points) -> str:
    first, last = min(points), max(points)
    return f"{number(points[first][0])} in round {first}, {number(points[last][0])} in round {last}"


def _draw(axes: Axes, points: Points, colour: str, style: Any, width: float) -> None:
    means, lows, highs = zip(*points.values(), strict=True)
    marker = "o" if len(points) <= 20 else ""
    style_arguments: dict[str, Any] = {"color": colour, "linestyle": style, "linewidth": width, "markersize": width + 1}
    # Markers at the end of an axis are drawn whole; lines that come from below the axis are clipped.
    axes.plot(list(points), means, marker=marker, clip_on=min(means) < MIN_DRAWN, **style_arguments)
    if lows != highs:
        axes.fill_between(list(points), lows, highs, color=colour, alpha=0.13, linewidth=0)


def _baselines(axes: Axes, groups: Sequence[Group], task: str, metric: str) -> list[float]:
    """Draw the test results of hospitals that trained alone and of the untrained model; return the values."""
    alone = mean([v for group in groups if group.alone for v in group.values(task, "test", metric)])
    before = mean([v for group in groups for v in group.values(task, "untrained", metric)])
    references = (("alone, test", alone), ("before training, test", before))
    levels = [(label, level) for label, level in references if math.isfinite(level)]
    for label, level in levels:
        if level >= MIN_DRAWN:
            axes.axhline(level, color="#9aa5b1", linewidth=0.9, linestyle=(0, (1, 2)))
            place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            style: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": 7.5, "color": "#5b6675"}
            axes.annotate(label, (1, level), xytext=(0, 2), **place, **style)
    return [level for _, level in levels]


def _inline(svg: str, name: str, alt: str) -> Html:
    """Return matplotlib's SVG file as an element without prologue and size, with ids unique on the page."""
    svg = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    svg = f'<svg {box[0]} role="img" aria-label="{escape(alt)}"' + svg[svg.index(">") :]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return Html(re.sub(r"\s*\n\s*", " ", svg))
