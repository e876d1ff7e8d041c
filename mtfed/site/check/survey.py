"""Read a whole site once; the checks and the page are computed from the result."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ...config import Config
from ...data.formats import files_of, format_of
from ...data.manifest import SPLITS, Row, SiteData
from ...data.manifest_table import ManifestTable, read_manifest_table
from ...data.partition import hold_out
from ...data.root import Root
from ...data.site_file import DIMENSIONS, find_site_file
from ...errors import MtfedError
from ...progress import counted
from ...tasks.kind import kind_of
from ..draft.scan import list_files
from .duplicates import DuplicatePair, find_duplicates
from .examine import ExaminedImage, make_examiner
from .isolated_pool import WorkerDied, run_isolated
from .occurrence import Occurrence


@dataclass
class Survey:
    """The rows of a site, what was read from the image and the labels of each, and the other images in its folder."""

    data: SiteData  # with the rows of the manifest
    config: Config
    table: ManifestTable
    bad_lines: list[Occurrence]  # lines of the manifest that cannot be used
    examined: list[ExaminedImage]  # by row number
    duplicates: list[DuplicatePair] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)  # images in the folder that no row names

    @property
    def rows(self) -> tuple[Row, ...]:
        """Return the rows, by number."""
        return self.data.rows

    @cached_property
    def readable(self) -> list[ExaminedImage]:
        """Return the images that could be read."""
        return [image for image in self.examined if not image.fault]

    @cached_property
    def split(self) -> list[str]:
        """Return each row's split, including the patients that training would hold out for validation."""
        labelled, config = [row for row in self.rows if row.labels], self.config
        seed = f"{config.partition_seed}/{self.data.key}"
        splits = {row.number: row.split for row in hold_out(labelled, config.tasks, config.validation_share, seed)}
        return [splits.get(row.number, row.split) for row in self.rows]

    @cached_property
    def patients(self) -> dict[str, list[Row]]:
        """Return the rows of every patient."""
        rows: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            rows[row.patient].append(row)
        return rows

    def count(self, task: str) -> Counter[str]:
        """Return how many images of each split have a usable label of a task."""
        return Counter(
            self.split[image.number] for image in self.readable
            if task in image.labels and not image.labels[task].fault
        )  # fmt: skip


def read_rows(path: Path, key: str, config: Config) -> tuple[SiteData, ManifestTable, list[Occurrence]]:
    """Return the rows of a manifest, its table, and the lines that cannot be used."""
    root = Root(path)
    bad_lines: list[Occurrence] = []
    rows: list[Row] = []
    table = read_manifest_table(root)
    site_cells = find_site_file(root).cells
    for place, values in zip(table.lines, table.rows, strict=True):
        cells = dict(zip(table.columns, values, strict=True))
        split, image, patient = cells.get("split", "").lower(), cells["image"], cells["patient"]
        if split not in SPLITS:
            bad_lines.append(Occurrence(place, f"expected train, val or test in the column split, got {split!r}"))
        elif not image or not patient:
            bad_lines.append(Occurrence(place, f"the column {'image' if not image else 'patient'} is empty"))
        elif (cell := cells.get(DIMENSIONS) or "2") not in ("2", "3") and DIMENSIONS not in config.tasks:
            bad_lines.append(Occurrence(place, f"expected 2 or 3 in the column dimensions, got {cell!r}"))
        elif len({task.dimensions for name, task in config.tasks.items() if cells.get(name)}) > 1:
            bad_lines.append(Occurrence(place, "it has labels of tasks on images and of tasks on volumes"))
        else:
            labels = {task: cells[task] for task in config.tasks if cells.get(task)}
            described = site_cells | {name: cell for name, cell in cells.items() if cell}
            others = {name: cell for name, cell in described.items() if name not in config.tasks}
            others = {name: cell for name, cell in others.items() if name not in ("image", "patient", "split", "")}
            rows.append(Row(image, patient, SPLITS[split], labels, len(rows), others))
    return SiteData(key, root, tuple(rows), tuple(rows)), table, bad_lines


def survey_site(path: Path, key: str, config: Config, jobs: int) -> Survey:
    """Read a whole site, a folder or a zip, in several processes; each image and each label is read once."""
    data, table, bad_lines = read_rows(path, key, config)
    for task in config.tasks.values():
        kind_of(task)  # import the task kinds now, so that the forked processes share them
    results: dict[int, ExaminedImage] = {}
    outcomes = run_isolated(make_examiner(data, config), len(data.rows), jobs)
    for number, outcome in counted(outcomes, len(data.rows), f"reading {key}"):
        results[number] = _killed(data, number, outcome) if isinstance(outcome, WorkerDied) else outcome
    survey = Survey(data, config, table, bad_lines, [results[number] for number in sorted(results)])
    comparable = [image for image in survey.readable if image.low < image.high]
    for dimensions in (2, 3):
        thumbnails = {
            image.number: image.thumbnail for image in comparable
            if image.thumbnail is not None and image.thumbnail.ndim == dimensions
        }  # fmt: skip
        digests = {image.number: image.digest for image in comparable if image.number in thumbnails}
        survey.duplicates += find_duplicates(thumbnails, digests)
    survey.duplicates.sort()
    survey.unlisted = _unlisted(survey)
    return survey


def _killed(data: SiteData, number: int, outcome: WorkerDied) -> ExaminedImage:
    """Return the record of an image that ended the process that read it."""
    cause = f"reading it ended the process ({outcome})"
    if outcome.exit_code == -9:
        cause += ", which happens when memory runs out"
    reason = (
        f"Cannot read image {data.rows[number].image} of site {data.key} or one of its labels: {cause}; repair or "
        "remove it."
    )
    return ExaminedImage(number, "killed", reason)


def _unlisted(survey: Survey) -> list[str]:
    """Return the images in the folder that are named by no row and no label."""
    root = survey.data.root.path
    if not root.is_dir():
        return []
    listed, folders = set[str](), set[str]()
    file_tasks = [task.name for task in survey.config.tasks.values() if task.spec.in_files]
    for row in survey.rows:
        for name in (row.image, *(row.labels[task] for task in file_tasks if task in row.labels)):
            try:
                listed.update(map(os.path.normpath, files_of(survey.data, name)))
            except (MtfedError, OSError, ValueError):
                continue
            folders.add(os.path.normpath(name))
        listed.update(os.path.normpath(cell) for cell in row.others.values() if "." in cell)
    unlisted = [name for name in list_files(root) if format_of(name) and name not in listed]
    return [name for name in unlisted if os.path.dirname(name) not in folders]
