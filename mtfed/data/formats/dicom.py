"""DICOM, by pydicom: one file, with one frame or several, or a folder of them that is one series."""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import _read_file_meta_info, read_dataset, read_preamble
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from .dicom_pixels import check_pixels, extremes, stored_values
from .dicom_planes import Plane, arrange, planes_of
from .picture import MAX_VALUES, Picture
from .registry import FORMATS
from .source_file import SourceFile
from .volume import lay_out

MARK = b"DICM"  # after 128 bytes of anything
BROKEN = "it is broken, or no DICOM file; mend or remove it"
OTHERS = re.compile(r"[^.\d]+|.*\.[a-z]+\d?")  # VERSION, notes.txt; but not IM0001, nor 1.2.840.7
MAX_BYTES = 4 * MAX_VALUES  # of the files of a series together, or of a file's inside
MAX_HEADER = 2**26  # bytes before the pixels, of what was deflated
PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)  # tags
SEGMENTATIONS = "1.2.840.10008.5.1.4.1.1.66"  # and what follows


def is_dicom(content: bytes) -> bool:
    """Say whether a file begins as DICOM does."""
    return content[128:132] == MARK


def read_dicom(file: SourceFile, dimensions: int, content: bytes = b"") -> Picture:
    """Read one file, of which the content may have been read already."""
    with _quiet(), file.reading(BROKEN):
        content = content or file.read()
        return _compose([(file, _parse(content, file), content)], file, dimensions)


def read_series(file: SourceFile, names: list[str], dimensions: int) -> Picture:
    """Read the files of a folder as the slices of one volume.

    Files that are no DICOM, and not called as images are, are left alone: what archives put beside.
    """
    root = file.site.root
    if sum(root.stamp(name)[0] for name in names) > MAX_BYTES:
        raise file.error(
            f"its files have more than {MAX_BYTES / 2**30:.0f} GiB together; put each series into a folder of its own"
        )
    with _quiet(), file.reading(BROKEN):
        found = []
        for name in names:
            part = file.other(name)
            short = name.rsplit("/", 1)[-1].lower()
            if short.startswith("."):
                continue
            content = part.read()
            if not is_dicom(content) and not short.endswith(FORMATS["DICOM"].suffixes) and OTHERS.fullmatch(short):
                continue
            with part.reading(BROKEN):
                dataset = _parse(content, part)
            if dataset.file_meta.get("MediaStorageSOPClassUID") != MediaStorageDirectoryStorage:
                found.append((part, dataset, content))
        if not found:
            raise file.error("it is a folder without DICOM files; name a file, or a folder with one series")
        return _compose(found, file, dimensions)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():  # of values that break the standard's letter, as many do
        warnings.simplefilter("ignore")
        yield


def read_header(stream: BinaryIO, keywords: list[str] | None = None) -> Dataset:
    """Return what a DICOM file holds before its pixels; raise whatever pydicom does if that cannot be read.

    Args:
        stream: the file, from its start; its mark may be missing.
        keywords: the elements that are wanted; there may be others.
    """
    if _inflatable(stream) is None:
        stream.seek(0)
        return dcmread(stream, stop_before_pixels=True, specific_tags=keywords, force=True)  # type: ignore[arg-type]
    inside = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream.read(MAX_HEADER), MAX_HEADER)
    return read_dataset(io.BytesIO(inside), False, True, stop_when=lambda tag, vr, length: tag in PIXELS)


def _inflatable(stream: BinaryIO) -> FileMetaDataset | None:
    """Return the first part of a file of which the rest is deflated, and stop there; of others ``None``.

    pydicom would unpack the rest whole, whatever comes out; so this must see what pydicom sees, by its own function.
    """
    read_preamble(stream, force=True)
    meta = _read_file_meta_info(stream)
    return meta if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian else None


def _parse(content: bytes, file: SourceFile) -> Dataset:
    if not is_dicom(content):
        raise file.error("it is no DICOM file: its mark 'DICM' is missing; mend or remove it")
    stream = io.BytesIO(content)
    if (meta := _inflatable(stream)) is None:
        return dcmread(io.BytesIO(content))
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    inside = unpacker.decompress(stream.read(), MAX_BYTES)
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise file.error("what it holds in packed form is broken or too large; save it without deflating")
    dataset = read_dataset(io.BytesIO(inside), False, True)
    dataset.file_meta = meta
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def _compose(found: list[tuple[SourceFile, Dataset, bytes]], file: SourceFile, dimensions: int) -> Picture:
    """Return the planes of one or more files as a picture."""
    for part, dataset, _ in found:
        if str(dataset.get("SOPClassUID", "")).startswith(SEGMENTATIONS) and dataset.get("SegmentSequence"):
            raise part.error("it is a DICOM segmentation; save it as NIfTI or NRRD over its image")
        with part.reading(BROKEN):
            check_pixels(dataset, part)
    planes: list[Plane] = []
    for index, (part, dataset, _) in enumerate(found):
        with part.reading(BROKEN):
            planes += planes_of(dataset, index, part.name)
    order, affine, spacing = arrange(planes, file)
    file.check_size(len(order), *order[0].shape)
    values, window = _fill(found, order, file)
    if dimensions == 2 and len(order) == 1:  # as it was taken: upright, whichever way it cuts
        return Picture(values[0], spacing and spacing[1:], affine, window)
    across = values.transpose(2, 1, 0, *range(3, values.ndim))
    return lay_out(across, file, dimensions, affine, spacing and spacing[::-1], window)


def _fill(
    found: list[tuple[SourceFile, Dataset, bytes]], order: list[Plane], file: SourceFile
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Return the planes' values (K, J, I[, 3]) in their order, and the window to show them in."""
    ends = [extremes(dataset) for _, dataset, _ in found]
    places: list[list[int]] = [[] for _ in found]
    for place, plane in enumerate(order):
        places[plane.file].append(place)
    dtype = _dtype([plane.scale(end) for plane in order for end in ends[plane.file]])
    whole = all(plane.slope.is_integer() and plane.intercept.is_integer() for plane in order)
    values, windows = np.empty(0), []
    for index, (part, dataset, content) in enumerate(found):
        frames = stored_values(dataset, content, part)
        coloured = frames.ndim == 4
        inverted = dataset.PhotometricInterpretation == "MONOCHROME1" and not file.is_label
        if not values.size:
            values = np.empty((len(order), *frames.shape[1:]), frames.dtype if coloured else dtype if whole else "f4")
        for place in places[index]:
            plane, frame = order[place], frames[order[place].frame]
            mirror = sum(plane.scale(end) for end in ends[index]) if inverted else 0.0
            if plane.window:
                low, high = plane.window
                windows.append((mirror - high, mirror - low) if inverted else (low, high))
            if coloured or (plane.slope, plane.intercept, inverted) == (1, 0, False):
                values[place] = frame
            else:
                scaled = frame * np.float64(plane.slope) + plane.intercept
                values[place] = mirror - scaled if inverted else scaled
    shown = np.median(windows, axis=0).tolist() if len(windows) == len(order) else None
    return values, shown and (shown[0], shown[1])


def _dtype(ends: list[float]) -> np.dtype:
    """Return the smallest type of whole numbers that holds all ends, float32 if those of 32 bits do not."""
    for dtype in map(np.dtype, ("u1", "i2", "u2", "i4", "u4")):
        if np.iinfo(dtype).min <= min(ends) <= max(ends) <= np.iinfo(dtype).max:
            return dtype
    return np.dtype(np.float32)
