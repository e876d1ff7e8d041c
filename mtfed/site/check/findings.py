"""The table of checks, each a function of the survey.

To add a check, write a function that yields an :class:`Occurrence` for everything that is wrong, and add a row to
:data:`CHECKS` with the severity, a title and advice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from . import images, labels, patients
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


CHECKS: dict[str, Check] = {
    # Errors prevent training or invalidate its evaluation.
    "manifest-lines": Check(
        "error", "Invalid lines in the manifest", "Correct these lines of the manifest.", patients.bad_lines
    ),
    "missing": Check("error", "Missing images", "Add the files, or remove their rows.", images.with_fault("missing")),
    "outside": Check(
        "error",
        "Paths outside the site's folder",
        "Copy the files into the site's folder.",
        images.with_fault("outside"),
    ),
    "unreadable": Check(
        "error",
        "Images that cannot be read",
        "Export them again, or remove their rows.",
        partial(images.unreadable, False),
    ),
    "killed": Check(
        "error",
        "Files that crash the program that reads them",
        "Remove them: they are damaged, malicious, or need more memory than this machine has.",
        images.with_fault("killed"),
    ),
    "too-many-unreadable": Check(
        "error",
        "Too many images or labels that cannot be used",
        "Training would refuse to start. Correct the images and labels listed on this page, or raise max-unreadable in "
        "the run config.",
        images.too_many_unreadable,
    ),
    "blank": Check(
        "error", "Blank images", "All their values are the same. Export them again, or remove their rows.", images.blank
    ),
    "label-missing": Check(
        "error",
        "Missing label files, such as masks",
        "Add the files, or empty their cells.",
        labels.with_fault("missing", "outside"),
    ),
    "label-unreadable": Check(
        "error",
        "Label files that cannot be read",
        "Export them again, or empty their cells.",
        labels.with_fault("unreadable"),
    ),
    "mask-misfit": Check(
        "error",
        "Masks that do not fit their images",
        "A mask must have the size and the position of its image. Export it again, or name the mask that belongs to "
        "the image.",
        labels.with_fault("misfit"),
    ),
    "mask-values": Check(
        "error",
        "Masks with values that are not classes",
        "A mask must contain class indices: 0 for the background, 1 for the first structure, and so on. Masks of 0 and "
        "255 must be rewritten as 0 and 1.",
        labels.with_fault("values"),
    ),
    "class-unknown": Check(
        "error", "Unknown class names", "Correct the cell, or add the class to the task.", labels.with_fault("class")
    ),
    "outside-range": Check(
        "error",
        "Labels outside their range",
        "Correct the number or the box, or the task's range. A frequent cause is a different unit.",
        labels.with_fault("range"),
    ),
    "label-wrong": Check(
        "error",
        "Labels in the wrong format",
        "Write them as `mtfed config` describes for the kind of task.",
        labels.with_fault("wrong"),
    ),
    "patient-split": Check(
        "error",
        "Patients in two splits",
        "Put all images of a patient into one split. Otherwise the model is tested on patients it was trained on.",
        patients.divided_patients,
    ),
    "image-patients": Check(
        "error",
        "Images listed under two patients",
        "List each image only under the patient it shows.",
        patients.shared_images,
    ),
    "same-across": Check(
        "error",
        "Identical images under different patients or in different splits",
        "Keep one of them. If both show the same person, give them the same patient and the same split.",
        partial(patients.duplicates, True, True),
    ),
    "near-across": Check(
        "error",
        "Nearly identical images under different patients or in different splits",
        "Look at each pair. If it is one picture saved twice, keep one. If it is one person, use the same patient for "
        "both.",
        partial(patients.duplicates, False, True),
    ),
    "no-training": Check(
        "error",
        "Tasks without training labels",
        "Label images of the split train, or remove the task.",
        partial(labels.no_split_labels, "train"),
    ),
    # Warnings should be looked at by a person.
    "unreadable-allowed": Check(
        "warning",
        "Images that cannot be read, within the limit of the run",
        "Training will skip them (max-unreadable). It is better to export them again.",
        partial(images.unreadable, True),
    ),
    "no-validation": Check(
        "warning",
        "Tasks without validation labels",
        "This site cannot measure how well a model solves the task. Label images of some patients in the split val.",
        partial(labels.no_split_labels, "val"),
    ),
    "few-patients": Check(
        "warning",
        "Classes with fewer than two patients",
        "A class with one patient can be used for training or for validation, but not for both. Add patients, or leave "
        "the class to other sites.",
        labels.rare_classes,
    ),
    "no-labels": Check(
        "warning",
        "Tasks without labels at this site",
        "Nothing is wrong if other sites have labels for them. Otherwise, give the column in the manifest the name of "
        "the task.",
        labels.no_labels,
    ),
    "intensity-outlier": Check(
        "warning",
        "Images far brighter or darker than the others",
        "Check that all use the same unit (Hounsfield units, or 0 to 255), and that they belong to this data set.",
        images.intensity_outliers,
    ),
    "mixed-kinds": Check(
        "warning",
        "Images with different types of values",
        "Export all images in the same way. If some have 8 bits and others Hounsfield units, or some are in colour and "
        "others grey, a model can learn where a file comes from instead of what it shows.",
        images.mixed_value_types,
    ),
    "size-outlier": Check(
        "warning",
        "Images far larger or smaller than the others",
        "Check that they belong to this data set.",
        images.size_outliers,
    ),
    "spacing-outlier": Check(
        "warning",
        "Images with far larger or smaller pixels than the others",
        "Check that the pixel spacing is in millimetres, and that they belong to this data set.",
        images.spacing_outliers,
    ),
    "nearly-blank": Check(
        "warning", "Images that are nearly blank", "Check that they show anything.", images.nearly_blank
    ),
    "burned-in": Check(
        "warning",
        "Text that may be burned into the pixels",
        "The DICOM header says that there may be text in the picture. Check that it is not a name.",
        patients.with_tags(frozenset({BURNED_IN, OVERLAY})),
    ),
    "tags-person": Check(
        "warning",
        "DICOM attributes that identify the patient",
        "They never leave the site and training does not need them, but pseudonymised files are safer.",
        patients.with_tags(GROUPS["person"]),
    ),
    # Notes are good to know.
    "empty-mask": Check(
        "note",
        "Masks with nothing marked",
        "This is correct if there is nothing to mark. If nobody looked, empty the cell.",
        labels.empty_masks,
    ),
    "class-written": Check(
        "note",
        "Classes written both as names and as numbers",
        "Both are understood, but one notation is easier to check.",
        labels.mixed_class_notation,
    ),
    "named-twice": Check(
        "note", "Images in several rows", "Training uses each row. Merge them into one row.", patients.repeated_images
    ),
    "same-within": Check(
        "note", "Identical images of one patient", "Keep one of them.", partial(patients.duplicates, True, False)
    ),
    "near-within": Check(
        "note",
        "Nearly identical images of one patient",
        "Nothing is wrong with several views from one examination, but they count as several images.",
        partial(patients.duplicates, False, False),
    ),
    "tags-staff": Check(
        "note",
        "DICOM attributes that name staff",
        "They never leave the site; pseudonymised files do not contain them.",
        patients.with_tags(GROUPS["staff"]),
    ),
    "tags-place": Check(
        "note",
        "DICOM attributes that name the hospital or its machines",
        "They never leave the site.",
        patients.with_tags(GROUPS["place"]),
    ),
    "tags-time": Check(
        "note", "DICOM attributes that contain dates", "They never leave the site.", patients.with_tags(GROUPS["time"])
    ),
    "tags-private": Check(
        "note",
        "Private DICOM attributes",
        "Only the manufacturer of the scanner knows what they contain.",
        patients.with_tags(frozenset({PRIVATE})),
    ),
    "some-spacing": Check(
        "note",
        "Images without a pixel spacing, unlike others",
        "Their pixels are assumed to be square.",
        images.missing_spacings,
    ),
    "unlabelled": Check("note", "Rows without any label", "Training does not use them.", labels.unlabelled),
    "unnamed": Check(
        "note", "Images in the folder that no row names", "They are not used. Add rows to use them.", images.unlisted
    ),
}


def run_checks(survey: Survey) -> list[Finding]:
    """Return what the checks find: errors first, then warnings and notes, each in the order of the table."""
    findings = [Finding(name, check, tuple(check.find(survey))) for name, check in CHECKS.items()]
    return sorted(
        (finding for finding in findings if finding.occurrences),
        key=lambda finding: SEVERITIES.index(finding.check.severity),
    )
