"""A header that declares more than the file contains or an image may have is refused before memory is allocated."""

from __future__ import annotations

import gzip
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG4HP41,
    UID,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from helpers.broken_files import MEGABYTE, NOISE, PLAIN, ZEROS, limited_memory, mha, npy, npz, refuse, saved
from helpers.scans import (
    as_bytes,
    dicom,
    nifti,
)


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def tiff(width: int, height: int) -> bytes:
    content = saved(lambda stream: Image.new("L", (8, 8)).save(stream, "TIFF"))
    fields = struct.unpack("<H", content[8:10])[0]
    changed = bytearray(content)
    for i in range(fields):
        at = 10 + 12 * i
        if (tag := struct.unpack("<H", content[at : at + 2])[0]) in (256, 257):
            changed[at : at + 12] = struct.pack("<HHII", tag, 4, 1, width if tag == 256 else height)
    return bytes(changed)


FIELDS = {"datatype": (70, "<h"), "vox_offset": (108, "<f"), "srow_x": (280, "<4f"), "magic": (344, "4s")}


def nii(shape: tuple[int, ...], rest: bytes = b"", **fields: Any) -> bytes:
    content = bytearray(nifti(np.zeros((2, 2, 2), np.uint8), PLAIN)[:352])
    struct.pack_into("<8h", content, 40, len(shape), *shape, *(1,) * (7 - len(shape)))
    struct.pack_into("<f", content, 108, 352)
    for name, value in fields.items():
        struct.pack_into(FIELDS[name][1], content, FIELDS[name][0], *(value if name == "srow_x" else (value,)))
    return bytes(content) + rest


def nrrd(sizes: str, encoding: str = "raw", rest: bytes = b"", extra: str = "") -> bytes:
    head = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {sizes}\nendian: little\nencoding: {encoding}\n{extra}\n"
    return head.encode() + rest


def giant(**fields: Any) -> bytes:
    dataset = dicom(NOISE)
    if fields.get("PixelData", b"")[:4] == b"\xfe\xff\x00\xe0":  # in items, which are for packed frames
        dataset.file_meta.TransferSyntaxUID = RLELossless
    for name, value in fields.items():
        setattr(dataset, name, value)
    return as_bytes(dataset)


def encapsulated(syntax: UID, frame: bytes, values: np.ndarray = NOISE[0]) -> bytes:
    dataset = dicom(values)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    return as_bytes(dataset)


def runs(count: int) -> bytes:
    """Return a frame with two segments that unpack to ``count`` bytes each."""
    segment = b"\x81\x00" * (count // 128)
    return struct.pack("<16I", 2, 64, 64 + len(segment), *(0,) * 13) + segment + segment


J2K = b"\xff\x4f\xff\x51" + struct.pack(">HHIIIIIIIIH", 41, 0, 2**31, 2**31, 0, 0, 2**31, 2**31, 0, 0, 1) + b"\x0f\1\1"

PACKED = {"PixelData": encapsulate([bytes(64)] * 9)}

THIN = {"Rows": 1, "Columns": 1, "NumberOfFrames": 2**18, "PixelData": bytes(2**19)}

TOO_MANY = "values, more than the 268435456 that an image may have; crop or resample it"

BOMBS: list[tuple[str, int, Callable[[], bytes], str]] = [
    ("a.png", 2, lambda: png(100_000, 100_000), "it declares more pixels than a picture may have; crop or resample it"),
    ("a.png", 2, lambda: png(2**31 - 1, 2**31 - 1), "declares more pixels|cannot read|no picture"),
    ("a.png", 2, lambda: png(12_000, 12_000), "image file is truncated|broken"),
    ("a.tif", 2, lambda: tiff(60_000, 60_000), "it declares more pixels than a picture may have"),
    ("a.nii", 3, lambda: nii((32767, 32767, 32767)), f"it declares 32767 x 32767 x 32767 {TOO_MANY}"),
    ("a.nii", 3, lambda: nii((600, 600, 600)), "too short for the 216000352 bytes that it declares; copy it again"),
    ("a.nii", 3, lambda: nii((-3, 8, 8)), r"it declares -3 x 8 x 8 values; repair or remove it"),
    ("a.nii", 3, lambda: nii((0, 8, 8)), r"it declares 0 x 8 x 8 values"),
    ("a.nii", 3, lambda: nii((2, 2, 2), bytes(8), vox_offset=1e9), "it is broken, or not a NIfTI file"),
    ("a.nii", 3, lambda: nii((2, 2, 2), bytes(8), vox_offset=-4), "it is broken, or not a NIfTI file"),
    ("a.nii", 3, lambda: nii((2, 2, 2, 3), bytes(24)), "it should be one volume of numbers, .* 2 x 2 x 2 x 3 and type"),
    ("a.nii", 3, lambda: nii((2, 2, 2), bytes(64), datatype=128), "should be one volume of numbers"),
    ("a.nii", 3, lambda: nii((2, 2, 2), bytes(8), srow_x=[0, 0, 0, 0]), "affine is singular"),
    ("a.nii", 3, lambda: nii((2, 2, 2), bytes(8), srow_x=[np.nan, 0, 0, 0]), "affine is singular"),
    ("a.nii", 3, lambda: nii((2, 2, 2), bytes(8), magic=b"ni1"), "its values are in another file; save header and val"),
    ("a.nii.gz", 3, lambda: gzip.compress(nii((600, 600, 600))), "it is too short for the 216000352 bytes"),
    ("a.nii.gz", 3, lambda: gzip.compress(nii((30, 30, 3), bytes(1000))), "it ends after 1352 of the 3052 bytes"),
    ("a.nii.gz", 3, lambda: ZEROS, "it is broken, or not a NIfTI file"),
    ("a.npy", 3, lambda: npy("(100000, 100000, 100000)"), TOO_MANY),
    ("a.npy", 3, lambda: npy("(8, 8, 8)"), "it is broken, or contains something other than arrays of numbers"),
    ("a.npy", 3, lambda: npy("(600, 600, 600)"), "it is broken, or contains something other than arrays of numbers"),
    ("a.npy", 3, lambda: npy("(8,8,8)", "|O", b"\x80\4."), "it is broken, or contains something other than arrays"),
    ("a.npy", 3, lambda: npy("9" * 5000), "it is broken"),
    ("a.npz", 3, lambda: npz(npy("(100000, 100000, 100000)")), TOO_MANY),
    ("a.npz", 3, lambda: npz(npy("(600, 600, 600)")), "it is broken, or contains something other"),
    ("a.npz", 3, lambda: npz(npy("(8, 8, 8)", rest=bytes(4096)), method=zipfile.ZIP_LZMA), "it is broken"),
    ("a.npz", 3, lambda: npz(b"\x80\4.", "image.pkl"), "Expected an array 'image' in a.npz of site north, got none"),
    ("a.nrrd", 3, lambda: nrrd("100000 100000 100000"), TOO_MANY),
    ("a.nrrd", 3, lambda: nrrd("9999999999 9999999999 2"), TOO_MANY),
    ("a.nrrd", 3, lambda: nrrd("8 8 8"), "it is broken, or not an NRRD file"),
    ("a.nrrd", 3, lambda: nrrd("0 8 8"), "it declares 0 x 8 x 8 values"),
    ("a.nrrd", 3, lambda: nrrd("-8 -8 8", rest=bytes(512)), "it declares -8 x -8 x 8 values"),
    ("a.nrrd", 3, lambda: nrrd("8 8 8", "gzip", ZEROS), "it is broken, or not an NRRD file"),
    ("a.nrrd", 3, lambda: nrrd("8 8 8", "ascii", b"1 " * 10**6), "it is broken, or not an NRRD file"),
    (
        "a.nrrd",
        3,
        lambda: nrrd("8 8 8", extra="data file: /etc/passwd\n"),
        "its header names another file or place for",
    ),
    ("a.nrrd", 3, lambda: nrrd("8 8 8", extra="datafile: LIST\n"), "its header names another file"),
    ("a.nrrd", 3, lambda: nrrd("8 8 8", extra="line skip: 999999999\n", rest=bytes(512)), "its header names another"),
    ("a.mha", 3, lambda: mha("100000 100000 100000"), TOO_MANY),
    ("a.mha", 3, lambda: mha("8 8 8"), "it is broken, or not a MetaImage"),
    ("a.mha", 3, lambda: mha("8 8 8", ZEROS, "CompressedData = True\n"), "it is broken, or not a MetaImage"),
    ("a.mha", 3, lambda: mha("8 8 8", place="/etc/passwd"), "should be in one file next to it, not in '/etc/passwd'"),
    ("a.mhd", 3, lambda: mha("8 8 8", place="../../secret.raw"), "should be in one file next to it"),
    ("a.mhd", 3, lambda: mha("8 8 8", place="LIST"), "should be in one file next to it"),
    ("a.mhd", 3, lambda: mha("8 8 8", place="%03d.raw 1 3 1"), "should be in one file next to it"),
    ("a.dcm", 3, lambda: giant(Rows=65535, Columns=65535, NumberOfFrames=1000), TOO_MANY),
    ("a.dcm", 3, lambda: giant(NumberOfFrames=1000), "it declares 1000 frames of 16 x 16 x 1 values, and holds fewer;"),
    ("a.dcm", 3, lambda: giant(Rows=1, Columns=1, NumberOfFrames=10**8), "100000000 frames .* holds fewer; copy it a"),
    ("a.dcm", 3, lambda: giant(Rows=1, Columns=1, NumberOfFrames=10**8, **PACKED), "100000000 frames .* holds fewer"),
    ("a.dcm", 3, lambda: giant(**THIN), "it declares 262144 frames, more than the 16384 .*; save it as NIfTI or NRRD"),
    ("a.dcm", 3, lambda: giant(NumberOfFrames=-1), "it declares -1 x 16 x 16 x 1 values"),
    ("a.dcm", 3, lambda: giant(Rows=0), "it declares"),
    ("a.dcm", 3, lambda: giant(BitsStored=300), "cannot be decoded|broken"),
    ("a.dcm", 2, lambda: encapsulated(RLELossless, runs(2 * MEGABYTE)), "compressed as RLE Lossless, cannot be de"),
    ("a.dcm", 2, lambda: encapsulated(RLELossless, runs(512 * MEGABYTE)), "compressed as RLE Lossless, cannot be deco"),
    ("a.dcm", 2, lambda: encapsulated(JPEG2000Lossless, J2K), "as JPEG 2000 .*, cannot be decoded"),
    ("a.dcm", 2, lambda: encapsulated(JPEGLosslessSV1, b"\xff\xd8\xff\xc3"), "as JPEG Lossless.*, cannot be decoded"),
    ("a.dcm", 2, lambda: encapsulated(JPEGLSLossless, b"\xff\xd8" + bytes(99)), "as JPEG-LS.*, cannot be decoded"),
    ("a.dcm", 2, lambda: encapsulated(MPEG4HP41, bytes(99)), "as MPEG-4.*, cannot be decoded"),
]


@pytest.mark.parametrize(("name", "dimensions", "content", "message"), BOMBS)
def test_declared_sizes_are_checked_first(
    name: str, dimensions: int, content: Callable[[], bytes], message: str, tmp_path: Path
) -> None:
    if name.endswith((".mha", ".mhd")):
        pytest.importorskip("SimpleITK")
    (tmp_path / name).write_bytes(content())
    with limited_memory():
        refuse(tmp_path, name, message, dimensions)
