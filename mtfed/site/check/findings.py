"""What may be wrong with a site's data: a table of checks, each a function of the survey.

To add a check, write a function that yields an :class:`Item` for each thing that is wrong, and a row of :data:`CHECKS`
that says how bad it is, what it is, and what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from . import images, labels
from . import patients as people
from .survey import Survey, SurveyedImage
from .tags import BURNED, GROUPS, OVERLAY, PRIVATE

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Check:
    """What is looked for, how bad it is if found, and what to do then."""

    severity: Severity
    title: str
    advice: str
    find: Callable[[Survey], Iterable[SurveyedImage]]


@dataclass(frozen=True)
class Finding:
    """A check that found something."""

    id: str
    check: Check
    items: tuple[SurveyedImage, ...]


CHECKS: dict[str, Check] = {
    # What keeps a site from training, or training from being honest.
    "manifest-lines": Check(
        "error", "Lines of the manifest that are no rows", "Mend these lines of the manifest.", people.bad_lines
    ),
    "missing": Check(
        "error",
        "Images that are not there",
        "Add the files, or take their rows out.",
        partial(images.image_faults, ("missing",)),
    ),
    "outside": Check(
        "error",
        "Paths that lead out of the folder",
        "Name files by their paths within the site's folder.",
        partial(images.image_faults, ("outside",)),
    ),
    "unreadable": Check(
        "error",
        "Images that cannot be read",
        "Export them anew from where they come from, or take their rows out.",
        partial(images.unreadable, False),
    ),
    "killed": Check(
        "error",
        "Files that ended the process that read them",
        "Take them out: they are damaged or made to do harm, or need more memory than there is.",
        partial(images.image_faults, ("killed",)),
    ),
    "too-many-unreadable": Check(
        "error",
        "Training would refuse: too much cannot be used",
        "Mend the images and labels named here, or let the run leave out more (max-unreadable).",
        images.too_many,
    ),
    "blank": Check(
        "error", "Empty images: one value throughout", "Export them anew, or take their rows out.", images.blank
    ),
    "label-missing": Check(
        "error",
        "Masks and other files of labels that are not there",
        "Add the files, or empty their cells.",
        partial(labels.label_faults, ("missing", "outside")),
    ),
    "label-unreadable": Check(
        "error",
        "Masks and other files of labels that cannot be read",
        "Write them anew, or empty their cells.",
        partial(labels.label_faults, ("unreadable",)),
    ),
    "mask-misfit": Check(
        "error",
        "Masks that do not fit their images",
        "A mask has the size of its image and lies where it lies: write it anew, or name the one that belongs to it.",
        partial(labels.label_faults, ("misfit",)),
    ),
    "mask-values": Check(
        "error",
        "Masks with values that are no class",
        "A mask holds class indices: 0 for the background, 1 for the first structure, and so on. Masks of 0 and 255 "
        "have to be written anew as 0 and 1.",
        partial(labels.label_faults, ("values",)),
    ),
    "class-unknown": Check(
        "error",
        "Class names that are not declared",
        "Correct the cell, or add the class to the task in the site file.",
        partial(labels.label_faults, ("class",)),
    ),
    "outside-range": Check(
        "error",
        "Labels outside their range",
        "Correct the number or the box, or the task's range. A frequent cause is another unit.",
        partial(labels.label_faults, ("range",)),
    ),
    "label-wrong": Check(
        "error",
        "Labels that cannot be understood",
        "Write them as `mtfed config` says for the kind of task.",
        partial(labels.label_faults, ("wrong",)),
    ),
    "patient-split": Check(
        "error",
        "Patients in two splits",
        "Put all images of a patient into one split, else a model is tested on whom it was trained on.",
        people.split_patients,
    ),
    "image-patients": Check(
        "error", "Images of two patients", "Name each image under the one patient it shows.", people.two_patients
    ),
    "same-across": Check(
        "error",
        "The same image under different patients or in different splits",
        "Keep one; or if both are of one person, give them one patient and one split.",
        partial(people.duplicates, True, True),
    ),
    "near-across": Check(
        "error",
        "Nearly the same image under different patients or in different splits",
        "Look at each pair: if it is one picture saved twice, keep one; if it is one person, give it one patient.",
        partial(people.duplicates, False, True),
    ),
    "no-training": Check(
        "error",
        "Tasks without a training label",
        "Label some images of the split train, or take the task out.",
        partial(labels.no_split_labels, "train"),
    ),
    # What a person should look at.
    "unreadable-allowed": Check(
        "warning",
        "Images that cannot be read, no more than the run allows",
        "Training goes on without them (max-unreadable); better to export them anew.",
        partial(images.unreadable, True),
    ),
    "no-validation": Check(
        "warning",
        "Tasks without a validation label",
        "The site cannot tell how well a model does at the task: label images of some patients of split val.",
        partial(labels.no_split_labels, "val"),
    ),
    "few-patients": Check(
        "warning",
        "Classes of fewer than two patients",
        "A class of one patient is either trained on or validated on, never both: add patients, or leave the class to "
        "other sites.",
        labels.few_patients,
    ),
    "no-labels": Check(
        "warning",
        "Tasks that the site has no label of",
        "Nothing is wrong if other sites have them; else name the column in the manifest like the task.",
        labels.no_labels,
    ),
    "intensity-outlier": Check(
        "warning",
        "Images far brighter or darker than the others",
        "Look whether the unit is the same (Hounsfield units, or 0 to 255), and whether they belong to this set.",
        images.far_intensities,
    ),
    "mixed-kinds": Check(
        "warning",
        "Images of different kinds of values",
        "Export all in the same way: 8 bits beside Hounsfield units, or colour beside grey, teach a model who made the "
        "file.",
        images.mixed_kinds,
    ),
    "size-outlier": Check(
        "warning",
        "Images far larger or smaller than the others",
        "Look whether they belong to this set.",
        images.far_sizes,
    ),
    "spacing-outlier": Check(
        "warning",
        "Pixels far larger or smaller than the others",
        "Look whether the unit is millimetres, and whether they belong to this set.",
        images.far_spacings,
    ),
    "nearly-blank": Check(
        "warning", "Images that are nearly empty", "Look whether anything is to be seen on them.", images.nearly_blank
    ),
    "burned-in": Check(
        "warning",
        "Text may be burned into the pixels",
        "The DICOM header says so: look whether a name stands in the picture.",
        partial(people.tags, frozenset({BURNED, OVERLAY})),
    ),
    "tags-person": Check(
        "warning",
        "DICOM attributes that name the patient",
        "Training does not need them, and they never leave the site; a pseudonymised export is safer all the same.",
        partial(people.tags, GROUPS["person"]),
    ),
    # What is good to know.
    "empty-mask": Check(
        "note",
        "Masks with nothing marked",
        "Right if there is nothing to see; if nobody looked, empty the cell.",
        labels.empty_masks,
    ),
    "class-written": Check(
        "note", "Classes written in two ways", "Both are understood; one way is easier to check.", labels.known_classes
    ),
    "named-twice": Check(
        "note", "Images that several rows name", "Each row is trained on; join them into one row.", people.named_twice
    ),
    "same-within": Check(
        "note", "The same image twice of one patient", "Keep one.", partial(people.duplicates, True, False)
    ),
    "near-within": Check(
        "note",
        "Nearly the same image twice of one patient",
        "Nothing is wrong with views of one moment; they count as several images.",
        partial(people.duplicates, False, False),
    ),
    "tags-staff": Check(
        "note",
        "DICOM attributes that name staff",
        "They stay at the site; a pseudonymised export leaves them out.",
        partial(people.tags, GROUPS["staff"]),
    ),
    "tags-place": Check(
        "note",
        "DICOM attributes that name the hospital or its machines",
        "They stay at the site.",
        partial(people.tags, GROUPS["place"]),
    ),
    "tags-time": Check(
        "note", "DICOM attributes that hold dates", "They stay at the site.", partial(people.tags, GROUPS["time"])
    ),
    "tags-private": Check(
        "note",
        "Private DICOM attributes",
        "Only the maker of the scanner knows what is in them.",
        partial(people.tags, frozenset({PRIVATE})),
    ),
    "some-spacing": Check(
        "note",
        "Images that do not say how large their pixels are, where others do",
        "Their pixels are taken as squares.",
        images.some_spacings,
    ),
    "unlabelled": Check("note", "Rows without any label", "They are not trained on.", labels.unlabelled),
    "unnamed": Check(
        "note",
        "Images in the folder that no row names",
        "They are not used; add rows if they were meant.",
        images.unnamed,
    ),
}


def findings(survey: Survey) -> list[Finding]:
    """Return what all checks find, errors first, in the table's order."""
    found = [Finding(name, check, tuple(check.find(survey))) for name, check in CHECKS.items()]
    order = ("error", "warning", "note")
    return sorted((one for one in found if one.items), key=lambda one: order.index(one.check.severity))
