"""What a label of the manifest says, or what is wrong with it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ...errors import MtfedError
from ...tasks.kind import kind_of
from ...tasks.segmentation import as_indices
from ...tasks.specs import KIND_SPECS
from ...tasks.task import Task
from .recording_source import RecordingSource, fault_of


@dataclass
class LabelRead:
    """What a label says; ``fault`` is "" or what is wrong: missing, unreadable, misfit, values, range, class, wrong."""

    fault: str = ""
    said: str = ""
    counts: dict[str, int] = field(default_factory=dict)  # by class: 1 of an image's, boxes, pixels of a mask
    number: float | None = None
    empty: bool = False  # a mask without anything marked


def read_label(cell: str, task: Task, source: RecordingSource, readable: bool) -> LabelRead:
    """Read a label as training would, and say what is in it or what is wrong with it.

    Args:
        cell: of the manifest.
        task: that it is a label of.
        source: of its image.
        readable: whether that image can be read.
    """
    source.label_read = None
    try:
        values = kind_of(task).read(cell, task, source)
    except MtfedError as error:
        return LabelRead(_label_fault(cell, task, source, readable), str(error))
    except Exception as error:
        return LabelRead("unreadable", f"Label {cell!r} of task {task.name}: {type(error).__name__}: {error}")
    return SAYS[task.kind](values, task, source)


def _label_fault(cell: str, task: Task, source: RecordingSource, readable: bool) -> str:
    """Say which kind of thing is wrong with a label, or "" if it is only that its image cannot be read."""
    if KIND_SPECS[task.kind].in_files:
        if (fault := fault_of(source.data, cell)) in ("missing", "outside"):
            return fault
        return "" if not readable else _file_fault(cell, task, source)
    if task.kind == "regression":
        words = [word.strip() for word in cell.split(";")]
        return "range" if len(words) == len(task.classes) and all(map(_is_number, words)) else "wrong"
    if task.kind != "detection":
        return "class"
    if not readable:
        return ""
    boxes = [box.split(",") for box in cell.split(";") if box.strip()]
    ends = 2 * source.dimensions
    if not boxes or not all(_is_number(number.strip()) for box in boxes for number in box[:ends]):
        return "wrong"
    return "range" if all(_is_class(name.strip(), task) for box in boxes for name in box[ends:]) else "class"


def _file_fault(cell: str, task: Task, source: RecordingSource) -> str:
    if task.kind != "segmentation":
        try:
            arrays = source.arrays(cell, task.name)
            held = [arrays[name] for name in (*task.classes, "dose", "possible") if name in arrays]
        except MtfedError:
            return "unreadable"
        fits = all(array.shape == source.letterbox.shape for array in held)
        return "wrong" if not held else "values" if fits and task.kind != "dose" else "range" if fits else "misfit"
    if source.label_read is None:
        return "unreadable"
    values = source.label_read.values
    return "values" if values.shape == source.letterbox.shape and _beyond(values, task) else "misfit"


def _is_number(text: str) -> bool:
    try:
        return text == "?" or math.isfinite(float(text))
    except ValueError:
        return False


def _is_class(name: str, task: Task) -> bool:
    return name in task.classes or name.isdecimal()


def _beyond(values: np.ndarray, task: Task) -> bool:
    if values.dtype.kind not in "uib":
        return True
    indices = as_indices(values, len(task.classes))
    return bool(indices.min() < 0 or indices.max() >= len(task.classes))


def _class(values: np.ndarray, task: Task, source: RecordingSource) -> LabelRead:
    return LabelRead(counts={task.classes[int(values)]: 1})


def _labels(values: np.ndarray, task: Task, source: RecordingSource) -> LabelRead:
    return LabelRead(counts={name: 1 for name, value in zip(task.classes, values, strict=True) if value == 1})


def _mask(values: np.ndarray, task: Task, source: RecordingSource) -> LabelRead:
    # As it was in the file, where small things are not yet lost to the model's pixels.
    held = as_indices(source.label_read.values, len(task.classes)) if source.label_read is not None else values
    counts = np.bincount(held.astype(np.uint8).ravel(), minlength=len(task.classes))
    found = {name: int(n) for name, n in zip(task.classes[1:], counts[1:], strict=True) if n}
    return LabelRead(counts=found, empty=not found)


def _masks(values: np.ndarray, task: Task, source: RecordingSource) -> LabelRead:
    counts = {name: int((mask == 1).sum()) for name, mask in zip(task.classes, values, strict=True)}
    counts = {name: count for name, count in counts.items() if count}
    return LabelRead(counts=counts, empty=not counts)


def _boxes(values: np.ndarray, task: Task, source: RecordingSource) -> LabelRead:
    return LabelRead(counts=dict(Counter(task.classes[int(index)] for index in values[:, -1])))


def _numbers(values: np.ndarray, task: Task, source: RecordingSource) -> LabelRead:
    known = [float(value) for value in values if np.isfinite(value)]
    held = {name: 1 for name, value in zip(task.classes, values, strict=True) if np.isfinite(value)}
    return LabelRead(counts=held, number=known[0] if known else None)


def _dose(values: np.ndarray, task: Task, source: RecordingSource) -> LabelRead:
    bits = values[1].view(np.uint16)
    held = {name: int((bits >> k & 1).sum()) for k, name in enumerate(task.classes)}
    return LabelRead(counts={name: count for name, count in held.items() if count})


SAYS: dict[str, Callable[[np.ndarray, Task, RecordingSource], LabelRead]] = {
    "classification": _class,
    "ordinal": _class,
    "multi-label": _labels,
    "segmentation": _mask,
    "multi-label-segmentation": _masks,
    "detection": _boxes,
    "regression": _numbers,
    "dose": _dose,
}
