"""What the names of files and folders say: whose image it is, in which split, of which class, or that it is a mask."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ...data.formats import stem_of


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Of folders; nnU-Net and the Medical Segmentation Decathlon say both in one word.
SPLITS = {
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
_WORD = "patient|pat|pt|subject|subj|sub|person|case|pid"
_FOLDER = re.compile(rf"(?:{_WORD})[-_ ]?[a-z]*\d+[a-z0-9]*|p[-_]?\d{{2,}}", re.IGNORECASE)
_FILE = re.compile(rf"(?:^|[-_. ])((?:{_WORD})[-_ ]?\d+)(?=[-_. ]|$)|^(p[-_]?\d{{2,}})(?=[-_. ])", re.IGNORECASE)
_VISIT = re.compile(r"(?:ses|session|visit|series|study|scan)[-_ ]?\d*", re.IGNORECASE)
MAX_CLASSES = 20  # that folders are taken for; of more folders each is rather a patient
MIN_IMAGES = 3  # that folders of classes hold on average


@dataclass
class Places:
    """What the folders and names of images say of them; absent where they say nothing."""

    patients: dict[str, str] = field(default_factory=dict)  # by image
    patients_by: str = ""  # how they were found, in words
    splits: dict[str, str] = field(default_factory=dict)
    classes: list[dict[str, str]] = field(default_factory=list)  # a dict a level of folders


def tokens(stem: str) -> list[str]:
    """Return the words of a name."""
    return [word for word in re.split(r"[-_. ]+", stem) if word]


def folders_of(name: str) -> tuple[str, ...]:
    """Return the folders that a path leads through."""
    return PurePosixPath(name).parts[:-1]


def is_mask(name: str) -> bool:
    """Say whether a file is a mask by its name, ``x_mask.png`` or ``seg-x.nii.gz``, or by a folder, ``masks/x.png``."""
    words = [word.lower() for word in tokens(stem_of(name))]
    ends = words[:1] + [word for word in words if not word.isdigit()][-1:]
    named = not MASK_WORDS.isdisjoint(ends) or not {"mask", "seg", "segmentation"}.isdisjoint(words)
    return named or any(folder_masks(folder) for folder in folders_of(name))


def folder_masks(folder: str) -> bool:
    """Say whether a folder is of masks by its name, "masks" or "leftMask"."""
    word = folder.lower().replace("_", "").replace("-", "").replace(" ", "")
    return word in MASK_WORDS or word.endswith(("mask", "masks", "segmentation", "groundtruth"))


def read_places(images: Sequence[str]) -> Places:
    """Return what the folders and names of images say."""
    places, left = Places(), {}
    for image in images:
        rest = []
        for folder in folders_of(image):
            if split := SPLITS.get(folder.lower()):
                places.splits[image] = split
            elif _FOLDER.fullmatch(folder):
                places.patients.setdefault(image, folder)
            elif folder.lower() not in IMAGE_WORDS and not _VISIT.fullmatch(folder):
                rest.append(folder)
        left[image] = rest
    if places.patients:
        places.patients_by = f"from the folders' names, as {next(iter(places.patients.values()))!r}"
    elif named := {image: found for image in images if (found := patient_in(stem_of(image)))}:
        example = next(iter(named))
        places.patients = named
        places.patients_by = f"from the files' names, as {named[example]!r} of {PurePosixPath(example).name!r}"
    _read_levels(places, left)
    return places


def patient_in(stem: str) -> str:
    """Return the patient that a file's name plainly holds, "person12" of "person12_virus_3"; empty if none."""
    found = _FILE.search(stem)
    return (found[1] or found[2]) if found else ""


def _read_levels(places: Places, left: dict[str, list[str]]) -> None:
    """Take the folders of a level for classes if they are few and full, else for patients if none were found."""
    depth = min(map(len, left.values()), default=0)
    for level in range(depth):
        named = {image: rest[level] for image, rest in left.items()}
        counts = Counter(named.values())
        if len(counts) < 2:
            continue
        numbered = sum(bool(re.search(r"\d{3}", folder)) for folder in counts) > len(counts) / 2
        if not numbered and len(counts) <= MAX_CLASSES and len(named) >= MIN_IMAGES * len(counts):
            places.classes.append(named)
        elif not places.patients:
            places.patients = named
            places.patients_by = f"from the folders' names, as {next(iter(counts))!r}"


@dataclass
class Pairs:
    """Masks and the images that they lie over."""

    columns: dict[str, dict[str, str]] = field(default_factory=dict)  # structure -> image -> mask
    alone: list[str] = field(default_factory=list)  # masks without an image
    further: list[str] = field(default_factory=list)  # masks of an image that has one of the structure already


def pair_masks(images: Iterable[str], masks: Iterable[str]) -> Pairs:
    """Find the image of every mask by its name: the image's own, with words for the mask and a structure about it."""
    by_place: dict[tuple[tuple[str, ...], str], str] = {}
    by_name: dict[str, list[str]] = defaultdict(list)
    for image in images:
        for base in _bases(stem_of(image)):
            by_place.setdefault((_plain(folders_of(image)), base), image)
            by_name[base].append(image)
    pairs = Pairs()
    for mask in masks:
        found, structure = _image_of(mask, by_place, by_name)
        if not found:
            pairs.alone.append(mask)
        elif pairs.columns.setdefault(structure, {}).setdefault(found, mask) != mask:
            pairs.further.append(mask)
    return pairs


def _image_of(
    mask: str, by_place: dict[tuple[tuple[str, ...], str], str], by_name: dict[str, list[str]]
) -> tuple[str, str]:
    """Return the image and the structure of a mask: of ``x_lungs_mask.png`` the image ``x`` and "lungs"."""
    places = _plain(folders_of(mask))
    words = [word for word in tokens(stem_of(mask)) if word.lower() not in MASK_WORDS]
    named = [_structure(folder) for folder in folders_of(mask)]
    said = next((name for name in reversed(named) if name), "")
    for end in range(len(words), 0, -1):
        base, rest = "-".join(words[:end]).lower(), [word.lower() for word in words[end:]]
        structure = "-".join(word for word in rest if not word.isdigit()) or said or "mask"
        for cut in range(len(places), -1, -1):
            if image := by_place.get((places[:cut], base)):
                within = [folder.lower() for folder in places[cut:]]
                return image, within[-1] if within and structure == "mask" else structure
        if len(found := by_name.get(base, [])) == 1:
            return found[0], structure
    return "", ""


def _structure(folder: str) -> str:
    """Return the structure that a folder of masks names: "left" of "leftMask"."""
    found = re.fullmatch(r"(.+?)[-_ ]?(?:masks?|segmentations?)", folder, re.IGNORECASE)
    return found[1].lower() if found else ""


def _plain(folders: tuple[str, ...]) -> tuple[str, ...]:
    """Return folders without those that only say what kind of file they hold."""
    return tuple(folder for folder in folders if folder.lower() not in IMAGE_WORDS and not folder_masks(folder))


def _bases(stem: str) -> list[str]:
    """Return the names that a mask may call an image by: its own, and without "image" or nnU-Net's channel at its end.

    >>> _bases("brain1_image")
    ['brain1-image', 'brain1']
    """
    words = [word.lower() for word in tokens(stem)]
    ends = words[-1:] and (words[-1] in IMAGE_WORDS or re.fullmatch(r"0\d{3}", words[-1])) and len(words) > 1
    return ["-".join(words)] + (["-".join(words[:-1])] if ends else [])


def task_name(column: str) -> str:
    """Return a column's name as that of a task may be: small letters, digits, hyphens.

    >>> task_name("Finding Labels")
    'finding-labels'
    """
    name = re.sub(r"[^a-z0-9]+", "-", column.lower()).strip("-")
    return name if name[:1].isalpha() else f"column-{name}".rstrip("-")
