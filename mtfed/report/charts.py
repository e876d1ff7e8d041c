"""Drawings: curves by matplotlib as inline SVG, and the small marks within tables."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..tasks.specs import LOWER_IS_BETTER
from .html import Html, escape, number, tag, with_minus
from .records import Group, mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOWEST = -1.0  # of what is drawn: an R² can begin at minus thousands
# If an axis holds such a number, it counts in what, and the sign for it.
SIZES = ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"), (1e-2, 1.0, ""), (0.0, 1e-3, "e-3"))
Points = dict[int, tuple[float, float, float]]  # by round: mean, lowest and highest of the runs
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: it takes the page's font and can be searched
    "font.size": 8.5,
    "axes.edgecolor": "#9aa5b1",
    "axes.linewidth": 0.7,
    "axes.labelcolor": "#5b6675",
    "xtick.color": "#5b6675",
    "ytick.color": "#5b6675",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e6eaef",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
}


def curves(groups: Sequence[Group], task: str, metric: str, title: str, name: str) -> Html:
    """Return a figure by round: the hospitals' validation images solid, the test images dashed; or the loss.

    ``name`` makes the ids of this drawing its own, as a page holds many.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    styles = {"train": "-"} if metric == "loss" else {"validation": "-", "test": (0, (3, 2))}
    drawn: list[float] = []
    told = []
    with matplotlib.rc_context(SETTINGS | {"svg.hashsalt": name}):  # type: ignore[arg-type]
        figure = Figure(figsize=(4.1, 2.6))
        axes = figure.add_axes((0.12, 0.15, 0.87, 0.82))  # the same in every drawing, so that they stand in line
        for i, group in enumerate(groups):
            width = 1.4 + 0.5 * min(len(groups) - 1 - i, 2)  # what is drawn first is wider, to be seen where lines meet
            for split, style in styles.items():
                if points := _by_round(group, task, split, metric):
                    told.append(f"{group.label}, {split}: {_told(points)}")
                    drawn += [end for _, *ends in points.values() for end in ends]
                    _draw(axes, points, group.colour, style, width)
        if metric != "loss":
            drawn += _baselines(axes, groups, task, metric)
        if drawn:
            bottom, top = limits(drawn, share=metric != "loss" and metric not in LOWER_IS_BETTER)
            marked = [tick for tick in MaxNLocator(nbins=6).tick_values(bottom, top) if bottom <= tick <= top]
            axes.set_yticks(marked, ticks(marked))
            axes.set_ylim(bottom, top)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        axes.set_xlabel("round")
        axes.margins(x=0.03)
        written = io.StringIO()
        # Nothing of when and by what it was drawn: the same runs give the same page.
        unsigned = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=unsigned)
    if not told:
        return escape("")
    svg = _inline(written.getvalue(), name, f"{title} by round. {'; '.join(told)}.")
    note = f" (what is below {with_minus(f'{LOWEST:g}')} is not drawn)" if min(drawn) < LOWEST else ""
    return tag("figure", tag("figcaption", title, note), svg)


def limits(drawn: Sequence[float], *, share: bool) -> tuple[float, float]:
    """Return the ends of an axis: a little beyond the figures, but none that no figure can reach or that is cut off.

    Args:
        drawn: the figures, of which those below :data:`LOWEST` are cut off.
        share: whether 1 is the highest that a figure can be.
    """
    low, high = min(drawn), max(drawn)
    if cut := low < LOWEST:
        low, high = LOWEST, max(high, 0.0)
    margin = 0.05 * ((high - low) or abs(high) or 1.0)
    bottom = LOWEST if cut else low - margin
    top = high + margin
    return max(bottom, 0.0) if low >= 0 else bottom, min(top, 1.0) if share and high <= 1 else top


def ticks(values: Sequence[float]) -> list[str]:
    """Return numbers beside an axis, in even steps, all with as many decimals; short enough for the room there is."""
    most, step = max(map(abs, values)), abs(values[-1] - values[0]) / max(len(values) - 1, 1)
    size, sign = next((size, sign) for least, size, sign in SIZES if most >= least)
    decimals = next(d for d in range(6) if d == 5 or math.isclose(step / size, round(step / size, d), rel_tol=1e-6))
    return [with_minus(f"{value / size:.{decimals}f}{sign if value else ''}") for value in values]


def strip(dots: Sequence[float], middle: float, low: float, high: float, colour: str, digits: int = 3) -> Html:
    """Return a row's figures as dots on a scale from ``low`` to ``high``, their mean as a bar."""

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
    """Return a horizontal bar of parts (name, amount); ``longest`` is the amount that fills the width."""
    rectangles, start = [], 0.0
    for (_, amount), colour in zip(parts, colours, strict=True):
        width = 100 * amount / longest if longest else 0.0
        rectangles.append(tag("rect", x=f"{start:.2f}", y=0, width=f"{width:.2f}", height=10, fill=colour))
        start += width
    label = ", ".join(f"{amount:g} {name}" for name, amount in parts)
    stretched = {"viewBox": "0 0 100 10", "preserveAspectRatio": "none", "class": "bar"}
    return tag("svg", *rectangles, role="img", aria_label=label, **stretched)


def _by_round(group: Group, task: str, split: str, metric: str) -> Points:
    """Return mean, lowest and highest over a group's runs, by round."""
    runs = [record.series(task, split, metric) for record in group.records]
    found = {}
    for server_round in sorted({r for run in runs for r in run}):
        values = [run[server_round] for run in runs if server_round in run]
        found[server_round] = (fmean(values), min(values), max(values))
    return found


def _told(points: Points) -> str:
    first, last = min(points), max(points)
    return f"{number(points[first][0])} in round {first}, {number(points[last][0])} in round {last}"


def _draw(axes: Axes, points: Points, colour: str, style: Any, width: float) -> None:
    means, lows, highs = zip(*points.values(), strict=True)
    marker = "o" if len(points) <= 20 else ""
    look: dict[str, Any] = {"color": colour, "linestyle": style, "linewidth": width, "markersize": width + 1}
    # Where an axis ends at a figure, its mark is not cut in half; a line from below what is drawn comes in at the edge.
    axes.plot(list(points), means, marker=marker, clip_on=min(means) < LOWEST, **look)
    if lows != highs:
        axes.fill_between(list(points), lows, highs, color=colour, alpha=0.13, linewidth=0)


def _baselines(axes: Axes, groups: Sequence[Group], task: str, metric: str) -> list[float]:
    """Draw what a curve is read against, on the test images: hospitals that trained alone, and no training.

    Return the figures that are drawn.
    """
    alone = mean([v for group in groups if group.alone for v in group.values(task, "test", metric)])
    before = mean([v for group in groups for v in group.values(task, "untrained", metric)])
    named = (("alone, test", alone), ("before training, test", before))
    levels = [(label, level) for label, level in named if math.isfinite(level)]
    for label, level in levels:
        if level >= LOWEST:
            axes.axhline(level, color="#9aa5b1", linewidth=0.9, linestyle=(0, (1, 2)))
            axes.annotate(
                label,
                (1, level),
                xycoords=("axes fraction", "data"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="right",
                va="bottom",
                fontsize=7.5,
                color="#5b6675",
            )
    return [level for _, level in levels]


def _inline(svg: str, name: str, alt: str) -> Html:
    """Return matplotlib's file as an element: no prologue, no size of its own, ids that no other drawing has."""
    svg = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    svg = f'<svg {box[0]} role="img" aria-label="{escape(alt)}"' + svg[svg.index(">") :]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return Html(re.sub(r"\s*\n\s*", " ", svg))
