"""The positions of the planes of DICOM files, their order along the normal, and the meaning of their values."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.multival import MultiValue

from .source_file import SourceFile

SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
MEASURES, TRANSFORM = "PixelMeasuresSequence", "PixelValueTransformationSequence"
TOLERANCE = 0.1  # fraction of a step by which a plane may be displaced


@dataclass(frozen=True)
class Plane:
    """One frame of one file."""

    file: int
    frame: int
    name: str
    shape: tuple[int, int]
    series: str
    number: int | None  # number of the image in its series
    corner: np.ndarray | None  # (3,) centre of the first pixel, mm in LPS
    directions: np.ndarray | None  # (2, 3) unit vectors along a row and along a column
    pixel: tuple[float, float] | None  # mm between rows, and between columns
    thickness: float  # mm to the next plane, NaN if unknown
    slope: float
    intercept: float
    window: tuple[float, float] | None

    def scale(self, value: float) -> float:
        """Return the physical value of a stored value."""
        return self.slope * value + self.intercept


def planes_of(dataset: Dataset, file: int, name: str) -> list[Plane]:
    """Return the frames of a file as described by its header."""
    count = int(dataset.get("NumberOfFrames") or 1)
    return [_plane(dataset, file, frame, count, name) for frame in range(count)]


def _plane(dataset: Dataset, file: int, frame: int, count: int, name: str) -> Plane:
    orientation = _numbers(_attribute(dataset, frame, "PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    pixels = (_numbers(_attribute(dataset, frame, MEASURES, key), 2) for key in SPACINGS)
    pixel = next((spacing for spacing in pixels if spacing is not None), None)
    step = _attribute(dataset, frame, MEASURES, "SpacingBetweenSlices")
    if step is None and count == 1:
        step = _attribute(dataset, frame, MEASURES, "SliceThickness")
    slope = _attribute(dataset, frame, TRANSFORM, "RescaleSlope", dataset.get("DoseGridScaling"))
    number = dataset.get("InstanceNumber")
    return Plane(
        file=file,
        frame=frame,
        name=name,
        shape=(int(dataset.Rows), int(dataset.Columns)),
        series=str(dataset.get("SeriesInstanceUID", "")),
        number=None if number is None else int(number),
        corner=_corner(dataset, frame, count, orientation),
        directions=None if orientation is None else orientation.reshape(2, 3),
        pixel=None if pixel is None else (float(pixel[0]), float(pixel[1])),
        thickness=float(step) if step else math.nan,
        slope=1.0 if slope is None else float(slope),
        intercept=float(_attribute(dataset, frame, TRANSFORM, "RescaleIntercept", 0)),
        window=_window(dataset, frame),
    )


def _attribute(dataset: Dataset, frame: int, sequence: str, keyword: str, default: Any = None) -> Any:
    """Return an attribute of a frame: the frame's own, the one shared by all frames, or the file's."""
    for groups, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        if dataset.get(groups):
            group = dataset[groups][index].get(sequence)
            if group and group[0].get(keyword) is not None:
                return group[0].get(keyword)
    value = dataset.get(keyword)
    return default if value is None else value


def _numbers(value: Any, count: int) -> np.ndarray | None:
    if not value or len(value) != count:
        return None
    numbers = np.array([float(number) for number in value])
    return numbers if np.isfinite(numbers).all() else None


def _corner(dataset: Dataset, frame: int, count: int, orientation: np.ndarray | None) -> np.ndarray | None:
    corner = _numbers(_attribute(dataset, frame, "PlanePositionSequence", "ImagePositionPatient"), 3)
    offsets = dataset.get("GridFrameOffsetVector")  # positions of a dose's planes
    if corner is not None and orientation is not None and offsets is not None and count > 1:
        return corner + np.cross(orientation[:3], orientation[3:]) * (float(offsets[frame]) - float(offsets[0]))
    # A single position for several frames is the position of the first.
    return corner if count == 1 or "PerFrameFunctionalGroupsSequence" in dataset else None


def _window(dataset: Dataset, frame: int) -> tuple[float, float] | None:
    """Return the ends of the first window (PS3.3, C.11.2.1.2), else of the first lookup table."""
    keys = ("WindowCenter", "WindowWidth", "VOILUTFunction")
    values = (_attribute(dataset, frame, "FrameVOILUTSequence", key) for key in keys)
    level, width, function = (value[0] if isinstance(value, MultiValue) and len(value) else value for value in values)
    if level is not None and width is not None and float(width) > 0:
        level, width = float(level), float(width)
        if function in (None, "", "LINEAR") and width > 1:
            level, width = level - 0.5, width - 1
        return level - width / 2, level + width / 2
    if not (table := dataset.get("VOILUTSequence")):
        return None
    first, outputs = int(table[0].LUTDescriptor[1]), np.asarray(table[0].LUTData)
    dark, bright = np.flatnonzero(outputs == outputs.min()), np.flatnonzero(outputs == outputs.max())
    low, high = first + float(dark[-1]), first + float(bright[0])
    return (low, high) if low < high else None


def arrange(planes: list[Plane], file: SourceFile) -> tuple[list[Plane], np.ndarray | None, tuple[float, ...] | None]:
    """Return the planes in order, the affine of their stack (columns, rows, planes), and its spacing (z, y, x).

    Raises:
        MtfedError: if the planes are not one volume: of several series, sizes or directions, uneven, or incomplete.
    """
    first = planes[0]
    _check_same_form(planes, file)
    positions = [(p.corner, p.directions) for p in planes if p.corner is not None and p.directions is not None]
    if len(positions) < len(planes):
        order = _by_number(planes, file)
        return order, None, first.pixel and (first.thickness, *first.pixel)
    corners = np.stack([corner for corner, _ in positions])
    directions = np.stack([of_plane for _, of_plane in positions])
    if abs(directions - directions[0]).max() > 1e-3:
        raise file.error("its images cut the patient in several directions; put each stack into a folder of its own")
    normal = np.cross(*directions[0])
    index = np.argsort(corners @ normal, kind="stable")
    order, corners = [planes[i] for i in index], corners[index]
    step = _step(order, corners, normal, file)
    if not first.pixel:
        return order, None, None
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = directions[0, 0] * first.pixel[1], directions[0, 1] * first.pixel[0]
    affine[:3, 2], affine[:3, 3] = step, corners[0]
    return order, affine, (float(np.linalg.norm(step)), *first.pixel)


def _check_same_form(planes: list[Plane], file: SourceFile) -> None:
    series = Counter(plane.series for plane in planes)
    if len(series) > 1:
        counts = ", ".join(str(count) for _, count in series.most_common(8))
        raise file.error(f"it holds {len(series)} series, of {counts} images; put each into a folder of its own")
    if len(shapes := {plane.shape for plane in planes}) > 1:
        sizes = " and ".join(f"{height} x {width}" for height, width in sorted(shapes)[:2])
        raise file.error(f"its images have several sizes, as {sizes}; put each stack into a folder of its own")
    pixels = [plane.pixel for plane in planes]
    known = [pixel for pixel in pixels if pixel]
    if len(known) not in (0, len(pixels)) or (known and not np.allclose(known, known[0], rtol=1e-3)):
        raise file.error("its images have several pixel spacings; put each stack into a folder of its own")


def _by_number(planes: list[Plane], file: SourceFile) -> list[Plane]:
    """Return planes with unknown positions in the order of their numbers."""
    if all(plane.file == planes[0].file for plane in planes):
        return planes
    numbers = [plane.number for plane in planes]
    if None in numbers or len(set(numbers)) < len(numbers):
        raise file.error("its images have neither positions nor an order; save them as one NIfTI or NRRD file")
    return sorted(planes, key=lambda plane: plane.number or 0)


def _step(order: list[Plane], corners: np.ndarray, normal: np.ndarray, file: SourceFile) -> np.ndarray:
    """Return the vector (3,) from a plane to the next; refuse planes at uneven distances."""
    if len(order) == 1:
        thickness = order[0].thickness
        return normal * (thickness if thickness > 0 else 1.0)
    gaps = np.diff(corners @ normal)
    median = float(np.median(gaps))
    for i, gap in enumerate(gaps):
        if gap < 1e-3:
            raise file.error(
                f"{order[i].name} and {order[i + 1].name} have the same position; put each phase or echo into a "
                "folder of its own"
            )
    worst = int(np.argmax(abs(gaps - median)))
    if abs(gaps[worst] - median) > TOLERANCE * median:
        raise file.error(
            f"{order[worst].name} and {order[worst + 1].name} are {gaps[worst]:.4g} mm apart, most of its slices "
            f"{median:.4g} mm: some are missing, or they are uneven; complete the series, or resample it"
        )
    step = (corners[-1] - corners[0]) / (len(order) - 1)
    straight = corners[0] + np.arange(len(order))[:, None] * step
    if np.linalg.norm(corners - straight, axis=1).max() > max(TOLERANCE * median, 1e-3):
        raise file.error("its slices are shifted against each other; resample it to a straight stack")
    return step
