"""Read the image of a row and its labels once, and record what the checks and the page need."""

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
from ...data.every_image import image_dimensions
from ...data.formats import files_of, format_of
from ...data.manifest import Row, SiteData, location
from ...errors import MtfedError
from .label_content import LabelContent, RecordingSource, fault_of, read_label
from .tags import identifying_tags

THUMBNAIL_SIDE = {2: 24, 3: 12}  # side of the small copies that are compared to find duplicates
MAX_SAMPLE = 2**22  # values of an image from which its mean, deviation and mode are computed


@dataclass
class ExaminedImage:
    """What was read from the image of a row and from its labels."""

    number: int  # the row's number
    fault: str = ""  # "" or why the image cannot be used: missing, outside, unreadable, killed
    reason: str = ""  # the error message of a fault
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] | None = None
    value_type: str = ""  # see value_type_of()
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    deviation: float = 0.0
    mode_share: float = 0.0  # share of the most frequent value
    digest: bytes = b""
    thumbnail: np.ndarray | None = None  # uint8
    tags: dict[str, tuple[str, ...]] = field(default_factory=dict)  # file -> identifying DICOM attributes that it fills
    labels: dict[str, LabelContent] = field(default_factory=dict)  # by task


def examine(data: SiteData, config: Config, tagged_rows: Container[int], number: int) -> ExaminedImage:
    """Read the image and the labels of a row. Faults are part of the result; no error is raised.

    Args:
        data: the site.
        config: the tasks and settings to read it with.
        tagged_rows: numbers of the rows whose files are searched for identifying attributes.
        number: the row's number.
    """
    row, image = data.rows[number], ExaminedImage(number)
    form = config.form(image_dimensions(row, config))
    source = RecordingSource(data, row.image, form.size, form.dimensions, config.window_ends, config.proportions)
    try:
        _measure(source, image)
    except MtfedError as error:
        image.fault, image.reason = fault_of(data, row.image), str(error)
    except Exception as error:  # a reader that fails in an unexpected way must not hide the file
        image.fault, image.reason = "unreadable", f"{type(error).__name__}: {error}"
    for name, cell in row.labels.items():
        image.labels[name] = read_label(cell, config.tasks[name], source, not image.fault)
    if number in tagged_rows and image.fault not in ("missing", "outside"):
        image.tags = _read_tags(data, row)
    return image


def make_examiner(data: SiteData, config: Config) -> Callable[[int], ExaminedImage]:
    """Return a function that examines a row by its number and can be sent to other processes.

    Several rows can be slices of one volume; its files are searched for identifying attributes only at the first row.
    """
    first_rows: dict[str, int] = {}
    for row in data.rows:
        first_rows.setdefault(location(row), row.number)
    return partial(examine, data, config, frozenset(first_rows.values()))


def _measure(source: RecordingSource, image: ExaminedImage) -> None:
    """Read an image as training does, and store its properties."""
    pixels = source.pixels(1)
    assert source.image_read is not None
    values = source.image_read.values
    image.shape, image.spacing = values.shape, source.image_read.spacing
    image.value_type = value_type_of(values)
    sample = values if values.size <= MAX_SAMPLE else values.ravel()[:: values.size // MAX_SAMPLE + 1]
    image.low, image.high = float(values.min()), float(values.max())
    image.mean, image.deviation = float(sample.mean(dtype=np.float64)), float(sample.std(dtype=np.float64))
    image.mode_share = _mode_share(sample)
    content = np.ascontiguousarray(values).view(np.uint8).data
    image.digest = hashlib.blake2b(content, key=str(values.shape).encode(), digest_size=16).digest()
    side = THUMBNAIL_SIDE[source.dimensions]
    small = F.interpolate(torch.from_numpy(pixels.astype(np.float32))[None], (side,) * source.dimensions, mode="area")
    image.thumbnail = small[0, 0].round().byte().numpy()


def value_type_of(values: np.ndarray) -> str:
    """Return in words what kind of values an image has: their depth, negative values, colour.

    >>> value_type_of(np.zeros((2, 2, 3), np.uint8))
    '8 bits, colour'
    """
    if values.dtype.itemsize == 1:
        text = "8 bits"
    else:
        text = "more than 8 bits" + (", negative values" if values.min() < 0 else "")
    return text + (", colour" if values.ndim == 3 and values.shape[2] == 3 else "")


def _mode_share(sample: np.ndarray) -> float:
    """Return the share of the most frequent value; values of more than 8 bits are counted in 256 bins."""
    if sample.dtype == np.uint8:
        return float(np.bincount(sample.ravel(), minlength=1).max() / sample.size)
    low, high = float(sample.min()), float(sample.max())
    if low == high:
        return 1.0
    return float(np.histogram(sample, 256, (low, high))[0].max() / sample.size)


def _read_tags(data: SiteData, row: Row) -> dict[str, tuple[str, ...]]:
    """Return the identifying attributes that each DICOM file of an image fills."""
    tags = {}
    try:
        for name in files_of(data, row.image):
            format = format_of(name)
            if (format is None or format.is_dicom) and (names := identifying_tags(data.root.read(name))):
                tags[normpath(name)] = names
    except (MtfedError, OSError, KeyError, ValueError, zipfile.BadZipFile):
        pass  # another check reports that the file cannot be read
    return tags
