"""The registry of formats, and how file names are matched with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.scans import read
from mtfed.data.formats import (
    FORMATS,
    Format,
    Picture,
    file_of,
    format_of,
    is_volume_file,
    register_format,
    registry,
    split_slice,
    stem_of,
    suffix_of,
)
from mtfed.data.formats.source_file import SourceFile
from mtfed.errors import MtfedError


def test_suffixes() -> None:
    names = {"a.nii.gz": ".nii.gz", "x/B.NII.GZ": ".nii.gz", "a.b.dcm": ".dcm", "a.gz": "", "a": "", "x.y/a": "",
             ".png": ".png", "a.seg.nrrd": ".nrrd"}  # fmt: skip
    assert {name: suffix_of(name) for name in names} == names


def test_stems_formats_and_slices() -> None:
    names = {"x/liver.nii.gz": "liver", "a.b.dcm": "a.b", "IM.0001": "IM", "table.csv": "table", "scan": "scan"}
    assert {name: stem_of(name) for name in names} == names
    assert is_volume_file("a.mhd") and not is_volume_file("a.png") and not is_volume_file("scan")
    dicom = format_of("a.IMA")
    assert dicom is not None and dicom.is_dicom and format_of("a.txt") is None
    assert split_slice("a.nii#3") == ("a.nii", 3) and split_slice("a#b") == ("a#b", None)
    assert file_of("b#c.png#12") == "b#c.png" and file_of("b#c.png") == "b#c.png"


def read_text(file: SourceFile, dimensions: int) -> Picture:
    return Picture(np.array([[float(cell) for cell in line.split()] for line in file.read().decode().splitlines()]))


def test_a_format_from_outside_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_BY_SUFFIX", dict(registry._BY_SUFFIX))
    (tmp_path / "a.num").write_text("1 2\n3 4\n")
    register_format(Format("numbers", (".num", ".num.txt"), read_text))
    try:
        np.testing.assert_array_equal(read(tmp_path, "a.num").values, [[1, 2], [3, 4]])
        assert suffix_of("a.num.txt") == ".num.txt"
        for other, message in (
            (Format("numbers", (".n",), read_text), "Expected a new format, got numbers, which is registered"),
            (Format("more", (".png",), read_text), "got .png for more, which belongs to picture; choose another"),
            (Format("more", (".N",), read_text), "Expected a suffix in lower case, .* got '.N' for more"),
            (Format("more", ("n",), read_text), "Expected a suffix in lower case"),
        ):
            with pytest.raises(MtfedError, match=message):
                register_format(other)
    finally:
        del FORMATS["numbers"]
