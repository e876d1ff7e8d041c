"""What a site holds, on its page: labels by class and split, how images are, and some of them to look at."""

from __future__ import annotations

from collections import Counter

from ...report.html import Html, chip, escape, join, number, table, tag, task_title
from .examine import Examined
from .histograms import histogram, share
from .survey import Survey
from .thumbnails import palette, shown

SPLITS = {"train": "training", "val": "validation", "test": "test"}
GRID = 16  # images that are shown


def labels(survey: Survey) -> Html:
    """Return how many images each task and class has, by split, and of how many patients."""
    sections = []
    for task in survey.config.tasks.values():
        held = [one for one in survey.readable if task.name in one.labels and not one.labels[task.name].fault]
        if not held:
            continue
        counted: list[tuple[object, list[Examined]]] = [(task_title(task.name), held)]
        single = task.spec.has_range and len(task.classes) == 1
        names = () if single else task.structures
        for name in names:
            of_class = [one for one in held if name in one.labels[task.name].counts]
            counted.append((tag("span", name, class_="class"), of_class))
        rows = []
        for title, group in counted:
            splits = Counter(survey.split[one.number] for one in group)
            patients = len({survey.rows[one.number].patient for one in group})
            counts = (f"{splits[split]:,}" for split in SPLITS)
            rows.append((title, *counts, f"{patients:,}", share(len(group), len(held))))
        sections.append(table((task.kind, *SPLITS.values(), "patients", "share of its images"), rows, "numbers counts"))
        numbers = [value for one in held if (value := one.labels[task.name].number) is not None]
        if numbers:
            drawn = histogram(numbers, f"{task_title(task.name)}: {task.classes[0]}")
            sections.append(tag("div", drawn, class_="charts"))
    if sections and not any(row.split == "val" for row in survey.rows):
        share_held = f"{survey.config.validation_share:.0%}"
        note = f"The manifest sets no patients aside for validation: training holds out {share_held} of them, and they "
        sections.insert(0, tag("p", note + "are counted as such here.", class_="note"))
    return join(sections)


def images(survey: Survey) -> Html:
    """Return how sizes, spacings and values are spread."""
    held = survey.readable
    if not held:
        return escape("")
    sizes = Counter(one.shape for one in held)
    kinds = Counter(one.kind for one in held)
    spacings = [min(one.spacing) for one in held if one.spacing]
    common = ", ".join(f"{' × '.join(map(str, shape))} ({n:,})" for shape, n in sizes.most_common(4))
    more = f" and {len(sizes) - 4:,} other sizes" if len(sizes) > 4 else ""
    axes = "slices × rows × columns" if survey.config.dimensions == 3 else "rows × columns"
    told = [
        tag("p", f"Sizes, {axes}: {common}{more}."),
        tag("p", "Values: " + ", ".join(f"{kind} ({n:,})" for kind, n in kinds.most_common()) + "."),
        tag("p", f"Spacing: {_spacing(spacings, len(held))}."),
    ]
    charts = [histogram([float(max(one.shape)) for one in held], "Longest side, pixels")]
    charts += [histogram(spacings, "Finest spacing, mm")] if spacings else []
    for name, get in (("Lowest", "low"), ("Highest", "high"), ("Mean", "mean")):
        charts.append(histogram([getattr(one, get) for one in held], f"{name} value of an image"))
    return join([*told, tag("div", *charts, class_="charts")])


def _spacing(spacings: list[float], images: int) -> str:
    if not spacings:
        return "no file says; pixels are taken as squares"
    low, high = min(spacings), max(spacings)
    told = f"{number(low)} mm" if low == high else f"{number(low)} to {number(high)} mm"
    return told + (f", of {len(spacings):,} of {images:,} images" if len(spacings) < images else "")


def grid(survey: Survey) -> Html:
    """Return some images of every task and class with what is marked on them."""
    groups: dict[tuple[str, str], list[int]] = {}
    for one in survey.readable:
        for task, label in one.labels.items():
            for name in label.counts if not label.fault else ():
                groups.setdefault((task, name), []).append(one.number)
    picked: dict[int, None] = {}
    for turn in range(GRID):
        for numbers in groups.values():  # a class at a time, evenly over the manifest
            picked.setdefault(numbers[turn * len(numbers) // GRID])
    figures = []
    for index in list(picked)[:GRID]:
        said = tag("div", ", ".join(_says(survey, index)))
        figures.append(tag("figure", shown(survey, index), tag("figcaption", survey.rows[index].image, said)))
    if not figures:
        return escape("")
    keys = [
        tag("li", chip(colour, "square"), f"{task_title(task)}: {structure}")
        for task, colours in palette(survey.config.tasks).items() for structure, colour in colours.items()
    ]  # fmt: skip
    note = "Masks and boxes lie over the images as training sees them: look whether they are where they should be."
    return join([tag("p", note, class_="note"), tag("ul", *keys, class_="legend"), tag("div", *figures, class_="few")])


def _says(survey: Survey, index: int) -> list[str]:
    told = []
    for name, label in survey.examined[index].labels.items():
        task = survey.config.tasks[name]
        if not label.fault and not task.spec.geometry:
            told.append(f"{name} {label.number:g}" if label.number is not None else ", ".join(label.counts) or "none")
    return told
