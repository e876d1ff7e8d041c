"""Read the labels of the manifest as training does, and record what they contain or what is wrong with them."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field

import numpy as np

from ...data.formats import Picture, file_of
from ...data.manifest import SiteData
from ...data.source import Source
from ...errors import LabelError, MtfedError
from ...tasks.kind import kind_of
from ...tasks.task import Task


class RecordingSource(Source):
    """A source that keeps the last image and the last label as they were read."""

    image_read: Picture | None = None
    label_read: Picture | None = None

    def read(self, name: str, what: str) -> Picture:
        picture = super().read(name, what)
        if what == "image" and name == self.image:
            self.image_read = picture
        else:
            self.label_read = picture
        return picture


def fault_of(data: SiteData, name: str) -> str:
    """Return why a file cannot be read: "outside" the site's folder, "missing", or "unreadable"."""
    try:
        data.root.stamp(file_of(name))
    except MtfedError:
        return "outside"
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return "missing"
    return "unreadable"


@dataclass
class LabelContent:
    """What a label contains, or why it cannot be used."""

    fault: str = ""  # "", or what is wrong: a fault of mtfed.errors.LabelError, or missing, outside
    reason: str = ""  # the error message of a fault
    counts: dict[str, int] = field(default_factory=dict)  # by class: images (1), boxes, or pixels of a mask
    number: float | None = None
    is_empty: bool = False  # whether it is a mask with nothing marked


def read_label(cell: str, task: Task, source: RecordingSource, readable: bool) -> LabelContent:
    """Read a label as training does, and return what it contains or what is wrong with it.

    Args:
        cell: the label's cell in the manifest.
        task: the label's task.
        source: the label's image.
        readable: whether that image can be read.
    """
    source.label_read = None
    try:
        label = kind_of(task).read(cell, task, source)
    except MtfedError as error:
        return LabelContent(_fault(error, cell, task, source, readable), str(error))
    except Exception as error:  # a reader that fails in an unexpected way must not hide the label
        return LabelContent("unreadable", f"Label {cell!r} of task {task.name}: {type(error).__name__}: {error}")
    return _describe(label, cell, task, source)


def _fault(error: MtfedError, cell: str, task: Task, source: RecordingSource, readable: bool) -> str:
    """Return what is wrong with a label, or "" if the only fault is that its image cannot be read."""
    if task.spec.in_files and (fault := fault_of(source.data, cell)) in ("missing", "outside"):
        return fault
    if task.spec.geometry and not readable:
        return ""
    return error.fault if isinstance(error, LabelError) else "unreadable"


def _describe(label: np.ndarray, cell: str, task: Task, source: RecordingSource) -> LabelContent:
    kind, picture = kind_of(task), source.label_read
    raw = picture.values if picture is not None and not source.container(cell) else None
    counts = kind.class_counts(label, task, raw)
    numbers = [float(n) for n in label if np.isfinite(n)] if task.spec.has_range and not task.spec.geometry else []
    number = numbers[0] if numbers else None
    return LabelContent(counts=counts, number=number, is_empty=kind.masks is not None and not counts)
