"""What a site contains, for its page: labels by class and split, statistics of the images, and sample images."""

from __future__ import annotations

from collections import Counter

from ...data.every_image import image_dimensions
from ...report.html import Html, chip, escape, join, number, table, tag, task_title
from ...tasks.task import Task
from .drawing import draw_image, palette
from .examine import ExaminedImage
from .histograms import histogram, share_bar
from .survey import Survey

SPLITS = {"train": "training", "val": "validation", "test": "test"}
SAMPLES = 16  # images on the page
AXES = {2: "rows × columns", 3: "slices × rows × columns"}
COMMON_SIZES = 4  # image sizes that are listed


def class_counts(survey: Survey) -> Html:
    """Return how many images each task and each class has, by split, and from how many patients."""
    sections = []
    for task in survey.config.tasks.values():
        if images := [e for e in survey.readable if task.name in e.labels and not e.labels[task.name].fault]:
            sections.append(_task_counts(survey, task, images))
    if sections and not any(row.split == "val" for row in survey.rows):
        note = (
            "The manifest contains no validation split. Training will hold out "
            f"{survey.config.validation_share:.0%} of the patients for validation, and the table counts them as such."
        )
        sections.insert(0, tag("p", note, class_="note"))
    return join(sections)


def _task_counts(survey: Survey, task: Task, images: list[ExaminedImage]) -> Html:
    """Return the table of a task from the images with a usable label, and a histogram of labels that are numbers."""
    groups: list[tuple[object, list[ExaminedImage]]] = [(task_title(task.name), images)]
    is_single = task.spec.has_range and len(task.classes) == 1
    for name in () if is_single else task.structures:
        with_class = [image for image in images if name in image.labels[task.name].counts]
        groups.append((tag("span", name, class_="class"), with_class))
    rows = []
    for title, group in groups:
        splits = Counter(survey.split[image.number] for image in group)
        patients = len({survey.rows[image.number].patient for image in group})
        counts = (f"{splits[split]:,}" for split in SPLITS)
        rows.append((title, *counts, f"{patients:,}", share_bar(len(group), len(images))))
    section = table((task.kind, *SPLITS.values(), "patients", "share of its images"), rows, "numbers counts")
    numbers = [value for image in images if (value := image.labels[task.name].number) is not None]
    if not numbers:
        return section
    chart = histogram(numbers, f"{task_title(task.name)}: {task.classes[0]}")
    return join([section, tag("div", chart, class_="charts")])


def image_statistics(survey: Survey) -> Html:
    """Return the distributions of sizes, spacings and values."""
    images = survey.readable
    if not images:
        return escape("")
    sizes = Counter(image.shape for image in images)
    value_types = Counter(image.value_type for image in images)
    spacings = [min(image.spacing) for image in images if image.spacing]
    common = ", ".join(f"{' × '.join(map(str, shape))} ({n:,})" for shape, n in sizes.most_common(COMMON_SIZES))
    others = f" and {len(sizes) - COMMON_SIZES:,} other sizes" if len(sizes) > COMMON_SIZES else ""
    dimensions = {image_dimensions(survey.rows[image.number], survey.config) for image in images}
    axes = " or ".join(AXES[number] for number in sorted(dimensions))
    lines = [
        tag("p", f"Sizes, {axes}: {common}{others}."),
        tag("p", "Values: " + ", ".join(f"{name} ({n:,})" for name, n in value_types.most_common()) + "."),
        tag("p", f"Spacing: {_spacing_text(spacings, len(images))}."),
    ]
    charts = [histogram([float(max(image.shape)) for image in images], "Longest side, pixels")]
    charts += [histogram(spacings, "Finest spacing, mm")] if spacings else []
    for name, attribute in (("Lowest", "low"), ("Highest", "high"), ("Mean", "mean")):
        charts.append(histogram([getattr(image, attribute) for image in images], f"{name} value of an image"))
    return join([*lines, tag("div", *charts, class_="charts")])


def _spacing_text(spacings: list[float], images: int) -> str:
    if not spacings:
        return "not stored in the files; pixels are assumed to be square"
    low, high = min(spacings), max(spacings)
    text = f"{number(low)} mm" if low == high else f"{number(low)} to {number(high)} mm"
    return text + (f", in {len(spacings):,} of {images:,} images" if len(spacings) < images else "")


def image_samples(survey: Survey) -> Html:
    """Return some images of every task and class, with the masks and boxes of their labels."""
    figures = []
    for index in _pick_samples(survey):
        labels = tag("div", ", ".join(_label_texts(survey, index)))
        figures.append(tag("figure", draw_image(survey, index), tag("figcaption", survey.rows[index].image, labels)))
    if not figures:
        return escape("")
    keys = [
        tag("li", chip(colour, "square"), f"{task_title(task)}: {structure}")
        for task, colours in palette(survey.config.tasks).items() for structure, colour in colours.items()
    ]  # fmt: skip
    note = "Masks and boxes are drawn on the images as training sees them. Check that they are in the right place."
    return join([tag("p", note, class_="note"), tag("ul", *keys, class_="legend"), tag("div", *figures, class_="few")])


def _pick_samples(survey: Survey) -> list[int]:
    """Return the rows of sample images: one of each class in turn, evenly spaced over the manifest."""
    groups: dict[tuple[str, str], list[int]] = {}
    for image in survey.readable:
        for task, label in image.labels.items():
            for name in label.counts if not label.fault else ():
                groups.setdefault((task, name), []).append(image.number)
    picked: dict[int, None] = {}
    for turn in range(SAMPLES):
        for numbers in groups.values():
            picked.setdefault(numbers[turn * len(numbers) // SAMPLES])
    return list(picked)[:SAMPLES]


def _label_texts(survey: Survey, index: int) -> list[str]:
    """Return the labels of a row in words, without those that are drawn on its image."""
    texts = []
    for name, label in survey.examined[index].labels.items():
        task = survey.config.tasks[name]
        if not label.fault and not task.spec.geometry:
            texts.append(f"{name} {label.number:g}" if label.number is not None else ", ".join(label.counts) or "none")
    return texts
