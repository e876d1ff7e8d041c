"""Everything that is known of a site when its files have been read: what findings and page go by."""

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
from ...errors import MtfedError
from ...progress import counted
from ...tasks.kind import kind_of
from ...tasks.specs import KIND_SPECS
from ..draft.scan import list_files
from .duplicates import Pair, find_pairs
from .examine import Examined, examiner
from .isolated_pool import Died, outcomes

Faults = list[tuple[str, str]]  # where in the manifest, and what is wrong there


@dataclass(frozen=True)
class SurveyedImage:
    """One thing that a finding is about."""

    name: str  # a file, patient, task, ...
    said: str = ""  # what is wrong with it
    images: tuple[int, ...] = ()  # rows, to be shown


@dataclass
class Survey:
    """A site's rows, what was found of each, and what files lie beside them."""

    data: SiteData  # the rows as the manifest has them
    config: Config
    table: ManifestTable
    lines: Faults  # lines of the manifest that are no rows
    examined: list[Examined]
    pairs: list[Pair] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)  # images in the folder that no row names

    @property
    def rows(self) -> tuple[Row, ...]:
        """Return the rows, by number."""
        return self.data.rows

    @cached_property
    def readable(self) -> list[Examined]:
        """Return what was found of the images that could be read."""
        return [found for found in self.examined if not found.fault]

    @cached_property
    def split(self) -> list[str]:
        """Return each row's split, with the patients that training would hold out for validation."""
        config = self.config
        known = [row for row in self.rows if row.labels]
        seed = f"{config.partition_seed}/{self.data.key}"
        held = hold_out(known, config.tasks, config.validation_share, seed)
        told = {row.number: row.split for row in held}
        return [told.get(row.number, row.split) for row in self.rows]

    @cached_property
    def patients(self) -> dict[str, list[Row]]:
        """Return the rows of every patient."""
        found: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            found[row.patient].append(row)
        return found

    def count(self, task: str) -> Counter[str]:
        """Return how many images of each split have a label of a task that can be used."""
        return Counter(
            self.split[found.number] for found in self.readable
            if task in found.labels and not found.labels[task].fault
        )  # fmt: skip


def read_rows(path: Path, key: str, config: Config) -> tuple[SiteData, ManifestTable, Faults]:
    """Return the rows of a manifest, and what is wrong with the lines that are none."""
    root = Root(path)
    faults: Faults = []
    rows: list[Row] = []
    table = read_manifest_table(root)
    for number, cells in enumerate(table.rows):
        held = dict(zip(table.columns, cells, strict=True))
        split, image, patient = held.get("split", "").lower(), held["image"], held["patient"]
        if split not in SPLITS:
            faults.append((table.lines[number], f"split should be train, val or test, it is {split!r}"))
        elif not image or not patient:
            faults.append((table.lines[number], f"{'image' if not image else 'patient'} is empty"))
        else:
            labels = {task: held[task] for task in config.tasks if held.get(task)}
            others = {name: cell for name, cell in held.items() if cell and name not in config.tasks}
            others = {name: cell for name, cell in others.items() if name not in ("image", "patient", "split", "")}
            rows.append(Row(image, patient, SPLITS[split], labels, len(rows), others))
    return SiteData(key, root, tuple(rows), tuple(rows)), table, faults


def survey(path: Path, key: str, config: Config, jobs: int) -> Survey:
    """Read all of a site, each image once.

    Args:
        path: of its folder or zip.
        key: its name.
        config: whose tasks and settings it is read by.
        jobs: processes that read.
    """
    data, table, faults = read_rows(path, key, config)
    for task in config.tasks.values():
        kind_of(task)  # what it imports, every process would else
    found: dict[int, Examined] = {}
    count = len(data.rows)
    for number, outcome in counted(outcomes(examiner(data, config), count, jobs), count, f"reading {key}"):
        found[number] = _dead(data, number, outcome) if isinstance(outcome, Died) else outcome
    examined = [found[number] for number in sorted(found)]
    held = Survey(data, config, table, faults, examined)
    shown = [e for e in held.readable if e.thumb is not None and e.low < e.high]
    held.pairs = find_pairs(
        {e.number: e.thumb for e in shown if e.thumb is not None}, {e.number: e.digest for e in shown}
    )
    held.unnamed = _unnamed(held)
    return held


def _dead(data: SiteData, number: int, died: Died) -> Examined:
    reason = f"reading it ended the process ({died})"
    if died.code == -9:
        reason += ", as happens when there is not enough memory"
    said = (
        f"Cannot read image {data.rows[number].image} of site {data.key} or a label of it: {reason}; mend or remove it."
    )
    return Examined(number, "killed", said)


def _unnamed(held: Survey) -> list[str]:
    """Return the images in the folder that neither a row nor a label names."""
    root = held.data.root.path
    if not root.is_dir():
        return []
    named: set[str] = set()
    folders: set[str] = set()
    in_files = [task for task in held.config.tasks.values() if KIND_SPECS[task.kind].in_files]
    for row in held.rows:
        for name in (row.image, *(row.labels[task.name] for task in in_files if task.name in row.labels)):
            try:
                named.update(map(os.path.normpath, files_of(held.data, name)))
            except (MtfedError, OSError, ValueError):
                continue
            folders.add(os.path.normpath(name))
        named.update(os.path.normpath(cell) for cell in row.others.values() if "." in cell)
    left = [name for name in list_files(root) if format_of(name) and name not in named]
    return [name for name in left if os.path.dirname(name) not in folders]


def few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def plain(said: str, name: str, key: str) -> str:
    """Return an error about a file without what stands beside it anyway: the file's name, and the site's."""
    said = said.replace(f" of site {key}", "")
    for start in (f"Cannot read image {name}: ", f"Image {name}: ", f"Mask {name} ", f"Image {name} "):
        said = said.removeprefix(start)
    return said[:1].upper() + said[1:]
