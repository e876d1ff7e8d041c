"""One image of a site and its labels, read once: what a record keeps of them."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from functools import partial
from posixpath import normpath

import numpy as np
import torch
import torch.nn.functional as F

from ...config import Config
from ...data.formats import files_of, format_of
from ...data.manifest import Row, SiteData, location
from ...errors import MtfedError
from .cells import LabelRead, read_label
from .recording_source import RecordingSource, fault_of
from .tags import identifying

THUMB = {2: 24, 3: 12}  # side of what is kept of an image, to find it again in others


@dataclass
class Examined:
    """What is known of a row's image; ``fault`` is "" or what is wrong: missing, outside, unreadable, killed."""

    number: int  # of the row
    fault: str = ""
    said: str = ""
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] | None = None
    kind: str = ""  # of its values: "8 bits", "16 bits", "16 bits signed", "floating", ...
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    deviation: float = 0.0
    mostly: float = 0.0  # share of its values that are its most common one
    digest: bytes = b""
    thumb: np.ndarray | None = None  # uint8
    tags: dict[str, tuple[str, ...]] = field(default_factory=dict)  # identifying attributes that its files fill
    labels: dict[str, LabelRead] = field(default_factory=dict)


def examine(data: SiteData, config: Config, tagged: Container[int], number: int) -> Examined:
    """Return what is known of one row's image and labels; a fault is part of it, and nothing is raised.

    Args:
        data: the site's.
        config: whose tasks and settings it is read by.
        tagged: the rows of which the files are looked through for identifying attributes.
        number: of the row.
    """
    row, found = data.rows[number], Examined(number)
    source = RecordingSource(
        data, row.image, config.image_size, config.dimensions, config.window_ends, config.proportions
    )
    try:
        _look(source, found)
    except MtfedError as error:
        found.fault, found.said = fault_of(data, row.image), str(error)
    except Exception as error:  # a reader that fails in a way of its own must not hide the file
        found.fault, found.said = "unreadable", f"{type(error).__name__}: {error}"
    for name, cell in row.labels.items():
        found.labels[name] = read_label(cell, config.tasks[name], source, not found.fault)
    if number in tagged and found.fault not in ("missing", "outside"):
        found.tags = _tags(data, row)
    return found


def _look(source: RecordingSource, found: Examined) -> None:
    """Read an image, as training would, and keep what tells it from others."""
    pixels = source.pixels(1)
    assert source.image_read is not None
    values = source.image_read.values
    found.shape, found.spacing = values.shape, source.image_read.spacing
    found.kind = kind_of_values(values)
    sample = values if values.size <= 2**22 else values.ravel()[:: values.size // 2**22 + 1]
    found.low, found.high = float(values.min()), float(values.max())
    found.mean, found.deviation = float(sample.mean(dtype=np.float64)), float(sample.std(dtype=np.float64))
    found.mostly = _most_common(sample)
    content = np.ascontiguousarray(values)
    found.digest = hashlib.blake2b(content.view(np.uint8).data, key=str(values.shape).encode(), digest_size=16).digest()
    side = THUMB[source.dimensions]
    small = F.interpolate(torch.from_numpy(pixels.astype(np.float32))[None], (side,) * source.dimensions, mode="area")
    found.thumb = small[0, 0].round().byte().numpy()


def kind_of_values(values: np.ndarray) -> str:
    """Say how an image's values are held, and of whole numbers of more than 8 bits whether some are below 0.

    >>> kind_of_values(np.zeros((2, 2, 3), np.uint8))
    '8 bits, colour'
    """
    if values.dtype.itemsize == 1:
        held = "8 bits"
    else:
        held = "more than 8 bits" + (", negative ones" if values.min() < 0 else "")
    return held + (", colour" if values.ndim == 3 and values.shape[2] == 3 else "")


def _most_common(sample: np.ndarray) -> float:
    """Return the share of an image's values that are its most common one."""
    if sample.dtype == np.uint8:
        return float(np.bincount(sample.ravel(), minlength=1).max() / sample.size)
    low, high = float(sample.min()), float(sample.max())
    if low == high:
        return 1.0
    return float(np.histogram(sample, 256, (low, high))[0].max() / sample.size)


def _tags(data: SiteData, row: Row) -> dict[str, tuple[str, ...]]:
    """Return the identifying attributes that each file of an image fills."""
    found = {}
    try:
        for name in files_of(data, row.image):
            format = format_of(name)
            if (format is None or format.is_dicom) and (tags := identifying(data.root.read(name))):
                found[normpath(name)] = tags
    except (MtfedError, OSError, KeyError, ValueError, zipfile.BadZipFile):
        pass  # what cannot be read is told as that
    return found


def examiner(data: SiteData, config: Config) -> Callable[[int], Examined]:
    """Return what examines a row by its number, as other processes may be given it.

    A volume may have a row a slice: its files are looked through for the first of them only.
    """
    first: dict[str, int] = {}
    for row in data.rows:
        first.setdefault(location(row), row.number)
    return partial(examine, data, config, frozenset(first.values()))
