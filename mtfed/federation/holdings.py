"""Which site of a simulated federation holds which data, as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..config import Config
from ..data.manifest import SiteData
from ..data.simulated_sites import simulated_site, test_data
from ..tasks.task import Task


@dataclass(frozen=True)
class Holding:
    """The data of one site."""

    site: str
    patients: int
    images: int
    validation: int  # validation images
    counts: dict[str, Counter[str]]  # images of each task by class, or all under "" if an image has no single class

    def count(self, task: str) -> int:
        """Return how many images have a label of a task."""
        return self.counts[task].total()


def holdings(config: Config, sites: int) -> tuple[list[Holding], Holding | None]:
    """Return the data of every simulated site, and the server's test data if there is any."""
    of_sites = [_holding(simulated_site(config, index, sites), config.tasks) for index in range(sites)]
    test = test_data(config)
    return of_sites, None if test is None else _holding(test, config.tasks, "server's test")


def _holding(data: SiteData, tasks: dict[str, Task], name: str = "") -> Holding:
    rows = [row for row in data.rows if row.labels and (name or row.split != "test")]
    counts = {
        k: Counter(_class_of(row.labels[k], task) for row in rows if k in row.labels) for k, task in tasks.items()
    }
    validation = sum(row.split == "val" for row in rows)
    return Holding(name or data.key, len({row.patient for row in rows}), len(rows), validation, counts)


def _class_of(cell: str, task: Task) -> str:
    """Return the name of a cell's class, or the cell itself if it is not a class, so that it shows in the table."""
    if not task.spec.by_class:
        return ""
    is_index = cell not in task.classes and cell.isdecimal() and int(cell) < len(task.classes)
    return task.classes[int(cell)] if is_index else cell


def table(sites: Sequence[Holding], test: Holding | None, tasks: dict[str, Task]) -> str:
    """Return a table with a line for each site, for their sum, and for the server's test data."""
    amounts = [(site.patients, site.images, site.validation) for site in sites]
    patients, images, validation = map(sum, zip(*amounts, strict=True))
    counts = {task: sum((site.counts[task] for site in sites), Counter()) for task in tasks}
    total = Holding("all sites", patients, images, validation, counts)
    rows = [*sites, total, *([test] if test else [])]
    classes = {name: class_names(rows, task) for name, task in tasks.items()}
    header = ["site", "patients", "images", "validation"]
    lines = [header + [name + (f" ({'/'.join(classes[name])})" if classes[name] else "") for name in tasks]]
    for row in rows:
        numbers = [f"{row.patients:,}", f"{row.images:,}", "" if row is test else f"{row.validation:,}"]
        lines.append([row.site, *numbers, *(_cell(row, name, classes[name]) for name in tasks)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    align = ["<", *">>>", *"<" * len(tasks)]
    padded = ([f"{cell:{side}{n}}" for cell, side, n in zip(line, align, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def class_names(sites: Sequence[Holding], task: Task) -> list[str]:
    """Return a task's classes, then other cells that occur; an empty list if its images have no single class."""
    if not task.spec.by_class:
        return []
    unknown = sorted({name for site in sites for name in site.counts[task.name]} - set(task.classes))
    return [*task.classes, *unknown]


def _cell(holding: Holding, task: str, classes: Sequence[str]) -> str:
    """Return how many images of a task a site has, and of which classes."""
    if not holding.count(task):
        return "-"
    by_class = "/".join(f"{holding.counts[task][name]:,}" for name in classes)
    return f"{holding.count(task):,}" + (f" ({by_class})" if by_class else "")
