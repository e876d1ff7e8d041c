"""Turn a data set in its official form into a site's folder: manifest, site file, and an app that trains on it."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...errors import MtfedError
from ...tasks.specs import KIND_SPECS
from ..manifest_table import MANIFEST
from ..site_file import SITE_FILE
from ..vocabulary import BODY_PART, MODALITY
from .dataset import DataSet, Sample, layout_error
from .meter import OnProgress, ignore_progress
from .templates import render_app_file, render_site_file

LABELS = "labels"  # folder within a set's folder for labels that had to be converted
EXPERIMENT = "experiment"  # folder within a set's folder for a Flower app that trains on it
COMMON_COLUMNS = ("image", "patient", "split", "site", MODALITY, BODY_PART)  # columns of every manifest written here
SPLITS = ("train", "val", "test", "")


@dataclass(frozen=True)
class Prepared:
    """Counts of what was written: rows by split, labels by task, and patients."""

    folder: Path
    splits: Mapping[str, int]
    labels: Mapping[str, int]
    patients: int


def prepare(
    dataset: DataSet, folder: Path, on_progress: OnProgress = ignore_progress, out: Path | None = None
) -> Prepared:
    """Write manifest, site file and app for a set that is in a folder in its official form.

    Args:
        dataset: the set.
        folder: the folder that contains its files.
        on_progress: called with the number of images read and the approximate total.
        out: where ``labels/``, ``manifest.csv``, ``site.toml`` and ``experiment/`` are written, replacing existing
            files; images in ``folder`` are linked from there. By default everything is written to ``folder``.

    Raises:
        MtfedError: files are missing, or are not those that the set's owners provide.
    """
    if missing := dataset.missing(folder):
        raise layout_error(dataset, folder, missing)
    try:
        return _prepare(dataset.version_in(folder), folder, out or folder, on_progress)
    except OSError as error:
        path = error.filename or out or folder
        raise MtfedError(f"Cannot prepare {path}: {error.strerror or error}; fix that and try again.") from None


def _prepare(dataset: DataSet, source: Path, folder: Path, on_progress: OnProgress) -> Prepared:
    samples: list[Sample] = []
    folder.mkdir(parents=True, exist_ok=True)
    for sample in dataset.read(source, folder / LABELS):
        _assert_valid(sample, dataset)
        samples.append(sample)
        on_progress(len(samples), max(dataset.images, len(samples)))
    if not samples:
        raise layout_error(dataset, source, ["it contains no image of this set"])
    files = _referenced_files(dataset, samples)
    _link(files, source, folder)
    if missing := [name for name in files if not (folder / name).exists()]:
        fault = f"{len(missing)} of {len(files)} files are missing, the first is {missing[0]}"
        raise layout_error(dataset, source, [fault])
    _check_patients(dataset, samples)
    columns = [*COMMON_COLUMNS, *dataset.tasks, *dict.fromkeys(name for sample in samples for name in sample.extra)]
    with _replacing(folder / MANIFEST) as path, open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(_manifest_row(sample, dataset) for sample in samples)
    _write(folder / SITE_FILE, render_site_file(dataset))
    (folder / EXPERIMENT).mkdir(exist_ok=True)
    has_sites = all(sample.site for sample in samples)
    _write(folder / EXPERIMENT / "pyproject.toml", render_app_file(dataset, folder, has_sites))
    return Prepared(
        folder,
        {split: n for split in SPLITS if (n := sum(sample.split == split for sample in samples))},
        {task: sum(bool(sample.labels.get(task)) for sample in samples) for task in dataset.tasks},
        len({sample.patient for sample in samples}),
    )


def _assert_valid(sample: Sample, dataset: DataSet) -> None:
    """Fail on errors of the set's own module."""
    assert sample.split in SPLITS and sample.labels.keys() <= dataset.tasks.keys(), sample
    assert not sample.extra.keys() & {*COMMON_COLUMNS, *dataset.tasks}, sample


def _referenced_files(dataset: DataSet, samples: list[Sample]) -> list[str]:
    """Return the files and folders that the samples name."""
    in_files = [name for name, task in dataset.tasks.items() if KIND_SPECS[task["kind"]].in_files]
    names = {sample.image for sample in samples}
    names |= {sample.labels[task] for sample in samples for task in in_files if sample.labels.get(task)}
    if outside := [name for name in names if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]:
        raise MtfedError(f"{dataset.title}: {min(outside)!r} leads out of its folder; get the set's tables again.")
    return sorted({re.sub(r"#\d+$", "", name) for name in names})


def _link(files: list[str], source: Path, folder: Path) -> None:
    """Link files of the source folder that the output folder lacks."""
    for name in files:
        if not (folder / name).exists() and (source / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).unlink(missing_ok=True)  # a dangling link
            (folder / name).symlink_to((source / name).resolve())


def _check_patients(dataset: DataSet, samples: list[Sample]) -> None:
    """Refuse a set with a patient in two splits, which no manifest may contain."""
    splits: dict[str, str] = {}
    for sample in samples:
        if splits.setdefault(sample.patient, sample.split) != sample.split:
            raise MtfedError(
                f"{dataset.title}: patient {sample.patient!r} is in {splits[sample.patient] or 'no split'} and in "
                f"{sample.split or 'no split'}; the tables are not those of its owners, get them again."
            )


def _manifest_row(sample: Sample, dataset: DataSet) -> dict[str, str]:
    cells = {"image": sample.image, "patient": sample.patient, "split": sample.split, "site": sample.site}
    cells |= {MODALITY: sample.modality or dataset.modality, BODY_PART: sample.body_part or dataset.body_part}
    return cells | dict(sample.labels) | dict(sample.extra)


def _write(path: Path, text: str) -> None:
    with _replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to, and replace the file by it once everything has been written."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    os.replace(part, path)
