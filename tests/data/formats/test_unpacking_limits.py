"""Compressed data is unpacked only as far as needed, and no header leads to other files."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import pytest
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
)

from helpers.broken_files import MEGABYTE, NOISE, PLAIN, ZEROS, limited_memory, mha, npy, npz, read_volume, refuse
from helpers.scans import (
    as_bytes,
    dicom,
    nifti,
)
from mtfed.errors import MtfedError
from mtfed.site.check.tags import identifying_tags
from mtfed.site.draft.scan import _read_header


def deflated(size: int, inside: bytes = b"\x09\x00\x10\x00OB\0\0" + struct.pack("<I", 2**32 - 2)) -> bytes:
    """Return a deflated DICOM file that unpacks to some elements and so many zeros."""
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


def test_deflated_dicom_is_unpacked_only_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtfed.data.formats.dicom.MAX_BYTES", 4 * MEGABYTE)
    (tmp_path / "a.dcm").write_bytes(deflated(64 * MEGABYTE))
    with limited_memory():
        refuse(tmp_path, "a.dcm", "its deflated content is broken or too large; save it without deflating")


def test_headers_are_unpacked_only_to_the_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, False
    write_dataset(stream, dicom(NOISE, PatientID="12", Modality="CT"))
    monkeypatch.setattr("mtfed.data.formats.dicom.MAX_HEADER", MEGABYTE, raising=False)
    (tmp_path / "a.dcm").write_bytes(deflated(256 * MEGABYTE, stream.getvalue()))
    with limited_memory():
        header = _read_header(tmp_path / "a.dcm")
        tags = identifying_tags((tmp_path / "a.dcm").read_bytes())
        assert (header.patient, header.modality, tags) == ("12", "CT", ("PatientID",))


OTHER_FIELDS = [  # of a MetaImage header, and whether the file is read without them
    ("ElementDataFile : = {}%.0d.raw 0 0 1\n", True),
    ("Comment = x\nElementDataFile:={}.raw\n", True),
    ("ElementSpacing = 1 1 1 ElementDataFile : {}.raw\n", False),
    ("ElementDataFile = {}.raw\n", False),
]


@pytest.mark.parametrize(("field", "good"), OTHER_FIELDS)
def test_no_field_of_a_header_leads_to_another_file(field: str, good: bool, tmp_path: Path) -> None:
    """MetaIO takes a colon for an equals sign, and the last of two fields."""
    pytest.importorskip("SimpleITK")
    (tmp_path / "secret.raw").write_bytes(bytes(16))
    (tmp_path / "site").mkdir()
    content = mha("4 4 1", bytes([7] * 16), field.format(tmp_path / "secret"))
    (tmp_path / "site" / "a.mha").write_bytes(content)
    if good:
        assert (read_volume(tmp_path / "site", "a.mha").values == 7).all()
    else:
        refuse(tmp_path / "site", "a.mha", "it is broken, or not a MetaImage|in one file next to it")


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    (tmp_path / "a.mhd").write_bytes(mha("8 8 8", place="none.raw"))
    with pytest.raises(MtfedError, match=r"Cannot read image none\.raw of site north: there is no such file"):
        read_volume(tmp_path, "a.mhd")


def test_bytes_after_the_image_are_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(nifti(NOISE, PLAIN)) + ZEROS)
    with limited_memory():
        assert read_volume(tmp_path, "a.nii.gz").values.size == NOISE.size


def test_a_member_with_a_wrong_size_is_refused(tmp_path: Path) -> None:
    whole = bytearray(npz(npy("(8, 8, 8)", rest=bytes(64 * MEGABYTE))))
    size = struct.pack("<I", 64 * MEGABYTE + 128)
    for _ in range(2):
        at = bytes(whole).index(size)
        whole[at : at + 4] = struct.pack("<I", 128 + 4096)
    (tmp_path / "a.npz").write_bytes(bytes(whole))
    with limited_memory():
        refuse(tmp_path, "a.npz", "it is broken, or contains something other than arrays of numbers")
