"""What may be wrong with labels: each function yields what it finds."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from ...tasks.kind import kind_of
from .survey import Survey, SurveyedImage, few, plain

MIN_PATIENTS = 2  # of a class: one to train on and one to validate on


def label_faults(faults: tuple[str, ...], survey: Survey) -> Iterator[SurveyedImage]:
    """Labels with one of some faults."""
    for found in survey.examined:
        for task, label in found.labels.items():
            if label.fault in faults:
                row = survey.rows[found.number]
                name = row.labels[task] if survey.config.tasks[task].spec.in_files else row.image
                said = plain(label.said, name, survey.data.key)
                yield SurveyedImage(name, said + _nearest(survey, task, row.labels[task], label.fault), (found.number,))


def _nearest(survey: Survey, task: str, cell: str, fault: str) -> str:
    """Offer the class that a word may have been meant for."""
    if fault != "class":
        return ""
    classes = {name.lower(): name for name in survey.config.tasks[task].classes}
    words = [word.split(",")[-1].strip().lower() for word in cell.split(";")]
    strange = [word for word in words if word not in classes]
    near = get_close_matches(strange[0], classes, n=1, cutoff=0.5) if strange else []
    return f" Did you mean {classes[near[0]]!r}?" if near else ""


def empty_masks(survey: Survey) -> Iterator[SurveyedImage]:
    """Masks in which nothing is marked."""
    for found in survey.readable:
        for task, label in found.labels.items():
            if label.empty:
                row = survey.rows[found.number]
                yield SurveyedImage(row.labels[task], f"task {task}: nothing is marked on {row.image}", (found.number,))


def no_labels(survey: Survey) -> Iterator[SurveyedImage]:
    """Tasks of which the site has no label at all."""
    for name in survey.config.tasks:
        if not any(name in row.labels for row in survey.rows):
            near = (
                get_close_matches(name, survey.table.columns, n=1, cutoff=0.6)
                if name not in survey.table.columns
                else []
            )
            column = "its column is empty" if name in survey.table.columns else "the manifest has no such column"
            yield SurveyedImage(name, column + (f"; was {near[0]!r} meant?" if near else ""))


def no_split_labels(split: str, survey: Survey) -> Iterator[SurveyedImage]:
    """Tasks with labels, but none of a split."""
    for name in survey.config.tasks:
        counts = survey.count(name)
        if counts.total() and not counts[split]:
            yield SurveyedImage(name, ", ".join(f"{counts[s]} {s}" for s in ("train", "val", "test") if counts[s]))


def few_patients(survey: Survey) -> Iterator[SurveyedImage]:
    """Classes that fewer than two patients have."""
    for task in survey.config.tasks.values():
        if task.spec.has_range or not survey.count(task.name).total():
            continue
        held: dict[str, set[str]] = {name: set() for name in task.structures}
        for found in survey.readable:
            for name in found.labels[task.name].counts if task.name in found.labels else ():
                held[name].add(survey.rows[found.number].patient)
        for name, patients in held.items():
            if len(patients) < MIN_PATIENTS:
                who = f"only patient {next(iter(patients))} has it" if patients else "no patient has it"
                yield SurveyedImage(f"{task.name}: {name}", who)


def unlabelled(survey: Survey) -> Iterator[SurveyedImage]:
    """Rows without any label."""
    yield from (SurveyedImage(row.image) for row in survey.rows if not row.labels)


def known_classes(survey: Survey) -> Iterator[SurveyedImage]:
    """Classes of a manifest's cells that differ only in how they are written."""
    for task in survey.config.tasks.values():
        if kind_of(task).class_of is None:
            continue
        cells = {row.labels[task.name] for row in survey.rows if task.name in row.labels}
        if (indexes := sorted(cell for cell in cells if cell not in task.classes and cell.isdecimal())) and (
            named := sorted(cells & set(task.classes))
        ):
            yield SurveyedImage(task.name, f"some cells hold names ({few(named)}), others numbers ({few(indexes)})")
