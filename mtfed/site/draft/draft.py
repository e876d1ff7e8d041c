"""What a folder of images seems to be: a row an image, a column a task, and what a person has to decide."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ...data.formats import is_volume_file, read_picture
from ...data.manifest import COLUMNS, SiteData
from ...data.root import Root
from ...errors import MtfedError
from ...report.html import count
from .columns import Candidate, read_label_table
from .masks import mask_columns
from .names import Places, read_places
from .scan import Lying, scan

NOBODY = frozenset({"", "anonymous", "anon", "anonymized", "anonymised", "unknown", "none", "0", "patient"})
MODALITIES = {
    "CR": "X-ray", "DX": "X-ray", "CT": "CT", "MR": "MR", "US": "ultrasound", "MG": "mammography", "PT": "PET",
    "NM": "nuclear medicine", "OP": "fundus photography", "OPT": "OCT", "XC": "photography", "RF": "fluoroscopy",
    "SM": "microscopy", "ES": "endoscopy",
}  # fmt: skip


@dataclass
class Draft:
    """What is to stand in a drafted manifest and site file."""

    folder: Path
    lying: Lying
    images: list[str]
    patients: dict[str, str]
    splits: dict[str, str]
    columns: list[Candidate]  # tasks and others, by different names
    modality: str
    understood: list[tuple[str, str]] = field(default_factory=list)  # what, and how it was understood
    decide: list[str] = field(default_factory=list)  # what a person still has to

    @property
    def tasks(self) -> list[Candidate]:
        """Return the columns that are tasks."""
        return [column for column in self.columns if column.kind]


def draft(folder: Path, dimensions: int | None = None) -> Draft:
    """Return what a folder seems to hold; raise :class:`MtfedError` if there is no image in it."""
    if not folder.is_dir():
        raise MtfedError(f"Expected a folder with images, {folder} is none.")
    lying = scan(folder, dimensions)
    images = lying.images
    if not images and (mixed := _mixed(lying)):
        more = f"; {count(len(mixed) - 1, 'other folder')} likewise" if len(mixed) > 1 else ""
        raise MtfedError(f"Expected images in {folder}, but {mixed[0]}{more}.")
    if not images:
        raise MtfedError(f"Expected images in {folder}, found none among {len(lying.others) + len(lying.masks)} files.")
    places = read_places(images)
    found = Draft(folder, lying, images, {}, dict(places.splits), [], _modality(lying))
    held = lying.formats.most_common()
    formats = ", ".join(f"{amount:,} {name.lstrip('.') or 'without suffix'}" for name, amount in held)
    what = "volumes" if lying.dimensions == 3 else "pictures"
    found.understood.append(("images", f"{len(images):,} {what} (files: {formats})"))
    columns, decide = mask_columns(folder, images, lying.masks, lying.dimensions)
    found.decide += decide
    columns += [_folders(level, number) for number, level in enumerate(places.classes)]
    _tables(found, columns)
    _patients(found, places)
    _splits(found)
    found.columns = _named(columns, found)
    if lying.dimensions == 2:
        _slices(found)
    _left(found)
    return found


def _modality(lying: Lying) -> str:
    told = {MODALITIES.get(header.modality, "") for header in lying.headers.values()}
    return told.pop() if len(told) == 1 else ""


def _folders(level: dict[str, str], number: int) -> Candidate:
    classes = tuple(sorted(set(level.values())))
    name = "class" if number == 0 else f"class-{number + 1}"
    few = ", ".join(classes[:4]) + ", ..." * (len(classes) > 4)
    doubt = (
        f"are the folders {few} what is to be predicted? If so name the task, as in 'pneumonia', in both files; if "
        "they are scanners or hospitals, remove it."
    )
    return Candidate(name, "classification", level, classes, source="the folders' names", doubt=doubt)


def _tables(found: Draft, columns: list[Candidate]) -> None:
    """Add the columns of the tables that name images."""
    for name in found.lying.tables:
        table = read_label_table(found.folder, name, found.images)
        if table is None:
            found.decide.append(f"no column of {name} names the images, by path, name or stem; it is left out.")
            continue
        found.understood.append(
            ("table", f"{name}, whose column {table.key!r} names {len(table.rows):,} of the images")
        )
        if table.odd:
            found.decide.append(
                f"{count(len(table.odd), 'line')} of {name} with more or fewer cells than its header, as line "
                f"{table.odd[0]}: left out; mend them."
            )
        if table.unmatched:
            found.decide.append(f"{table.unmatched} lines of {name} name no image that lies here.")
        if table.left_out:
            found.decide.append(
                f"columns of {name} that tell who a person is are left out: {', '.join(table.left_out)}."
            )
        if table.patients:
            found.patients = found.patients or dict(table.patients)
        if table.splits:
            found.splits |= table.splits
        columns += table.candidates


def _patients(found: Draft, places: Places) -> None:
    """Say whose each image is, by DICOM, a table, folders or file names; else each is its own patient."""
    headers = {image: header.patient for image, header in found.lying.headers.items()}
    told = {image: patient for image, patient in headers.items() if patient.lower() not in NOBODY}
    by = "from the DICOM tag PatientID"
    if found.patients:
        told, by = found.patients, "from a table"
    elif not told or (places.patients and len(set(told.values())) < 2 and len(found.images) > 1):
        told, by = places.patients, places.patients_by
    found.patients = {image: told.get(image) or _alone(image) for image in found.images}
    alone = [image for image in found.images if not told.get(image)]
    if told:
        known = len({told[image] for image in found.images if told.get(image)})
        found.understood.append(("patients", f"{known:,}, {by}"))
    if alone:
        who = "the images are; every one is" if not told else f"{len(alone):,} images are, as {alone[0]}; each is"
        found.decide.append(
            f"nothing says whose {who} taken for a patient of its own. If a patient has several images, put the same "
            "number into the column patient, else one may be trained on and another tested on."
        )
    elif len(set(found.patients.values())) == 1 and len(found.images) > 1:
        found.decide.append("all images are of one patient; is that so?")


def _alone(image: str) -> str:
    return image.replace("/", "-")


def _splits(found: Draft) -> None:
    if not found.splits:
        found.understood.append(("split", "none; a share of the patients is held out when training begins"))
        return
    splits = {image: found.splits.get(image, "train") for image in found.images}
    found.splits = splits
    counts = Counter(splits.values())
    told = ", ".join(f"{counts[split]:,} {split}" for split in ("train", "val", "test") if counts[split])
    found.understood.append(("split", told))
    held: dict[str, set[str]] = {}
    for image in found.images:
        held.setdefault(found.patients[image], set()).add(splits[image])
    if several := sorted(patient for patient, within in held.items() if len(within) > 1):
        found.decide.append(
            f"{count(len(several), 'patient')} in two splits, as {several[0]!r}: put each into one, or, where each "
            "folder numbers its patients from 1, make the numbers differ."
        )


def _named(columns: list[Candidate], found: Draft) -> list[Candidate]:
    """Give columns different names, and say what each is."""
    taken = set(COLUMNS)
    doubts: dict[str, list[str]] = {}
    for column in columns:
        name, number = column.column, 2
        while column.column in taken:
            column.column, number = f"{name}-{number}", number + 1
        taken.add(column.column)
        if column.doubt:
            doubts.setdefault(column.doubt, []).append(column.column)
        if column.kind:
            found.understood.append(("task", f"{column.column}: {_told(column)}, from {column.source}"))
    found.decide += [f"task{'s' * (len(names) > 1)} {', '.join(names)}: {told}" for told, names in doubts.items()]
    others = [column.column for column in columns if not column.kind]
    if others:
        found.understood.append(("carried", f"columns that are no task: {', '.join(others)}"))
    if not any(column.kind for column in columns):
        found.decide.append(
            "nothing here looks like a label; add a column a task to the manifest, and a table [task.NAME] to the site "
            "file."
        )
    return columns


def _told(column: Candidate) -> str:
    """Say what a task is and how many images have a label of it."""
    said = f"{column.kind} of {count(len(column.cells), 'image')}"
    if column.range:
        return f"{said}, {column.range[0]:g} to {column.range[1]:g}"
    if column.kind == "classification":
        held = Counter(column.cells.values())
        return f"{said}: " + ", ".join(f"{held[name]:,} {name}" for name in column.classes)
    return f"{said}: {', '.join(column.classes)}"


def _slices(found: Draft) -> None:
    """Put a row a slice in the place of a volume, where the model is to see pictures."""
    data = SiteData("this", Root(found.folder), ())
    images: list[str] = []
    for image in found.images:
        header = found.lying.headers.get(image)
        if not is_volume_file(image) and (header is None or header.frames == 1):
            images.append(image)
            continue
        try:
            depth = read_picture(data, image, "image", 3).values.shape[0]
        except MtfedError:
            depth = 0  # one row for a volume that cannot be read, so that the check names it
        names = [f"{image}#{k}" for k in range(depth)] or [image]
        images += names
        found.patients |= dict.fromkeys(names, found.patients[image])
        found.splits |= dict.fromkeys(names, found.splits[image]) if image in found.splits else {}
        for column in found.columns:
            if image in column.cells:
                cell, masks = column.cells.pop(image), column.kind == "segmentation"
                column.cells |= {name: cell + (f"#{k}" if masks and depth else "") for k, name in enumerate(names)}
    if len(images) > len(found.images):
        found.decide.append(
            f"{len(found.images):,} files hold {len(images):,} slices, each a row; run with --dimensions 3 to train on "
            "volumes."
        )
    found.images = images


def _left(found: Draft) -> None:
    lying = found.lying
    found.decide += [f"{told}. It is left out." for told in _mixed(lying)]
    if lying.others:
        few = ", ".join(lying.others[:3]) + ", ..." * (len(lying.others) > 3)
        found.understood.append(("left out", f"{len(lying.others):,} files that are no images: {few}"))


def _mixed(lying: Lying) -> list[str]:
    """Say of each folder with series that are no one volume what to do."""
    told = []
    for place, series in lying.mixed.items():
        held = f"{series} series" if series > 1 else "a series right at the top"
        where = "this folder itself" if place == "." else place
        told.append(f"{where} holds {held}; put each series into a folder of its own, or run with --dimensions 2")
    return told
