"""DICOM, by pydicom: a file with one or several frames, or a folder with the files of one series."""

from __future__ import annotations

import io
import re
import warnings
import zlib
from typing import BinaryIO

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import _read_file_meta_info, read_dataset, read_preamble
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from .dicom_pixels import check_pixels, stored_range, stored_values
from .dicom_planes import Plane, arrange, planes_of
from .picture import MAX_VALUES, Picture
from .registry import FORMATS
from .source_file import SourceFile
from .volume import lay_out

MAGIC = b"DICM"  # after the first 128 bytes
BROKEN = "it is broken, or not a DICOM file; repair or remove it"
NOT_DICOM = re.compile(r"[^.\d]+|.*\.[a-z]+\d?")  # names such as VERSION or notes.txt, but not IM0001 or 1.2.840.7
MAX_BYTES = 4 * MAX_VALUES  # bytes of all files of a series, or of a deflated file, unpacked
MAX_HEADER = 2**26  # bytes before the pixels of a deflated file, unpacked
PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)  # tags
SEGMENTATIONS = "1.2.840.10008.5.1.4.1.1.66"  # prefix of the SOP classes of segmentations


def is_dicom(content: bytes) -> bool:
    """Return whether a file begins like a DICOM file."""
    return content[128:132] == MAGIC


def read_dicom(file: SourceFile, dimensions: int, content: bytes = b"") -> Picture:
    """Read one file, whose content may be given if it has been read already."""
    # Values that do not comply with the standard are common.
    with warnings.catch_warnings(action="ignore"), file.reading(BROKEN):
        content = content or file.read()
        return _compose([(file, _parse(content, file), content)], file, dimensions)


def read_series(file: SourceFile, names: list[str], dimensions: int) -> Picture:
    """Read the files of a folder as the slices of one volume.

    Files that are neither DICOM nor named like images are ignored: archives add them.
    """
    root = file.site.root
    if sum(root.stamp(name)[0] for name in names) > MAX_BYTES:
        limit = f"{MAX_BYTES / 2**30:.0f} GiB"
        raise file.error(f"its files have more than {limit} together; put each series into a folder of its own")
    with warnings.catch_warnings(action="ignore"), file.reading(BROKEN):
        parts = []
        for name in names:
            part = file.other(name)
            short = name.rsplit("/", 1)[-1].lower()
            if short.startswith("."):
                continue
            content = part.read()
            if not is_dicom(content) and not short.endswith(FORMATS["DICOM"].suffixes) and NOT_DICOM.fullmatch(short):
                continue
            with part.reading(BROKEN):
                dataset = _parse(content, part)
            if dataset.file_meta.get("MediaStorageSOPClassUID") != MediaStorageDirectoryStorage:
                parts.append((part, dataset, content))
        if not parts:
            raise file.error("it is a folder without DICOM files; name a file, or a folder with one series")
        return _compose(parts, file, dimensions)


def read_header(stream: BinaryIO, keywords: list[str] | None = None) -> Dataset:
    """Return the elements of a DICOM file before its pixels; raise whatever pydicom raises if they cannot be read.

    Args:
        stream: the file, from its start; it may lack the mark 'DICM'.
        keywords: the elements to read; the result may also contain others.
    """
    if _deflated_meta(stream) is None:
        stream.seek(0)
        return dcmread(stream, stop_before_pixels=True, specific_tags=keywords, force=True)  # type: ignore[arg-type]
    unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream.read(MAX_HEADER), MAX_HEADER)
    return read_dataset(io.BytesIO(unpacked), False, True, stop_when=lambda tag, vr, length: tag in PIXELS)


def _deflated_meta(stream: BinaryIO) -> FileMetaDataset | None:
    """Return the meta information of a file whose other elements are deflated, and stop after it; else ``None``.

    pydicom would unpack such a file without any limit. Its own functions are used here, so that both see the same.
    """
    read_preamble(stream, force=True)
    meta = _read_file_meta_info(stream)
    return meta if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian else None


def _parse(content: bytes, file: SourceFile) -> Dataset:
    if not is_dicom(content):
        raise file.error("it is not a DICOM file: its mark 'DICM' is missing; repair or remove it")
    stream = io.BytesIO(content)
    if (meta := _deflated_meta(stream)) is None:
        return dcmread(io.BytesIO(content))
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    unpacked = unpacker.decompress(stream.read(), MAX_BYTES)
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise file.error("its deflated content is broken or too large; save it without deflating")
    dataset = read_dataset(io.BytesIO(unpacked), False, True)
    dataset.file_meta = meta
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def _compose(parts: list[tuple[SourceFile, Dataset, bytes]], file: SourceFile, dimensions: int) -> Picture:
    """Return the planes of one or more files as a picture."""
    for part, dataset, _ in parts:
        if str(dataset.get("SOPClassUID", "")).startswith(SEGMENTATIONS) and dataset.get("SegmentSequence"):
            raise part.error("it is a DICOM segmentation; save it as NIfTI or NRRD over its image")
        with part.reading(BROKEN):
            check_pixels(dataset, part)
    planes: list[Plane] = []
    for index, (part, dataset, _) in enumerate(parts):
        with part.reading(BROKEN):
            planes += planes_of(dataset, index, part.name)
    order, affine, spacing = arrange(planes, file)
    file.check_size(len(order), *order[0].shape)
    values, window = _fill(parts, order, file)
    if dimensions == 2 and len(order) == 1:  # keeps the orientation in which it was taken
        return Picture(values[0], spacing and spacing[1:], affine, window)
    volume = values.transpose(2, 1, 0, *range(3, values.ndim))
    return lay_out(volume, file, dimensions, affine, spacing and spacing[::-1], window)


def _fill(
    parts: list[tuple[SourceFile, Dataset, bytes]], order: list[Plane], file: SourceFile
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Return the values (K, J, I[, 3]) of the planes in their order, and the window in which to display them."""
    ends = [stored_range(dataset) for _, dataset, _ in parts]
    planes_of_file: list[list[int]] = [[] for _ in parts]
    for k, plane in enumerate(order):
        planes_of_file[plane.file].append(k)
    dtype = _smallest_dtype([plane.scale(end) for plane in order for end in ends[plane.file]])
    is_integer = all(plane.slope.is_integer() and plane.intercept.is_integer() for plane in order)
    values, windows = np.empty(0), []
    for index, (part, dataset, content) in enumerate(parts):
        frames = stored_values(dataset, content, part)
        has_colours = frames.ndim == 4
        inverted = dataset.PhotometricInterpretation == "MONOCHROME1" and not file.is_label
        if not values.size:
            dtype = frames.dtype if has_colours else dtype if is_integer else np.dtype("f4")
            values = np.empty((len(order), *frames.shape[1:]), dtype)
        for k in planes_of_file[index]:
            plane, frame = order[k], frames[order[k].frame]
            mirror = sum(plane.scale(end) for end in ends[index]) if inverted else 0.0
            if plane.window:
                low, high = plane.window
                windows.append((mirror - high, mirror - low) if inverted else (low, high))
            if has_colours or (plane.slope, plane.intercept, inverted) == (1, 0, False):
                values[k] = frame
            else:
                scaled = frame * np.float64(plane.slope) + plane.intercept
                values[k] = mirror - scaled if inverted else scaled
    window = np.median(windows, axis=0).tolist() if len(windows) == len(order) else None
    return values, window and (window[0], window[1])


def _smallest_dtype(ends: list[float]) -> np.dtype:
    """Return the smallest integer type that can represent all ends, float32 if 32 bits do not suffice."""
    for dtype in map(np.dtype, ("u1", "i2", "u2", "i4", "u4")):
        if np.iinfo(dtype).min <= min(ends) <= max(ends) <= np.iinfo(dtype).max:
            return dtype
    return np.dtype(np.float32)
