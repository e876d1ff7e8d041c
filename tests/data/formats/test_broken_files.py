"""A file that is cut, damaged, or of another format raises one error that names it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from helpers.broken_files import NOISE, PLAIN, good, read_volume, refuse, saved
from helpers.scans import (
    as_bytes,
    compress,
    dicom,
    nifti,
)
from mtfed.data.formats import FORMATS, MAX_VALUES
from mtfed.errors import MtfedError

SUFFIXES = [suffix for format in FORMATS.values() for suffix in format.suffixes]

NAMES = ("a.dcm", "rle.dcm", "a.nii", "a.nii.gz", "a.nrrd", "raw.nrrd", "a.npy", "a.npz", "a.tif", "a.mha")


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_file_is_refused(name: str, tmp_path: Path) -> None:
    whole = good(tmp_path)[name]
    (tmp_path / name).write_bytes(whole)
    assert read_volume(tmp_path, name).values.size == NOISE.size
    for length in (0, 1, 100, 140, len(whole) // 3, len(whole) * 2 // 3, len(whole) - 40):
        (tmp_path / name).write_bytes(whole[:length])
        refuse(tmp_path, name, "it is empty; repair or remove it" if length == 0 else "Cannot read")


@pytest.mark.parametrize("name", NAMES)
def test_damaged_bytes_raise_only_our_error(name: str, tmp_path: Path) -> None:
    whole, rng = good(tmp_path)[name], np.random.default_rng(1)
    for trial in range(40):
        content = bytearray(whole)
        for position in rng.integers(0, len(content) if trial % 2 else min(len(content), 400), 6):
            content[position] = rng.integers(256)
        (tmp_path / name).write_bytes(bytes(content))
        try:
            assert read_volume(tmp_path, name).values.size <= MAX_VALUES
        except MtfedError as error:
            assert name in str(error)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ""])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_text_is_refused(suffix: str, dimensions: int, tmp_path: Path) -> None:
    (tmp_path / f"a{suffix}").write_text("patient,image\n" * 50)
    refuse(tmp_path, f"a{suffix}", dimensions=dimensions)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ""])
def test_a_file_with_the_suffix_of_another_format(suffix: str, tmp_path: Path) -> None:
    contents = good(tmp_path) | {"a.png": saved(lambda stream: Image.new("L", (8, 8)).save(stream, "PNG"))}
    for name, content in contents.items():
        path = tmp_path / f"other{suffix}"
        path.write_bytes(content)
        try:
            values = read_volume(tmp_path, path.name).values
        except MtfedError as error:
            assert path.name in str(error)
        else:
            np.testing.assert_array_equal(values.shape, NOISE.shape if name[-3:] in ("dcm", "tif") else values.shape)


def test_dicom_with_the_suffix_of_a_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(as_bytes(dicom(NOISE[0])))
    refuse(tmp_path, "a.png", "it is a DICOM file under a picture's name; give it a name in .dcm", 2)


def test_the_decoder_survives_broken_files(tmp_path: Path) -> None:
    """GDCM crashes its process on some of these."""
    gdcm = pytest.importorskip("gdcm")
    assert gdcm
    whole = compress(as_bytes(dicom(NOISE[0].astype(np.uint16))), "JPEGLosslessProcess14_1", tmp_path)
    frame = dcmread(io.BytesIO(whole)).PixelData
    start, rng = whole.index(frame) + 20, np.random.default_rng(0)
    for trial in range(6):
        content = bytearray(whole)
        for position in rng.integers(start, min(start + 60, len(whole)), 4):
            content[position] = rng.integers(256)
        (tmp_path / "bad.dcm").write_bytes(bytes(content) if trial % 3 else whole[: len(whole) - 60 - trial])
        try:
            read_volume(tmp_path, "bad.dcm", 2)
        except MtfedError as error:
            assert "bad.dcm" in str(error)
    (tmp_path / "good.dcm").write_bytes(whole)
    np.testing.assert_array_equal(read_volume(tmp_path, "good.dcm", 2).values, NOISE[0])


@pytest.mark.parametrize("name", ["../a.nii", "/etc/passwd", "../scan", "../a.nii#2", "x/../../a.dcm"])
def test_no_name_leads_out_of_the_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "a.nii").write_bytes(nifti(NOISE, PLAIN))
    with pytest.raises(MtfedError, match="Expected a path inside"):
        read_volume(tmp_path / "site", name, 2)
