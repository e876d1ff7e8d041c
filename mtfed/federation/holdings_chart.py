"""A chart of which site holds which data: one row per site, one panel for patients and one per task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MtfedError
from .holdings import Holding, class_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..tasks.task import Task

ROW_HEIGHT, PANEL_WIDTH = 0.19, 1.75  # inches
LEGEND_LINE = 0.145  # inches of a line of class names


def draw(sites: Sequence[Holding], tasks: dict[str, Task], path: Path) -> None:
    """Draw the chart and write it; the suffix of the path is the format. Bars are split by class."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise MtfedError("A chart needs matplotlib; install it (pip install 'mtfed[plot]').") from None
    from ..report.charts import SETTINGS

    classes = {name: class_names(sites, task) for name, task in tasks.items()}
    label = 0.075 * max(len(site.site) for site in sites) + 0.15
    top = 0.36 + LEGEND_LINE * max(-(-len(names) // _legend_columns(names)) for names in classes.values())
    height, width = ROW_HEIGHT * len(sites), PANEL_WIDTH * (len(tasks) + 1)
    size = (label + width + 0.1, top + height + 0.1)
    with matplotlib.rc_context(SETTINGS | {"axes.grid": False, "svg.hashsalt": "sites"}):  # type: ignore[arg-type]
        figure = Figure(figsize=size)
        for i, name in enumerate(["patients", *tasks]):
            left = (label + i * PANEL_WIDTH) / size[0]
            axes = figure.add_axes((left, 0.1 / size[1], (PANEL_WIDTH - 0.45) / size[0], height / size[1]))
            names = classes.get(name, []) if i else []
            rows = [[site.counts[name][key] for key in names or [""]] if i else [site.patients] for site in sites]
            _panel(axes, rows, names)
            axes.set_title(name, loc="left", fontsize=9, fontweight="bold", color="#1b2430", y=1, pad=72 * (top - 0.28))
            axes.set_yticks(range(len(sites)), [site.site for site in sites] if not i else [])
        figure.savefig(path, dpi=150, facecolor="white")


def _legend_columns(names: Sequence[str]) -> int:
    """Return how many class names fit side by side above a panel."""
    return max(1, int(26 // (max(map(len, names), default=1) + 4)))


def _panel(axes: Axes, rows: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Draw the bars of one task: for each site its images by class, and their sum."""
    from ..report.details import shades

    style: dict[str, Any] = {"height": 0.72, "linewidth": 0}
    starts, positions = [0] * len(rows), range(len(rows))
    for k, colour in enumerate(shades(max(len(classes), 1))):
        counts = [row[k] for row in rows]
        name = classes[k] if classes else None
        axes.barh(positions, counts, left=starts, color=colour, label=name, **style)
        starts = [start + count for start, count in zip(starts, counts, strict=True)]
    longest = max(max(starts), 1)
    for position, count in enumerate(starts):
        text, x = f"{count:,}" if count else "–", count / longest if count else 0
        axes.annotate(text, (x, position), xycoords=axes.get_yaxis_transform(), xytext=(2, 0),
                      textcoords="offset points", va="center", fontsize=7, color="#5b6675")  # fmt: skip
    axes.set(xlim=(0, longest), ylim=(len(rows) - 0.5, -0.5), xticks=[])
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_visible(True)
    if classes:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=_legend_columns(classes), frameon=False,
                    fontsize=7.5, handlelength=0.8, handleheight=0.8, handletextpad=0.4, columnspacing=0.9,
                    borderaxespad=0.2, labelspacing=0.25, borderpad=0)  # fmt: skip
