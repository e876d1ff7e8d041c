"""From a data set in its official form to a site's folder: manifest, site file, and an app that trains on it."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...errors import MtfedError
from ...tasks.specs import KIND_SPECS
from ..manifest import MANIFEST
from .app import app_file, site_file
from .dataset import DataSet, Sample, wrong_layout

SITE_FILE = "site.toml"
LABELS = "labels"  # folder within a set's folder, of labels that had to be converted
EXPERIMENT = "experiment"  # folder within a set's folder, of a Flower app that trains on it
OWN = ("image", "patient", "split", "site", "modality")  # columns of every manifest written here
SPLITS = ("train", "val", "test", "")


@dataclass(frozen=True)
class Prepared:
    """What has been written: rows by split, labels by task."""

    folder: Path
    splits: Mapping[str, int]
    labels: Mapping[str, int]
    patients: int


def prepare(
    dataset: DataSet,
    folder: Path,
    tell: Callable[[int, int], None] = lambda done, of: None,
    out: Path | None = None,
) -> Prepared:
    """Write manifest, site file and app for a set that lies in a folder in its official form.

    Args:
        dataset: the set.
        folder: where it lies.
        tell: is told how many images have been read, of about how many.
        out: where ``labels/``, ``manifest.csv``, ``site.toml`` and ``experiment/`` are written, over what was there
            before; of images that lie in another folder, links are. Without it, all is written where the set lies.

    Raises:
        MtfedError: files are missing, or are not what the set's owners give.
    """
    if lacking := dataset.missing(folder):
        raise wrong_layout(dataset, folder, [f"{need.replace('|', ' or ')} was not found" for need in lacking])
    try:
        return _prepare(dataset, folder, out or folder, tell)
    except OSError as error:
        where = error.filename or out or folder
        raise MtfedError(f"Cannot prepare {where}: {error.strerror or error}; mend that and try again.") from None


def _prepare(dataset: DataSet, source: Path, folder: Path, tell: Callable[[int, int], None]) -> Prepared:
    items = []
    folder.mkdir(parents=True, exist_ok=True)
    for item in dataset.read(source, folder / LABELS):
        items.append(_checked(item, dataset))
        tell(len(items), max(dataset.images, len(items)))
    if not items:
        raise wrong_layout(dataset, source, ["it holds no image of this set"])
    files = _files(dataset, items)
    _link(files, source, folder)
    if lost := [name for name in files if not (folder / name).exists()]:
        fault = f"{len(lost)} of {len(files)} files are missing, the first is {lost[0]}"
        raise wrong_layout(dataset, source, [fault])
    _check_patients(dataset, items)
    columns = [*OWN, *dataset.tasks, *dict.fromkeys(name for item in items for name in item.others)]
    with _replacing(folder / MANIFEST) as path, open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(_row(item, dataset) for item in items)
    _write(folder / SITE_FILE, site_file(dataset))
    (folder / EXPERIMENT).mkdir(exist_ok=True)
    _write(folder / EXPERIMENT / "pyproject.toml", app_file(dataset, folder, all(item.site for item in items)))
    return Prepared(
        folder,
        {split: n for split in SPLITS if (n := sum(item.split == split for item in items))},
        {task: sum(bool(item.labels.get(task)) for item in items) for task in dataset.tasks},
        len({item.patient for item in items}),
    )


def _checked(item: Sample, dataset: DataSet) -> Sample:
    """Refuse what would be a fault of the set's own module."""
    assert item.split in SPLITS and item.labels.keys() <= dataset.tasks.keys(), item
    assert not item.others.keys() & {*OWN, *dataset.tasks}, item
    return item


def _files(dataset: DataSet, items: list[Sample]) -> list[str]:
    """Return what the rows name, files or folders."""
    in_files = [name for name, task in dataset.tasks.items() if KIND_SPECS[task["kind"]].in_files]
    named = {item.image for item in items}
    named |= {item.labels[task] for item in items for task in in_files if item.labels.get(task)}
    if outside := [name for name in named if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]:
        raise MtfedError(f"{dataset.title}: {min(outside)!r} leads out of its folder; get the set's tables again.")
    return sorted({re.sub(r"#\d+$", "", name) for name in named})


def _link(files: list[str], source: Path, folder: Path) -> None:
    """Link files of the folder that a set lies in, as far as another one, which it is prepared in, lacks them."""
    for name in files:
        if not (folder / name).exists() and (source / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).unlink(missing_ok=True)  # a link that leads nowhere any more
            (folder / name).symlink_to((source / name).resolve())


def _check_patients(dataset: DataSet, items: list[Sample]) -> None:
    """Refuse a set whose split is not by patient: no manifest may hold that."""
    splits: dict[str, str] = {}
    for item in items:
        if splits.setdefault(item.patient, item.split) != item.split:
            raise MtfedError(
                f"{dataset.title}: patient {item.patient!r} is in {splits[item.patient] or 'no split'} and in "
                f"{item.split or 'no split'}; the tables are not those of its owners, get them again."
            )


def _row(item: Sample, dataset: DataSet) -> dict[str, str]:
    own = {"image": item.image, "patient": item.patient, "split": item.split, "site": item.site}
    return own | {"modality": item.modality or dataset.modality} | dict(item.labels) | dict(item.others)


def _write(path: Path, text: str) -> None:
    with _replacing(path) as part:
        part.write_text(text, encoding="utf-8")


class _replacing:
    """Give a path to write to, and put it in a file's place when all has been written."""

    def __init__(self, path: Path) -> None:
        self.path, self.part = path, path.with_name(path.name + ".part")

    def __enter__(self) -> Path:
        return self.part

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            os.replace(self.part, self.path)
        else:
            self.part.unlink(missing_ok=True)
