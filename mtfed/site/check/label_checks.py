"""Checks of labels. Each function yields what it finds."""

from __future__ import annotations

from collections.abc import Iterator, Set
from difflib import get_close_matches

from ...tasks.kind import kind_of
from .occurrence import Occurrence, abbreviate, shorten
from .survey import Survey

MIN_PATIENTS = 2  # patients of a class: one for training and one for validation


def with_fault(faults: Set[str], survey: Survey) -> Iterator[Occurrence]:
    """Yield the labels with one of some faults."""
    for image in survey.examined:
        for task, label in image.labels.items():
            if label.fault in faults:
                row = survey.rows[image.number]
                name = row.labels[task] if survey.config.tasks[task].spec.in_files else row.image
                detail = shorten(label.reason, name, survey.data.key)
                if label.fault == "class":
                    detail += _suggest_class(survey, task, row.labels[task])
                yield Occurrence(name, detail, (image.number,))


def _suggest_class(survey: Survey, task: str, cell: str) -> str:
    """Return a question with the class that an unknown name in a cell resembles, "" if it resembles none."""
    classes = {name.lower(): name for name in survey.config.tasks[task].classes}
    words = [word.split(",")[-1].strip().lower() for word in cell.split(";")]
    unknown = [word for word in words if word not in classes]
    matches = get_close_matches(unknown[0], classes, n=1, cutoff=0.5) if unknown else []
    return f" Did you mean {classes[matches[0]]!r}?" if matches else ""


def empty_masks(survey: Survey) -> Iterator[Occurrence]:
    """Yield the masks in which nothing is marked."""
    for image in survey.readable:
        for task, label in image.labels.items():
            if label.is_empty:
                row = survey.rows[image.number]
                yield Occurrence(row.labels[task], f"task {task}: nothing is marked on {row.image}", (image.number,))


def no_labels(survey: Survey) -> Iterator[Occurrence]:
    """Yield the tasks for which the site has no labels at all."""
    columns = survey.table.columns
    for name in survey.config.labelled_tasks:
        if not any(name in row.labels for row in survey.rows):
            matches = get_close_matches(name, columns, n=1, cutoff=0.6)
            hint = f"; did you mean {matches[0]!r}?" if matches else ""
            is_empty = name in columns
            yield Occurrence(name, "its column is empty" if is_empty else f"the manifest has no such column{hint}")


def no_split_labels(split: str, survey: Survey) -> Iterator[Occurrence]:
    """Yield the tasks that have labels, but none in a split."""
    for name in survey.config.tasks:
        counts = survey.count(name)
        if counts.total() and not counts[split]:
            detail = ", ".join(f"{counts[other]} {other}" for other in ("train", "val", "test") if counts[other])
            yield Occurrence(name, detail)


def rare_classes(survey: Survey) -> Iterator[Occurrence]:
    """Yield the classes that occur in fewer than two patients."""
    for task in survey.config.tasks.values():
        if task.spec.has_range or not survey.count(task.name).total():
            continue
        patients: dict[str, set[str]] = {name: set() for name in task.structures}
        for image in survey.readable:
            for name in image.labels[task.name].counts if task.name in image.labels else ():
                patients[name].add(survey.rows[image.number].patient)
        for name, names in patients.items():
            if len(names) < MIN_PATIENTS:
                detail = f"only patient {next(iter(names))} has it" if names else "no patient has it"
                yield Occurrence(f"{task.name}: {name}", detail)


def unlabelled(survey: Survey) -> Iterator[Occurrence]:
    """Yield the rows without any label."""
    yield from (Occurrence(row.image) for row in survey.rows if not row.labels)


def mixed_class_notation(survey: Survey) -> Iterator[Occurrence]:
    """Yield the tasks whose cells contain both names and numbers of classes."""
    for task in survey.config.tasks.values():
        if kind_of(task).class_of is None:
            continue
        cells = {row.labels[task.name] for row in survey.rows if task.name in row.labels}
        numbers = sorted(cell for cell in cells if cell not in task.classes and cell.isdecimal())
        names = sorted(cells & set(task.classes))
        if numbers and names:
            detail = f"some cells contain names ({abbreviate(names)}), others numbers ({abbreviate(numbers)})"
            yield Occurrence(task.name, detail)
