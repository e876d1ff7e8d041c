"""The table of checks, each a function of the survey.

To add a check, write a function that yields an :class:`Occurrence` for everything that is wrong, and add a row to
the table of its severity with a title and advice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from . import image_checks, label_checks, patient_checks
from .occurrence import Occurrence
from .survey import Survey
from .tags import BURNED_IN, GROUPS, OVERLAY, PRIVATE

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Check:
    """What is looked for, how serious it is, and what to do about it."""

    severity: Severity
    title: str
    advice: str
    find: Callable[[Survey], Iterable[Occurrence]]


@dataclass(frozen=True)
class Finding:
    """A check that found something."""

    id: str
    check: Check
    occurrences: tuple[Occurrence, ...]


CheckRow = tuple[str, str, Callable[[Survey], Iterable[Occurrence]]]  # title, advice, find

# Errors prevent training or invalidate its evaluation.
ERRORS: dict[str, CheckRow] = {
    "manifest-lines": (
        "Invalid lines in the manifest",
        "Correct these lines of the manifest.",
        lambda survey: survey.bad_lines,
    ),
    "missing": ("Missing images", "Add the files, or remove their rows.", partial(image_checks.with_fault, "missing")),
    "outside": (
        "Paths outside the site's folder",
        "Copy the files into the site's folder.",
        partial(image_checks.with_fault, "outside"),
    ),
    "unreadable": (
        "Images that cannot be read",
        "Export them again, or remove their rows.",
        partial(image_checks.unreadable, False),
    ),
    "killed": (
        "Files that crash the program that reads them",
        "Remove them: they are damaged, malicious, or need more memory than this machine has.",
        partial(image_checks.with_fault, "killed"),
    ),
    "too-many-unreadable": (
        "Too many images or labels that cannot be used",
        "Training would refuse to start. Correct the images and labels listed on this page, or raise max-unreadable in "
        "the run config.",
        image_checks.too_many_unreadable,
    ),
    "blank": (
        "Blank images",
        "All their values are the same. Export them again, or remove their rows.",
        image_checks.blank,
    ),
    "label-missing": (
        "Missing label files, such as masks",
        "Add the files, or empty their cells.",
        partial(label_checks.with_fault, {"missing", "outside"}),
    ),
    "label-unreadable": (
        "Label files that cannot be read",
        "Export them again, or empty their cells.",
        partial(label_checks.with_fault, {"unreadable"}),
    ),
    "mask-misfit": (
        "Masks that do not fit their images",
        "A mask must have the size and the position of its image. Export it again, or name the mask that belongs to "
        "the image.",
        partial(label_checks.with_fault, {"misfit"}),
    ),
    "mask-values": (
        "Masks with values that are not classes",
        "A mask must contain class indices: 0 for the background, 1 for the first structure, and so on. Masks of 0 and "
        "255 must be rewritten as 0 and 1.",
        partial(label_checks.with_fault, {"values"}),
    ),
    "class-unknown": (
        "Unknown class names",
        "Correct the cell, or add the class to the task.",
        partial(label_checks.with_fault, {"class"}),
    ),
    "outside-range": (
        "Labels outside their range",
        "Correct the number or the box, or the task's range. A frequent cause is a different unit.",
        partial(label_checks.with_fault, {"range"}),
    ),
    "label-wrong": (
        "Labels in the wrong format",
        "Write them as `mtfed config` describes for the kind of task.",
        partial(label_checks.with_fault, {"wrong"}),
    ),
    "patient-split": (
        "Patients in two splits",
        "Put all images of a patient into one split. Otherwise the model is tested on patients it was trained on.",
        patient_checks.divided_patients,
    ),
    "image-patients": (
        "Images listed under two patients",
        "List each image only under the patient it shows.",
        patient_checks.shared_images,
    ),
    "same-across": (
        "Identical images under different patients or in different splits",
        "Keep one of them. If both show the same person, give them the same patient and the same split.",
        partial(patient_checks.duplicates, True, True),
    ),
    "near-across": (
        "Nearly identical images under different patients or in different splits",
        "Look at each pair. If it is one picture saved twice, keep one. If it is one person, use the same patient for "
        "both.",
        partial(patient_checks.duplicates, False, True),
    ),
    "no-training": (
        "Tasks without training labels",
        "Label images of the split train, or remove the task.",
        partial(label_checks.no_split_labels, "train"),
    ),
}

# Warnings should be looked at by a person.
WARNINGS: dict[str, CheckRow] = {
    "unreadable-allowed": (
        "Images that cannot be read, within the limit of the run",
        "Training will skip them (max-unreadable). It is better to export them again.",
        partial(image_checks.unreadable, True),
    ),
    "no-validation": (
        "Tasks without validation labels",
        "This site cannot measure how well a model solves the task. Label images of some patients in the split val.",
        partial(label_checks.no_split_labels, "val"),
    ),
    "few-patients": (
        "Classes with fewer than two patients",
        "A class with one patient can be used for training or for validation, but not for both. Add patients, or leave "
        "the class to other sites.",
        label_checks.rare_classes,
    ),
    "no-labels": (
        "Tasks without labels at this site",
        "Nothing is wrong if other sites have labels for them. Otherwise, give the column in the manifest the name of "
        "the task.",
        label_checks.no_labels,
    ),
    "intensity-outlier": (
        "Images far brighter or darker than the others",
        "Check that all use the same unit (Hounsfield units, or 0 to 255), and that they belong to this data set.",
        image_checks.intensity_outliers,
    ),
    "word-unknown": (
        "Modalities or body parts in unknown words",
        "Models that use them take such images for those of any other unknown kind. Correct the cells, or the keys of "
        "site.toml, or have a row added to mtfed/data/vocabulary.py.",
        image_checks.without_words,
    ),
    "mixed-kinds": (
        "Images with different types of values",
        "Export all images in the same way. If some have 8 bits and others Hounsfield units, or some are in colour and "
        "others grey, a model can learn where a file comes from instead of what it shows.",
        image_checks.mixed_value_types,
    ),
    "size-outlier": (
        "Images far larger or smaller than the others",
        "Check that they belong to this data set.",
        image_checks.size_outliers,
    ),
    "spacing-outlier": (
        "Images with far larger or smaller pixels than the others",
        "Check that the pixel spacing is in millimetres, and that they belong to this data set.",
        image_checks.spacing_outliers,
    ),
    "nearly-blank": ("Images that are nearly blank", "Check that they show anything.", image_checks.nearly_blank),
    "burned-in": (
        "Text that may be burned into the pixels",
        "The DICOM header says that there may be text in the picture. Check that it is not a name.",
        partial(patient_checks.with_tags, {BURNED_IN, OVERLAY}),
    ),
    "tags-person": (
        "DICOM attributes that identify the patient",
        "They never leave the site and training does not need them, but pseudonymised files are safer.",
        partial(patient_checks.with_tags, GROUPS["person"]),
    ),
}

# Notes are good to know.
NOTES: dict[str, CheckRow] = {
    "empty-mask": (
        "Masks with nothing marked",
        "This is correct if there is nothing to mark. If nobody looked, empty the cell.",
        label_checks.empty_masks,
    ),
    "class-written": (
        "Classes written both as names and as numbers",
        "Both are understood, but one notation is easier to check.",
        label_checks.mixed_class_notation,
    ),
    "named-twice": (
        "Images in several rows",
        "Training uses each row. Merge them into one row.",
        patient_checks.repeated_images,
    ),
    "same-within": (
        "Identical images of one patient",
        "Keep one of them.",
        partial(patient_checks.duplicates, True, False),
    ),
    "near-within": (
        "Nearly identical images of one patient",
        "Nothing is wrong with several views from one examination, but they count as several images.",
        partial(patient_checks.duplicates, False, False),
    ),
    "tags-staff": (
        "DICOM attributes that name staff",
        "They never leave the site; pseudonymised files do not contain them.",
        partial(patient_checks.with_tags, GROUPS["staff"]),
    ),
    "tags-place": (
        "DICOM attributes that name the hospital or its machines",
        "They never leave the site.",
        partial(patient_checks.with_tags, GROUPS["place"]),
    ),
    "tags-time": (
        "DICOM attributes that contain dates",
        "They never leave the site.",
        partial(patient_checks.with_tags, GROUPS["time"]),
    ),
    "tags-private": (
        "Private DICOM attributes",
        "Only the manufacturer of the scanner knows what they contain.",
        partial(patient_checks.with_tags, {PRIVATE}),
    ),
    "some-spacing": (
        "Images without a pixel spacing, unlike others",
        "Their pixels are assumed to be square.",
        image_checks.missing_spacings,
    ),
    "unlabelled": (
        "Rows without any label",
        "Only tasks that need no labels are trained on them.",
        label_checks.unlabelled,
    ),
    "unnamed": (
        "Images in the folder that no row names",
        "They are not used. Add rows to use them.",
        image_checks.unlisted,
    ),
}

CHECKS = {
    name: Check(severity, *row)
    for severity, rows in zip(SEVERITIES, (ERRORS, WARNINGS, NOTES), strict=True)
    for name, row in rows.items()
}


def run_checks(survey: Survey) -> list[Finding]:
    """Return what the checks find: errors first, then warnings and notes, each in the order of the table."""
    findings = (Finding(name, check, tuple(check.find(survey))) for name, check in CHECKS.items())
    return [finding for finding in findings if finding.occurrences]
