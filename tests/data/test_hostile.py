"""Whatever is broken, lies or is far too large is one sentence with the file's name, and takes no memory."""

from __future__ import annotations

import gzip
import io
import resource
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.scans import as_bytes, dicom, nifti, ramp, site, write_nrrd, write_series
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    MPEG4HP41,
    UID,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    SegmentationStorage,
)

from mtfed.data.formats import FORMATS, MAX_VALUES, Picture, read_picture
from mtfed.errors import MtfedError
from mtfed.site.check.tags import identifying_tags
from mtfed.site.draft.scan import _read_header

MEGABYTE = 2**20
SUFFIXES = [suffix for format in FORMATS.values() for suffix in format.suffixes]
PLAIN = np.eye(4)


def read(folder: Path, name: str, dimensions: int = 3) -> Picture:
    return read_picture(site(folder), name, "image", dimensions)


def refuse(folder: Path, name: str, message: str = "site", dimensions: int = 3) -> None:
    """Check that a file is refused in one sentence that names it."""
    with pytest.raises(MtfedError, match=message) as caught:
        read(folder, name, dimensions)
    told = str(caught.value)
    assert name.split("#")[0] in told and "site north" in told and "\n" not in told and told.endswith(".")


@contextmanager
def lean(megabytes: int = 64) -> Iterator[None]:
    """Fail where Python and numpy, or all of the process, come to take more than some megabytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    assert peak < megabytes and grown < 4 * megabytes, f"took {peak:.0f} MB, and the process grew by {grown:.0f}"


# Good files to be broken.


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
    """Return a volume in every format, by a file's name."""
    write_nrrd(tmp_path / "a.nrrd", NOISE)
    write_nrrd(tmp_path / "raw.nrrd", NOISE, encoding="raw")
    found = {
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
    found["a.mha"] = (
        b"ObjectType = Image\nNDims = 3\nDimSize = 16 16 6\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
        + NOISE.tobytes()
    )
    return found


NAMES = ("a.dcm", "rle.dcm", "a.nii", "a.nii.gz", "a.nrrd", "raw.nrrd", "a.npy", "a.npz", "a.tif", "a.mha")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_was_cut_is_refused(name: str, tmp_path: Path) -> None:
    whole = good(tmp_path)[name]
    (tmp_path / name).write_bytes(whole)
    assert read(tmp_path, name).values.size == NOISE.size
    for length in (0, 1, 100, 140, len(whole) // 3, len(whole) * 2 // 3, len(whole) - 40):
        (tmp_path / name).write_bytes(whole[:length])
        refuse(tmp_path, name, "it is empty; mend or remove it" if length == 0 else "Cannot read")


@pytest.mark.parametrize("name", NAMES)
def test_whatever_the_bytes_are_nothing_else_is_raised(name: str, tmp_path: Path) -> None:
    whole, rng = good(tmp_path)[name], np.random.default_rng(1)
    for trial in range(40):
        content = bytearray(whole)
        for place in rng.integers(0, len(content) if trial % 2 else min(len(content), 400), 6):
            content[place] = rng.integers(256)
        (tmp_path / name).write_bytes(bytes(content))
        try:
            assert read(tmp_path, name).values.size <= MAX_VALUES
        except MtfedError as error:
            assert name in str(error)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ""])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_text_is_no_image(suffix: str, dimensions: int, tmp_path: Path) -> None:
    (tmp_path / f"a{suffix}").write_text("patient,image\n" * 50)
    refuse(tmp_path, f"a{suffix}", dimensions=dimensions)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ""])
def test_a_format_under_the_name_of_another(suffix: str, tmp_path: Path) -> None:
    contents = good(tmp_path) | {"a.png": saved(lambda stream: Image.new("L", (8, 8)).save(stream, "PNG"))}
    for name, content in contents.items():
        path = tmp_path / f"other{suffix}"
        path.write_bytes(content)
        try:
            values = read(tmp_path, path.name).values
        except MtfedError as error:
            assert path.name in str(error)
        else:
            np.testing.assert_array_equal(values.shape, NOISE.shape if name[-3:] in ("dcm", "tif") else values.shape)


def test_dicom_under_a_pictures_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(as_bytes(dicom(NOISE[0])))
    refuse(tmp_path, "a.png", "it is a DICOM file under a picture's name; give it a name in .dcm", 2)


# What declares more than there is, or than an image may have.


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


def npy(shape: str, kind: str = "<f8", rest: bytes = b"") -> bytes:
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + rest


def npz(content: bytes, name: str = "image.npy", method: int = zipfile.ZIP_DEFLATED) -> bytes:
    def write(stream: io.BytesIO) -> None:
        with zipfile.ZipFile(stream, "w", method) as archive:
            archive.writestr(name, content)

    return saved(write)


def nrrd(sizes: str, encoding: str = "raw", rest: bytes = b"", more: str = "") -> bytes:
    head = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {sizes}\nendian: little\nencoding: {encoding}\n{more}\n"
    return head.encode() + rest


def mha(sizes: str, rest: bytes = b"", more: str = "", place: str = "LOCAL", kind: str = "MET_UCHAR") -> bytes:
    head = f"ObjectType = Image\nNDims = 3\nDimSize = {sizes}\nElementType = {kind}\n{more}ElementDataFile = {place}\n"
    return head.encode() + rest


def giant(**fields: Any) -> bytes:
    dataset = dicom(NOISE)
    if fields.get("PixelData", b"")[:4] == b"\xfe\xff\x00\xe0":  # in items, which are for packed frames
        dataset.file_meta.TransferSyntaxUID = RLELossless
    for name, value in fields.items():
        setattr(dataset, name, value)
    return as_bytes(dataset)


def deflated(size: int, inside: bytes = b"\x09\x00\x10\x00OB\0\0" + struct.pack("<I", 2**32 - 2)) -> bytes:
    """Return a DICOM file that unpacks to an element, or others, and so many zeros."""
    dataset = dicom(NOISE)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    content = as_bytes(dataset)
    start = content.index(b"1.2.840.10008.1.2.1.99") + 22
    while content[start : start + 2] == b"\x02\x00" or content[start] == 0:  # the rest of group 2
        if content[start] == 0:
            start += 1
            continue
        start += 8 + struct.unpack("<H", content[start + 6 : start + 8])[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    parts = [packer.compress(inside)] + [packer.compress(bytes(MEGABYTE)) for _ in range(size // MEGABYTE)]
    return content[:start] + b"".join(parts) + packer.flush()


def encapsulated(syntax: UID, frame: bytes, values: np.ndarray = NOISE[0]) -> bytes:
    dataset = dicom(values)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    return as_bytes(dataset)


def runs(count: int) -> bytes:
    """Return a frame of two segments that unpacks to ``count`` bytes each."""
    segment = b"\x81\x00" * (count // 128)
    return struct.pack("<16I", 2, 64, 64 + len(segment), *(0,) * 13) + segment + segment


J2K = b"\xff\x4f\xff\x51" + struct.pack(">HHIIIIIIIIH", 41, 0, 2**31, 2**31, 0, 0, 2**31, 2**31, 0, 0, 1) + b"\x0f\1\1"
PACKED = {"PixelData": encapsulate([bytes(64)] * 9)}
THIN = {"Rows": 1, "Columns": 1, "NumberOfFrames": 2**18, "PixelData": bytes(2**19)}
MUCH = "values, more than the 268435456 that an image may have; crop or resample it"
ZEROS = gzip.compress(bytes(128 * MEGABYTE), 1)
BOMBS: list[tuple[str, int, Callable[[], bytes], str]] = [
    ("a.png", 2, lambda: png(100_000, 100_000), "it declares more pixels than a picture may have; crop or resample it"),
    ("a.png", 2, lambda: png(2**31 - 1, 2**31 - 1), "declares more pixels|cannot read|no picture"),
    ("a.png", 2, lambda: png(12_000, 12_000), "image file is truncated|broken"),
    ("a.tif", 2, lambda: tiff(60_000, 60_000), "it declares more pixels than a picture may have"),
    ("a.nii", 3, lambda: nii((32767, 32767, 32767)), f"it declares 32767 x 32767 x 32767 {MUCH}"),
    ("a.nii", 3, lambda: nii((600, 600, 600)), "too short for the 216000352 bytes that it declares; copy it again"),
    ("a.nii", 3, lambda: nii((-3, 8, 8)), r"it declares -3 x 8 x 8 values; mend or remove it"),
    ("a.nii", 3, lambda: nii((0, 8, 8)), r"it declares 0 x 8 x 8 values"),
    ("a.nii", 3, lambda: nii((2, 2, 2), bytes(8), vox_offset=1e9), "it is broken, or no NIfTI file"),
    ("a.nii", 3, lambda: nii((2, 2, 2), bytes(8), vox_offset=-4), "it is broken, or no NIfTI file"),
    ("a.nii", 3, lambda: nii((2, 2, 2, 3), bytes(24)), "it should be one volume of numbers, .* 2 x 2 x 2 x 3 and type"),
    ("a.nii", 3, lambda: nii((2, 2, 2), bytes(64), datatype=128), "should be one volume of numbers"),
    ("a.nii", 3, lambda: nii((2, 2, 2), bytes(8), srow_x=[0, 0, 0, 0]), "affine is singular"),
    ("a.nii", 3, lambda: nii((2, 2, 2), bytes(8), srow_x=[np.nan, 0, 0, 0]), "affine is singular"),
    ("a.nii", 3, lambda: nii((2, 2, 2), bytes(8), magic=b"ni1"), "its values lie in another file; save header and val"),
    ("a.nii.gz", 3, lambda: gzip.compress(nii((600, 600, 600))), "it is too short for the 216000352 bytes"),
    ("a.nii.gz", 3, lambda: gzip.compress(nii((30, 30, 3), bytes(1000))), "it ends after 1352 of the 3052 bytes"),
    ("a.nii.gz", 3, lambda: ZEROS, "it is broken, or no NIfTI file"),
    ("a.npy", 3, lambda: npy("(100000, 100000, 100000)"), MUCH),
    ("a.npy", 3, lambda: npy("(8, 8, 8)"), "it is broken, or contains something other than arrays of numbers"),
    ("a.npy", 3, lambda: npy("(600, 600, 600)"), "it is broken, or contains something other than arrays of numbers"),
    ("a.npy", 3, lambda: npy("(8,8,8)", "|O", b"\x80\4."), "it is broken, or contains something other than arrays"),
    ("a.npy", 3, lambda: npy("9" * 5000), "it is broken"),
    ("a.npz", 3, lambda: npz(npy("(100000, 100000, 100000)")), MUCH),
    ("a.npz", 3, lambda: npz(npy("(600, 600, 600)")), "it is broken, or holds something else"),
    ("a.npz", 3, lambda: npz(npy("(8, 8, 8)", rest=bytes(4096)), method=zipfile.ZIP_LZMA), "it is broken"),
    ("a.npz", 3, lambda: npz(b"\x80\4.", "image.pkl"), "Expected an array 'image' in a.npz of site north, found none"),
    ("a.nrrd", 3, lambda: nrrd("100000 100000 100000"), MUCH),
    ("a.nrrd", 3, lambda: nrrd("9999999999 9999999999 2"), MUCH),
    ("a.nrrd", 3, lambda: nrrd("8 8 8"), "it is broken, or no NRRD file"),
    ("a.nrrd", 3, lambda: nrrd("0 8 8"), "it declares 0 x 8 x 8 values"),
    ("a.nrrd", 3, lambda: nrrd("-8 -8 8", rest=bytes(512)), "it declares -8 x -8 x 8 values"),
    ("a.nrrd", 3, lambda: nrrd("8 8 8", "gzip", ZEROS), "it is broken, or no NRRD file"),
    ("a.nrrd", 3, lambda: nrrd("8 8 8", "ascii", b"1 " * 10**6), "it is broken, or no NRRD file"),
    ("a.nrrd", 3, lambda: nrrd("8 8 8", more="data file: /etc/passwd\n"), "its header names another file or place for"),
    ("a.nrrd", 3, lambda: nrrd("8 8 8", more="datafile: LIST\n"), "its header names another file"),
    ("a.nrrd", 3, lambda: nrrd("8 8 8", more="line skip: 999999999\n", rest=bytes(512)), "its header names another"),
    ("a.mha", 3, lambda: mha("100000 100000 100000"), MUCH),
    ("a.mha", 3, lambda: mha("8 8 8"), "it is broken, or no MetaImage"),
    ("a.mha", 3, lambda: mha("8 8 8", ZEROS, "CompressedData = True\n"), "it is broken, or no MetaImage"),
    ("a.mha", 3, lambda: mha("8 8 8", place="/etc/passwd"), "should be in one file beside it, not in '/etc/passwd'"),
    ("a.mhd", 3, lambda: mha("8 8 8", place="../../secret.raw"), "should be in one file beside it"),
    ("a.mhd", 3, lambda: mha("8 8 8", place="LIST"), "should be in one file beside it"),
    ("a.mhd", 3, lambda: mha("8 8 8", place="%03d.raw 1 3 1"), "should be in one file beside it"),
    ("a.dcm", 3, lambda: giant(Rows=65535, Columns=65535, NumberOfFrames=1000), MUCH),
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
def test_bombs(name: str, dimensions: int, content: Callable[[], bytes], message: str, tmp_path: Path) -> None:
    if name.endswith((".mha", ".mhd")):
        pytest.importorskip("SimpleITK")
    (tmp_path / name).write_bytes(content())
    with lean():
        refuse(tmp_path, name, message, dimensions)


def test_what_is_deflated_is_not_unpacked_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtfed.data.formats.dicom.MAX_BYTES", 4 * MEGABYTE)
    (tmp_path / "a.dcm").write_bytes(deflated(64 * MEGABYTE))
    with lean():
        refuse(tmp_path, "a.dcm", "its deflated content is broken or too large; save it without deflating")


def test_headers_are_read_to_the_pixels_whatever_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, False
    write_dataset(stream, dicom(NOISE, PatientID="12", Modality="CT"))
    monkeypatch.setattr("mtfed.data.formats.dicom.MAX_HEADER", MEGABYTE, raising=False)
    (tmp_path / "a.dcm").write_bytes(deflated(256 * MEGABYTE, stream.getvalue()))
    with lean():
        found = _read_header(tmp_path / "a.dcm")
        told = identifying_tags((tmp_path / "a.dcm").read_bytes())
        assert (found.patient, found.modality, told) == ("12", "CT", ("PatientID",))


FIELDS_OF_OTHERS = [  # of a MetaImage, and whether it is read without them
    ("ElementDataFile : = {}%.0d.raw 0 0 1\n", True),
    ("Comment = x\nElementDataFile:={}.raw\n", True),
    ("ElementSpacing = 1 1 1 ElementDataFile : {}.raw\n", False),
    ("ElementDataFile = {}.raw\n", False),
]


@pytest.mark.parametrize(("field", "good"), FIELDS_OF_OTHERS)
def test_no_field_of_a_header_leads_to_another_file(field: str, good: bool, tmp_path: Path) -> None:
    """MetaIO takes a colon for an equals sign, and the last of two fields."""
    pytest.importorskip("SimpleITK")
    (tmp_path / "secret.raw").write_bytes(bytes(16))
    (tmp_path / "site").mkdir()
    content = mha("4 4 1", bytes([7] * 16), field.format(tmp_path / "secret"))
    (tmp_path / "site" / "a.mha").write_bytes(content)
    if good:
        assert (read(tmp_path / "site", "a.mha").values == 7).all()
    else:
        refuse(tmp_path / "site", "a.mha", "it is broken, or no MetaImage|in one file beside it")


def test_what_a_header_names_must_be_there(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    (tmp_path / "a.mhd").write_bytes(mha("8 8 8", place="none.raw"))
    with pytest.raises(MtfedError, match=r"Cannot read image none\.raw of site north: there is no such file"):
        read(tmp_path, "a.mhd")


def test_of_what_follows_an_image_nothing_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(nifti(NOISE, PLAIN)) + ZEROS)
    with lean():
        assert read(tmp_path, "a.nii.gz").values.size == NOISE.size


def test_a_member_that_lies_of_its_size_is_refused(tmp_path: Path) -> None:
    whole = bytearray(npz(npy("(8, 8, 8)", rest=bytes(64 * MEGABYTE))))
    size = struct.pack("<I", 64 * MEGABYTE + 128)
    for _ in range(2):
        at = bytes(whole).index(size)
        whole[at : at + 4] = struct.pack("<I", 128 + 4096)
    (tmp_path / "a.npz").write_bytes(bytes(whole))
    with lean():
        refuse(tmp_path, "a.npz", "it is broken, or contains something other than arrays of numbers")


def test_a_broken_file_ends_no_decoder_for_the_next(tmp_path: Path) -> None:
    """GDCM ends its process on some of these."""
    gdcm = pytest.importorskip("gdcm")
    from test_formats import compress

    assert gdcm
    whole = compress(as_bytes(dicom(NOISE[0].astype(np.uint16))), "JPEGLosslessProcess14_1", tmp_path)
    frame = dcmread(io.BytesIO(whole)).PixelData
    start, rng = whole.index(frame) + 20, np.random.default_rng(0)
    for trial in range(6):
        content = bytearray(whole)
        for place in rng.integers(start, min(start + 60, len(whole)), 4):
            content[place] = rng.integers(256)
        (tmp_path / "bad.dcm").write_bytes(bytes(content) if trial % 3 else whole[: len(whole) - 60 - trial])
        try:
            read(tmp_path, "bad.dcm", 2)
        except MtfedError as error:
            assert "bad.dcm" in str(error)
    (tmp_path / "good.dcm").write_bytes(whole)
    np.testing.assert_array_equal(read(tmp_path, "good.dcm", 2).values, NOISE[0])


# What is no image at all.


def test_dicom_that_holds_no_image(tmp_path: Path) -> None:
    plan = dicom(NOISE)
    del plan.PixelData
    (tmp_path / "a.dcm").write_bytes(as_bytes(plan))
    refuse(tmp_path, "a.dcm", r"it holds no picture \(CT Image Storage\); name a file that does")
    segments = dicom(NOISE.astype(np.uint8), SegmentSequence=Sequence([dicom(NOISE)]))
    segments.SOPClassUID = SegmentationStorage
    del segments.SegmentSequence[0].PixelData
    (tmp_path / "s.dcm").write_bytes(as_bytes(segments))
    refuse(tmp_path, "s.dcm", "it is a DICOM segmentation; save it as NIfTI or NRRD over its image")


# Folders that are no series.

VOLUME = ramp(6, 16, 16)


def spoil(folder: Path, change: Callable[[list[Any]], None]) -> None:
    """Write a series, with its datasets changed, in the order of their places."""
    write_series(folder, VOLUME)
    paths = sorted(folder.iterdir(), key=lambda path: dcmread(path).ImagePositionPatient[2])
    datasets = [dcmread(path) for path in paths]
    change(datasets)
    for path, dataset in zip(paths, datasets, strict=True):
        path.unlink()
        if dataset is not None:
            path.write_bytes(dataset if isinstance(dataset, bytes) else as_bytes(dataset))


def changed(index: int, **fields: Any) -> Callable[[list[Any]], None]:
    def change(datasets: list[Any]) -> None:
        for name, value in fields.items():
            setattr(datasets[index], name, value)

    return change


def replaced(index: int, content: Any) -> Callable[[list[Any]], None]:
    def change(datasets: list[Any]) -> None:
        datasets[index] = content

    return change


def smaller(datasets: list[Any]) -> None:
    datasets[2].Rows, datasets[2].Columns, datasets[2].PixelData = 8, 8, bytes(128)


def nowhere(datasets: list[Any]) -> None:
    for dataset in datasets:
        del dataset.ImagePositionPatient, dataset.InstanceNumber


def twice(datasets: list[Any]) -> None:
    datasets[4].ImagePositionPatient = datasets[3].ImagePositionPatient


SPOILT: list[tuple[Callable[[list[Any]], None], str]] = [
    (replaced(3, None), r"scan/IM\d+ and scan/IM\d+ are 6 mm apart, most of its slices 3 mm: some are missing"),
    (changed(3, ImagePositionPatient=[10, 20, 40]), "some are missing, or they are uneven; complete the series, or re"),
    (changed(3, ImagePositionPatient=[15, 20, 39]), "its slices are shifted against each other; resample it"),
    (twice, "have the same position; put each phase or echo into a folder of its own"),
    (changed(2, SeriesInstanceUID="1.2.4"), "it holds 2 series, of 5, 1 images; put each into a folder of its own"),
    (smaller, "its images have several sizes, as 8 x 8 and 16 x 16; put each stack into a folder of its own"),
    (changed(2, PixelSpacing=[1, 1]), "its images have several pixel spacings"),
    (changed(2, ImageOrientationPatient=[0, 1, 0, 0, 0, 1]), "its images cut the patient in several directions"),
    (nowhere, "its images have neither positions nor an order; save them as one NIfTI or NRRD file"),
    (replaced(2, b""), r"Cannot read image scan/IM\d+ of site north: it is empty; mend or remove it"),
    (
        replaced(5, b"cut"),
        r"Cannot read image scan/IM\d+ of site north: it is no DICOM file: its mark 'DICM' is missing",
    ),
    (replaced(2, as_bytes(dicom(ramp(16, 16)))[:140]), r"Cannot read image scan/IM\d+ of site north"),
]


@pytest.mark.parametrize(("change", "message"), SPOILT)
def test_a_folder_that_is_no_series(change: Callable[[list[Any]], None], message: str, tmp_path: Path) -> None:
    spoil(tmp_path / "scan", change)
    refuse(tmp_path, "scan", message)


def test_folders_without_a_series(tmp_path: Path) -> None:
    (tmp_path / "scan").mkdir()
    refuse(tmp_path, "scan", "Is a directory|no such file")
    (tmp_path / "scan" / "notes.txt").write_text("x")
    refuse(tmp_path, "scan", "it is a folder without DICOM files; name a file, or a folder with one series")
    (tmp_path / "scan" / "a.dcm").write_text("x")
    with pytest.raises(MtfedError, match=r"Cannot read image scan/a\.dcm of site north: it is no DICOM file: its mark"):
        read(tmp_path, "scan")


@pytest.mark.parametrize("name", ["../a.nii", "/etc/passwd", "../scan", "../a.nii#2", "x/../../a.dcm"])
def test_no_name_leads_out_of_a_site(name: str, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "a.nii").write_bytes(nifti(NOISE, PLAIN))
    with pytest.raises(MtfedError, match="Expected a path inside"):
        read(tmp_path / "site", name, 2)
