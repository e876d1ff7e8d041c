"""Files to be broken, and checks that a broken file is refused with one sentence and little memory."""

from __future__ import annotations

import gzip
import io
import resource
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import (
    RLELossless,
)

from helpers.scans import (
    as_bytes,
    dicom,
    nifti,
    site,
    write_nrrd,
)
from mtfed.data.formats import Picture, read_picture
from mtfed.errors import MtfedError

MEGABYTE = 2**20

PLAIN = np.eye(4)


def read_volume(folder: Path, name: str, dimensions: int = 3) -> Picture:
    return read_picture(site(folder), name, "image", dimensions)


def refuse(folder: Path, name: str, message: str = "site", dimensions: int = 3) -> None:
    """Check that a file is refused in one sentence that names it."""
    with pytest.raises(MtfedError, match=message) as caught:
        read_volume(folder, name, dimensions)
    message = str(caught.value)
    assert name.split("#")[0] in message and "site north" in message
    assert "\n" not in message and message.endswith(".")


@contextmanager
def limited_memory(megabytes: int = 64) -> Iterator[None]:
    """Fail if Python and NumPy, or the whole process, take more than some megabytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    assert peak < megabytes and grown < 4 * megabytes, f"took {peak:.0f} MB, and the process grew by {grown:.0f}"


def saved(write: Callable[[io.BytesIO], Any]) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def packed(values: np.ndarray) -> bytes:
    dataset = dicom(values)
    dataset.compress(RLELossless)
    return as_bytes(dataset)


NOISE = np.random.default_rng(0).integers(0, 4000, (6, 16, 16)).astype(np.int16)

PAGES = [Image.fromarray(page.astype(np.uint16)) for page in NOISE]


def good(tmp_path: Path) -> dict[str, bytes]:
    """Return the content of a volume in every format by file name."""
    write_nrrd(tmp_path / "a.nrrd", NOISE)
    write_nrrd(tmp_path / "raw.nrrd", NOISE, encoding="raw")
    files = {
        "a.dcm": as_bytes(dicom(NOISE)),
        "rle.dcm": packed(NOISE),
        "a.nii": nifti(NOISE, PLAIN),
        "a.nii.gz": gzip.compress(nifti(NOISE, PLAIN)),
        "a.nrrd": (tmp_path / "a.nrrd").read_bytes(),
        "raw.nrrd": (tmp_path / "raw.nrrd").read_bytes(),
        "a.npy": saved(lambda stream: np.save(stream, NOISE)),
        "a.npz": saved(lambda stream: np.savez_compressed(stream, image=NOISE)),
        "a.tif": saved(lambda stream: PAGES[0].save(stream, "TIFF", save_all=True, append_images=PAGES[1:])),
    }
    files["a.mha"] = (
        b"ObjectType = Image\nNDims = 3\nDimSize = 16 16 6\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
        + NOISE.tobytes()
    )
    return files


def npy(shape: str, kind: str = "<f8", rest: bytes = b"") -> bytes:
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + rest


def npz(content: bytes, name: str = "image.npy", method: int = zipfile.ZIP_DEFLATED) -> bytes:
    def write(stream: io.BytesIO) -> None:
        with zipfile.ZipFile(stream, "w", method) as archive:
            archive.writestr(name, content)

    return saved(write)


def mha(sizes: str, rest: bytes = b"", extra: str = "", place: str = "LOCAL", kind: str = "MET_UCHAR") -> bytes:
    head = f"ObjectType = Image\nNDims = 3\nDimSize = {sizes}\nElementType = {kind}\n{extra}ElementDataFile = {place}\n"
    return head.encode() + rest


ZEROS = gzip.compress(bytes(128 * MEGABYTE), 1)
