"""What the names of files and folders reveal: the patient, split and class of an image, and which files are masks."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ...data.formats import stem_of


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# nnU-Net and the Medical Segmentation Decathlon put the split into the same word: imagesTr, labelsTs.
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training", "imagestr", "labelstr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "imagests", "labelsts"), "test"),
}
IMAGE_WORDS = _words("""
    image images img imgs imagestr imagests picture pictures png jpg jpeg tif tiff dicom dcm dicoms nifti data scan
    scans raw original originals anat
""")
MASK_WORDS = _words("""
    mask masks seg segs segmentation segmentations label labels labelstr labelsts gt groundtruth annotation
    annotations manual manual1 manual2 contour contours
""")
_PATIENT_WORD = "patient|pat|pt|subject|subj|sub|person|case|pid"
_PATIENT_FOLDER = re.compile(rf"(?:{_PATIENT_WORD})[-_ ]?[a-z]*\d+[a-z0-9]*|p[-_]?\d{{2,}}", re.IGNORECASE)
_PATIENT_IN_STEM = re.compile(
    rf"(?:^|[-_. ])((?:{_PATIENT_WORD})[-_ ]?\d+)(?=[-_. ]|$)|^(p[-_]?\d{{2,}})(?=[-_. ])", re.IGNORECASE
)
_VISIT_FOLDER = re.compile(r"(?:ses|session|visit|series|study|scan)[-_ ]?\d*", re.IGNORECASE)
MAX_CLASSES = 20  # folders on one level that are taken for classes; more are more likely patients
MIN_IMAGES = 3  # average number of images in a folder that is taken for a class


@dataclass
class NameHints:
    """What the names of folders and files reveal about images; an image that a name says nothing about is absent."""

    patients: dict[str, str] = field(default_factory=dict)  # image -> patient
    patients_source: str = ""  # where the patients come from, in words
    splits: dict[str, str] = field(default_factory=dict)  # image -> split
    classes: list[dict[str, str]] = field(default_factory=list)  # image -> class, for each level of class folders


def tokens(stem: str) -> list[str]:
    """Return the words of a name."""
    return [word for word in re.split(r"[-_. ]+", stem) if word]


def folders_of(name: str) -> tuple[str, ...]:
    """Return the folders on a path."""
    return PurePosixPath(name).parts[:-1]


def is_mask(name: str) -> bool:
    """Return whether a file is named like a mask (``x_mask.png``, ``seg-x.nii.gz``) or is in a mask folder."""
    words = [word.lower() for word in tokens(stem_of(name))]
    outer = words[:1] + [word for word in words if not word.isdigit()][-1:]
    has_mask_word = not MASK_WORDS.isdisjoint(outer) or not {"mask", "seg", "segmentation"}.isdisjoint(words)
    return has_mask_word or any(is_mask_folder(folder) for folder in folders_of(name))


def is_mask_folder(folder: str) -> bool:
    """Return whether a folder is named like a folder of masks: "masks" or "leftMask"."""
    word = folder.lower().replace("_", "").replace("-", "").replace(" ", "")
    return word in MASK_WORDS or word.endswith(("mask", "masks", "segmentation", "groundtruth"))


def read_names(images: Sequence[str]) -> NameHints:
    """Return what the names of folders and files reveal about images."""
    hints = NameHints()
    unexplained: dict[str, list[str]] = {}  # image -> folders that are neither splits, patients nor visits
    for image in images:
        unexplained[image] = []
        for folder in folders_of(image):
            if split := SPLIT_FOLDERS.get(folder.lower()):
                hints.splits[image] = split
            elif _PATIENT_FOLDER.fullmatch(folder):
                hints.patients.setdefault(image, folder)
            elif folder.lower() not in IMAGE_WORDS and not _VISIT_FOLDER.fullmatch(folder):
                unexplained[image].append(folder)
    if hints.patients:
        hints.patients_source = f"from the folder names, such as {next(iter(hints.patients.values()))!r}"
    elif patients := {image: patient for image in images if (patient := patient_in(stem_of(image)))}:
        image, patient = next(iter(patients.items()))
        hints.patients = patients
        hints.patients_source = f"from the file names, such as {patient!r} in {PurePosixPath(image).name!r}"
    _explain_folders(hints, unexplained)
    return hints


def patient_in(stem: str) -> str:
    """Return the patient that a file name plainly contains, "" if it contains none.

    >>> patient_in("person12_virus_3")
    'person12'
    """
    match = _PATIENT_IN_STEM.search(stem)
    return (match[1] or match[2]) if match else ""


def _explain_folders(hints: NameHints, unexplained: dict[str, list[str]]) -> None:
    """Take the folders of each level for classes if they are few and well filled, else for patients if none are known.

    ``unexplained`` has the folders on each image's path that have no meaning yet.
    """
    depth = min(map(len, unexplained.values()), default=0)
    for level in range(depth):
        folders = {image: path[level] for image, path in unexplained.items()}
        counts = Counter(folders.values())
        if len(counts) < 2:
            continue
        is_numbered = sum(bool(re.search(r"\d{3}", folder)) for folder in counts) > len(counts) / 2
        if not is_numbered and len(counts) <= MAX_CLASSES and len(folders) >= MIN_IMAGES * len(counts):
            hints.classes.append(folders)
        elif not hints.patients:
            hints.patients = folders
            hints.patients_source = f"from the folder names, such as {next(iter(counts))!r}"


@dataclass
class MaskPairs:
    """Masks matched with the images that they belong to."""

    columns: dict[str, dict[str, str]] = field(default_factory=dict)  # structure -> image -> mask
    unmatched: list[str] = field(default_factory=list)  # masks without an image
    extra: list[str] = field(default_factory=list)  # masks of an image that already has one of the same structure


def pair_masks(images: Iterable[str], masks: Iterable[str]) -> MaskPairs:
    """Match masks with images by name: a mask has its image's name plus words for "mask" and for the structure."""
    by_folder: dict[tuple[tuple[str, ...], str], str] = {}
    by_name: dict[str, list[str]] = defaultdict(list)
    for image in images:
        for base in _base_names(stem_of(image)):
            by_folder.setdefault((_without_kinds(folders_of(image)), base), image)
            by_name[base].append(image)
    pairs = MaskPairs()
    for mask in masks:
        match = _match(mask, by_folder, by_name)
        if not match:
            pairs.unmatched.append(mask)
            continue
        image, structure = match
        if pairs.columns.setdefault(structure, {}).setdefault(image, mask) != mask:
            pairs.extra.append(mask)
    return pairs


def _match(
    mask: str, by_folder: dict[tuple[tuple[str, ...], str], str], by_name: dict[str, list[str]]
) -> tuple[str, str] | None:
    """Return the image and the structure of a mask, ``None`` if no image matches.

    The mask ``x_lungs_mask.png`` belongs to the image ``x`` and marks "lungs".
    """
    folders = _without_kinds(folders_of(mask))
    words = [word for word in tokens(stem_of(mask)) if word.lower() not in MASK_WORDS]
    structures = [_folder_structure(folder) for folder in folders_of(mask)]
    default = next((name for name in reversed(structures) if name), "mask")
    for end in range(len(words), 0, -1):  # the longest image name first
        base, rest = "-".join(words[:end]).lower(), [word.lower() for word in words[end:]]
        structure = "-".join(word for word in rest if not word.isdigit()) or default
        for cut in range(len(folders), -1, -1):
            if image := by_folder.get((folders[:cut], base)):
                inner = [folder.lower() for folder in folders[cut:]]
                return image, inner[-1] if inner and structure == "mask" else structure
        if len(candidates := by_name.get(base, [])) == 1:
            return candidates[0], structure
    return None


def _folder_structure(folder: str) -> str:
    """Return the structure that the name of a mask folder contains: "left" for "leftMask", "" if none."""
    match = re.fullmatch(r"(.+?)[-_ ]?(?:masks?|segmentations?)", folder, re.IGNORECASE)
    return match[1].lower() if match else ""


def _without_kinds(folders: tuple[str, ...]) -> tuple[str, ...]:
    """Return folders without those whose name only tells which kind of file they contain."""
    return tuple(folder for folder in folders if folder.lower() not in IMAGE_WORDS and not is_mask_folder(folder))


def _base_names(stem: str) -> list[str]:
    """Return the names that a mask may use for an image: its own, and its own without "image" or nnU-Net's channel.

    >>> _base_names("brain1_image")
    ['brain1-image', 'brain1']
    """
    words = [word.lower() for word in tokens(stem)]
    has_ending = len(words) > 1 and (words[-1] in IMAGE_WORDS or re.fullmatch(r"0\d{3}", words[-1]))
    return ["-".join(words)] + (["-".join(words[:-1])] if has_ending else [])


def task_name(column: str) -> str:
    """Return a column's name as a valid task name: lower-case letters, digits and hyphens.

    >>> task_name("Finding Labels")
    'finding-labels'
    """
    name = re.sub(r"[^a-z0-9]+", "-", column.lower()).strip("-")
    return name if name[:1].isalpha() else f"column-{name}".rstrip("-")
