"""Draft a manifest from a folder of images: a row for each image, a column for each task, and open questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...data.formats import is_volume_file, read_picture
from ...data.manifest import COLUMNS, SiteData
from ...data.root import Root
from ...errors import MtfedError
from ...report.html import count
from ...tasks.specs import KIND_SPECS
from .columns import Candidate
from .label_table import read_label_table
from .mask_columns import mask_columns
from .names import NameHints, read_names
from .scan import FolderScan, scan_folder

# In place of a patient's ID in DICOM files that have been pseudonymised.
PLACEHOLDER_IDS = frozenset({"", "anonymous", "anon", "anonymized", "anonymised", "unknown", "none", "0", "patient"})
MODALITIES = {
    "CR": "X-ray", "DX": "X-ray", "CT": "CT", "MR": "MR", "US": "ultrasound", "MG": "mammography", "PT": "PET",
    "NM": "nuclear medicine", "OP": "fundus photography", "OPT": "OCT", "XC": "photography", "RF": "fluoroscopy",
    "SM": "slide microscopy", "ES": "endoscopy",
}  # fmt: skip


@dataclass
class Draft:
    """The content of a drafted manifest and site file."""

    folder: Path
    scan: FolderScan
    images: list[str]
    patients: dict[str, str]  # image -> patient
    splits: dict[str, str]  # image -> split
    columns: list[Candidate]  # tasks and other columns; their names are unique
    modality: str  # modality in words, "" if it is unknown or the images differ
    body_part: str  # as in DICOM headers, "" if it is unknown or the images differ
    understood: list[tuple[str, str]] = field(default_factory=list)  # topic, and how it was understood
    decide: list[str] = field(default_factory=list)  # questions that a person must decide

    @property
    def tasks(self) -> list[Candidate]:
        """Return the columns that are tasks."""
        return [column for column in self.columns if column.kind]


def draft(folder: Path, dimensions: int | None = None) -> Draft:
    """Return the draft for a folder of images.

    Args:
        folder: the folder.
        dimensions: 2 for pictures or 3 for volumes; by default, whichever most of the files are.

    Raises:
        MtfedError: if the folder contains no images.
    """
    if not folder.is_dir():
        raise MtfedError(f"Expected a folder with images, {folder} is not a folder.")
    scan = scan_folder(folder, dimensions)
    images = scan.images
    if not images and (problems := _mixed_folders(scan)):
        others = f"; the same is true of {count(len(problems) - 1, 'other folder')}" if len(problems) > 1 else ""
        raise MtfedError(f"Expected images in {folder}, but {problems[0]}{others}.")
    if not images:
        files = len(scan.others) + len(scan.masks)
        raise MtfedError(f"Expected images in {folder}, found none among its {count(files, 'file')}.")
    hints = read_names(images)
    headers = scan.headers.values()
    modality = _common({MODALITIES.get(header.modality, "") for header in headers})
    body_part = _common({header.body_part for header in headers})
    drafted = Draft(folder, scan, images, {}, dict(hints.splits), [], modality, body_part)
    formats = scan.formats.most_common()
    suffixes = ", ".join(f"{amount:,} {suffix.lstrip('.') or 'without suffix'}" for suffix, amount in formats)
    noun = "volumes" if scan.dimensions == 3 else "pictures"
    drafted.understood.append(("images", f"{len(images):,} {noun} (files: {suffixes})"))
    columns, questions = mask_columns(folder, images, scan.masks, scan.dimensions)
    drafted.decide += questions
    columns += [_class_column(level, number) for number, level in enumerate(hints.classes)]
    _add_tables(drafted, columns)
    _set_patients(drafted, hints)
    _set_splits(drafted)
    _set_columns(drafted, columns)
    if scan.dimensions == 2:
        _split_volumes(drafted)
    drafted.decide += [f"{problem}. It is left out." for problem in _mixed_folders(scan)]
    if scan.others:
        left_out = f"{count(len(scan.others), 'other file')}: {_abbreviate(scan.others, 3)}"
        drafted.understood.append(("left out", left_out))
    return drafted


def _common(values: set[str]) -> str:
    """Return the only value, or "" if there are several or none."""
    return min(values) if len(values) == 1 else ""


def _class_column(folders: dict[str, str], level: int) -> Candidate:
    """Return the column for a level of class folders, given by image."""
    classes = tuple(sorted(set(folders.values())))
    name = "class" if level == 0 else f"class-{level + 1}"
    question = (
        f"are the folders {_abbreviate(classes, 4)} what the model should predict? If so, give the task a better name, "
        "such as 'pneumonia', in both files. If they are scanners or hospitals, remove the task."
    )
    return Candidate(name, "classification", folders, classes, source="the folder names", doubt=question)


def _add_tables(drafted: Draft, columns: list[Candidate]) -> None:
    """Add the columns of the tables that name images."""
    for name in drafted.scan.tables:
        table = read_label_table(drafted.folder, name, drafted.images)
        if table is None:
            drafted.decide.append(
                f"no column of {name} names the images (by path, file name, or file name without suffix); the table is "
                "left out."
            )
            continue
        text = f"{name}, whose column {table.image_column!r} names {len(table.rows):,} of the images"
        drafted.understood.append(("table", text))
        if table.malformed_lines:
            drafted.decide.append(
                f"{count(len(table.malformed_lines), 'line')} of {name} with more or fewer cells than the header, such "
                f"as line {table.malformed_lines[0]}: left out. Correct them and run init again."
            )
        if table.unmatched:
            drafted.decide.append(f"{count(table.unmatched, 'row')} of {name} without a matching image: left out.")
        if table.personal_columns:
            columns_text = ", ".join(table.personal_columns)
            drafted.decide.append(f"columns of {name} that could identify a person: {columns_text}. They are left out.")
        if table.patients:
            drafted.patients = drafted.patients or dict(table.patients)
        drafted.splits |= table.splits
        columns += table.candidates


def _set_patients(drafted: Draft, hints: NameHints) -> None:
    """Set the patient of every image: from a table, DICOM files or names; else each image gets a patient of its own."""
    headers = drafted.scan.headers
    patients = {k: header.patient for k, header in headers.items() if header.patient.lower() not in PLACEHOLDER_IDS}
    source = "from the DICOM attribute PatientID"
    if drafted.patients:
        patients, source = drafted.patients, "from a table"
    elif not patients or (hints.patients and len(set(patients.values())) < 2 and len(drafted.images) > 1):
        patients, source = hints.patients, hints.patients_source
    drafted.patients = {image: patients.get(image) or image.replace("/", "-") for image in drafted.images}
    unknown = [image for image in drafted.images if not patients.get(image)]
    if patients:
        known = len({patients[image] for image in drafted.images if patients.get(image)})
        drafted.understood.append(("patients", f"{known:,}, {source}"))
    if unknown:
        images = f"{len(unknown):,} images (such as {unknown[0]})" if patients else "all images"
        drafted.decide.append(
            f"the patients of {images} are unknown; each image is drafted as a patient of its own. If a patient has "
            "several images, write the same ID into the column patient for all of them. Otherwise the model may be "
            "tested on a patient it was trained on."
        )
    elif len(set(drafted.patients.values())) == 1 and len(drafted.images) > 1:
        drafted.decide.append("all images seem to be of one patient. Is that correct?")


def _set_splits(drafted: Draft) -> None:
    """Put every image into a split if any split is known."""
    if not drafted.splits:
        drafted.understood.append(("split", "none; training will hold out a share of the patients for validation"))
        return
    drafted.splits = {image: drafted.splits.get(image, "train") for image in drafted.images}
    counts = Counter(drafted.splits.values())
    sizes = ", ".join(f"{counts[split]:,} {split}" for split in ("train", "val", "test") if counts[split])
    drafted.understood.append(("split", sizes))
    by_patient: dict[str, set[str]] = {}
    for image in drafted.images:
        by_patient.setdefault(drafted.patients[image], set()).add(drafted.splits[image])
    if divided := sorted(patient for patient, splits in by_patient.items() if len(splits) > 1):
        drafted.decide.append(
            f"{count(len(divided), 'patient')} in two splits, such as {divided[0]!r}. Move all images of a patient "
            "into one split. If every folder numbers its patients from 1, give them different IDs instead."
        )


def _set_columns(drafted: Draft, columns: list[Candidate]) -> None:
    """Set the columns, give them unique names, and describe them."""
    drafted.columns = columns
    names = set(COLUMNS)
    questions: dict[str, list[str]] = {}
    for column in columns:
        name, number = column.column, 2
        while column.column in names:
            column.column, number = f"{name}-{number}", number + 1
        names.add(column.column)
        if column.doubt:
            questions.setdefault(column.doubt, []).append(column.column)
        if column.kind:
            drafted.understood.append(("task", f"{column.column}: {_describe_task(column)}, from {column.source}"))
    for question, tasks in questions.items():
        drafted.decide.append(f"task{'s' * (len(tasks) > 1)} {', '.join(tasks)}: {question}")
    if others := [column.column for column in columns if not column.kind]:
        drafted.understood.append(("carried", f"columns that are not tasks: {', '.join(others)}"))
    if not drafted.tasks:
        drafted.decide.append(
            "nothing here looks like a label. Add a column for each task to the manifest, and a table [task.NAME] to "
            "the site file."
        )


def _describe_task(column: Candidate) -> str:
    """Return what a task is and how many images have a label for it."""
    text = f"{column.kind} of {count(len(column.cells), 'image')}"
    if column.range:
        return f"{text}, {column.range[0]:g} to {column.range[1]:g}"
    if KIND_SPECS[column.kind].by_class:
        counts = Counter(column.cells.values())
        return f"{text}: " + ", ".join(f"{counts[name]:,} {name}" for name in column.classes)
    return f"{text}: {', '.join(column.classes)}"


def _split_volumes(drafted: Draft) -> None:
    """Replace the row of each volume by a row for each of its slices, for a model of pictures."""
    data = SiteData("this", Root(drafted.folder), ())
    images: list[str] = []
    for image in drafted.images:
        header = drafted.scan.headers.get(image)
        if not is_volume_file(image) and (header is None or header.frames == 1):
            images.append(image)
            continue
        try:
            depth = read_picture(data, image, "image", 3).values.shape[0]
        except MtfedError:
            depth = 0  # keep one row for an unreadable volume, so that the check reports it
        slices = [f"{image}#{k}" for k in range(depth)] or [image]
        images += slices
        drafted.patients |= dict.fromkeys(slices, drafted.patients[image])
        if image in drafted.splits:
            drafted.splits |= dict.fromkeys(slices, drafted.splits[image])
        for column in drafted.columns:
            if image in column.cells:
                cell = column.cells.pop(image)
                is_sliced = depth and column.kind and KIND_SPECS[column.kind].in_files
                column.cells |= {name: cell + (f"#{k}" if is_sliced else "") for k, name in enumerate(slices)}
    if len(images) > len(drafted.images):
        drafted.decide.append(
            f"{len(drafted.images):,} files contain {len(images):,} slices, and every slice has a row. To train on "
            "volumes, run init with --dimensions 3."
        )
    drafted.images = images


def _mixed_folders(scan: FolderScan) -> list[str]:
    """Return for each folder whose slices are not one volume what is wrong and what to do."""
    problems = []
    for folder, series in scan.mixed.items():
        name = "this folder itself" if folder == "." else folder
        content = f"{series} series" if series > 1 else "a series at the top level"
        advice = "put each series into a folder of its own, or run init with --dimensions 2"
        problems.append(f"{name} contains {content}; {advice}")
    return problems


def _abbreviate(names: Sequence[str], length: int) -> str:
    return ", ".join(names[:length]) + ", ..." * (len(names) > length)
