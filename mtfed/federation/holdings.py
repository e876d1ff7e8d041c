"""Who holds what: a table and a drawing of how a federation's data lies among its sites, before anything is trained."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.partition_names import describe_partitions
from ..errors import MtfedError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..config import Config
    from ..data.manifest import SiteData
    from ..tasks.task import Task

FORMATS = (".png", ".svg", ".pdf")
ROW, PANEL = 0.19, 1.75  # inches of a site and of a task in the drawing
LEGEND = 0.145  # inches of a line of classes


@dataclass(frozen=True)
class Holding:
    """What one site holds."""

    site: str
    patients: int
    images: int
    validation: int  # of the images
    counts: dict[str, Counter[str]]  # by task: images by class, or all under "" where an image has no one class

    def count(self, task: str) -> int:
        """Return how many images have a label of a task."""
        return self.counts[task].total()


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``mtfed data partition`` to the command line."""
    add = commands.add_parser(
        "partition",
        help="show which simulated site would hold what",
        description="Show which simulated site of an app would hold what: a table and, with --out, a drawing.",
        epilog=f"schemes (-c 'partition=tasks + dirichlet'):\n{describe_partitions()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add.add_argument("app", nargs="?", default="pneumonia", help="a folder of experiments/, or a path")
    add.add_argument("--num-supernodes", "--sites", type=int, metavar="N", help="sites (default: what the data makes)")
    add.add_argument("-c", "--config", action="append", default=[], metavar="KEY=VALUE", help="override a config key")
    add.add_argument("--out", type=Path, metavar="FILE", help=f"draw it, too ({', '.join(FORMATS)})")
    add.set_defaults(command=_command)


def _command(arguments: argparse.Namespace) -> int:
    from ..config import read_config
    from ..data.federation import default_sites, division
    from .app_folder import find_app, override

    if arguments.out and arguments.out.suffix.lower() not in FORMATS:
        raise MtfedError(f"Expected --out to end with {', '.join(FORMATS)}, got {str(arguments.out)!r}.")
    config = read_config(override(find_app(arguments.app).run_config, arguments.config))
    if arguments.num_supernodes is not None and arguments.num_supernodes < 1:
        raise MtfedError(f"Expected --num-supernodes to be a number above 0, got {arguments.num_supernodes}.")
    sites = arguments.num_supernodes or default_sites(config)
    found, test = holdings(config, sites)
    print(table(found, test, config.tasks))
    if not config.pooled and (divided := division(config, sites)) and divided.left_out:
        amount = len(divided.left_out)
        print(f"Left out: {amount} patient{'s' * (amount > 1)}, of whom no site that may hold them holds a task.")
    if arguments.out:
        draw(found, config.tasks, arguments.out)
        print(arguments.out)
    return 0


def holdings(config: Config, sites: int) -> tuple[list[Holding], Holding | None]:
    """Return what every simulated site holds, and what the server tests on."""
    from ..data.federation import simulated_site, test_data

    found = [_holding(simulated_site(config, index, sites), config.tasks) for index in range(sites)]
    test = test_data(config)
    return found, None if test is None else _holding(test, config.tasks, "server's test")


def _holding(data: SiteData, tasks: dict[str, Task], name: str = "") -> Holding:
    rows = [row for row in data.rows if row.labels and (name or row.split != "test")]
    counts = {
        name: Counter(_class(row.labels[name], task) for row in rows if name in row.labels)
        for name, task in tasks.items()
    }
    validation = sum(row.split == "val" for row in rows)
    return Holding(name or data.key, len({row.patient for row in rows}), len(rows), validation, counts)


def _class(cell: str, task: Task) -> str:
    """Return the name of the class that a cell means; of one that means none the cell itself, for all to see."""
    if not _by_one_class(task):
        return ""
    by_index = cell not in task.classes and cell.isdecimal() and int(cell) < len(task.classes)
    return task.classes[int(cell)] if by_index else cell


def table(found: Sequence[Holding], test: Holding | None, tasks: dict[str, Task]) -> str:
    """Return a line a site, their sum, and what the server tests on."""
    total = Holding(
        "all sites",
        sum(one.patients for one in found),
        sum(one.images for one in found),
        sum(one.validation for one in found),
        {task: sum((one.counts[task] for one in found), Counter()) for task in tasks},
    )
    shown = [*found, total, *([test] if test else [])]
    classes = {name: _classes(shown, task) for name, task in tasks.items()}
    header = ["site", "patients", "images", "validation"]
    lines = [header + [name + (f" ({'/'.join(classes[name])})" if classes[name] else "") for name in tasks]]
    for one in shown:
        numbers = [f"{one.patients:,}", f"{one.images:,}", "" if one is test else f"{one.validation:,}"]
        lines.append([one.site, *numbers, *(_cell(one, name, classes[name]) for name in tasks)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    align = ["<", *">>>", *"<" * len(tasks)]
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, align, widths, strict=True)).rstrip()
        for line in lines
    )


def _classes(found: Sequence[Holding], task: Task) -> list[str]:
    """Return a task's classes, then what other cells there are; nothing of a task without."""
    if not _by_one_class(task):
        return []
    strange = sorted({name for one in found for name in one.counts[task.name]} - set(task.classes))
    return [*task.classes, *strange]


def _by_one_class(task: Task) -> bool:
    from ..tasks.specs import KIND_SPECS  # not at the top, as the command line imports this for its grammar

    return KIND_SPECS[task.kind].by_class


def _cell(one: Holding, task: str, classes: Sequence[str]) -> str:
    """Return how many images of a task a site holds, and of which classes."""
    if not one.count(task):
        return "-"
    by_class = "/".join(f"{one.counts[task][name]:,}" for name in classes)
    return f"{one.count(task):,}" + (f" ({by_class})" if by_class else "")


def draw(found: Sequence[Holding], tasks: dict[str, Task], path: Path) -> None:
    """Draw a row a site, and in it a bar for its patients and one a task, of a piece a class."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise MtfedError("A drawing needs matplotlib; install it (pip install 'mtfed[plot]').") from None
    from ..report.charts import SETTINGS

    classes = {name: _classes(found, task) for name, task in tasks.items()}
    label = 0.075 * max(len(one.site) for one in found) + 0.15
    top = 0.36 + LEGEND * max(-(-len(names) // _columns(names)) for names in classes.values())
    height, width = ROW * len(found), PANEL * (len(tasks) + 1)
    size = (label + width + 0.1, top + height + 0.1)
    with matplotlib.rc_context(SETTINGS | {"axes.grid": False, "svg.hashsalt": "who"}):  # type: ignore[arg-type]
        figure = Figure(figsize=size)
        for i, name in enumerate(["patients", *tasks]):
            left = (label + i * PANEL) / size[0]
            axes = figure.add_axes((left, 0.1 / size[1], (PANEL - 0.45) / size[0], height / size[1]))
            kinds = classes.get(name, []) if i else []
            rows = [[one.counts[name][kind] for kind in kinds or [""]] if i else [one.patients] for one in found]
            _panel(axes, rows, kinds)
            axes.set_title(name, loc="left", fontsize=9, fontweight="bold", color="#1b2430", y=1, pad=72 * (top - 0.28))
            axes.set_yticks(range(len(found)), [one.site for one in found] if not i else [])
        figure.savefig(path, dpi=150, facecolor="white")


def _columns(names: Sequence[str]) -> int:
    """Return how many classes stand beside each other above a panel."""
    return max(1, int(26 // (max(map(len, names), default=1) + 4)))


def _panel(axes: Axes, rows: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Draw the bars of one task: of each site the images by class, and how many they are."""
    from ..report.details import shades

    look: dict[str, Any] = {"height": 0.72, "linewidth": 0}
    starts, places = [0] * len(rows), range(len(rows))
    for k, colour in enumerate(shades(max(len(classes), 1))):
        amounts = [row[k] for row in rows]
        name = classes[k] if classes else None
        axes.barh(places, amounts, left=starts, color=colour, label=name, **look)
        starts = [start + amount for start, amount in zip(starts, amounts, strict=True)]
    longest = max(max(starts), 1)
    for place, amount in enumerate(starts):
        told = f"{amount:,}" if amount else "–"
        x = amount / longest if amount else 0
        axes.annotate(told, (x, place), xycoords=axes.get_yaxis_transform(), xytext=(2, 0), textcoords="offset points",
                      va="center", fontsize=7, color="#5b6675")  # fmt: skip
    axes.set(xlim=(0, longest), ylim=(len(rows) - 0.5, -0.5), xticks=[])
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_visible(True)
    if classes:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=_columns(classes), frameon=False, fontsize=7.5,
                    handlelength=0.8, handleheight=0.8, handletextpad=0.4, columnspacing=0.9, borderaxespad=0.2,
                    labelspacing=0.25, borderpad=0)  # fmt: skip
