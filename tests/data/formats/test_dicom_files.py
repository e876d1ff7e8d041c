"""DICOM files with one frame: values, windows, colours, compression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from helpers.scans import (
    as_bytes,
    compress,
    dicom,
    group,
    ramp,
    read_content,
)

GREY, COLOUR = ramp(6, 8, dtype=np.uint8), ramp(6, 8, 3, dtype=np.uint8)

CLEAN = ramp(6, 8)  # 12 bits in 16


def inverted(values: np.ndarray) -> np.ndarray:
    return 4095 - values


DICOMS: list[tuple[np.ndarray, dict[str, Any], Any, Any]] = [  # stored, fields, values, window
    (CLEAN, {"BitsStored": 12}, CLEAN, None),
    (CLEAN, {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12}, inverted(CLEAN), None),
    (
        CLEAN,
        {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "WindowCenter": 1000.5, "WindowWidth": 201},
        inverted(CLEAN),
        (2995, 3195),
    ),
    (CLEAN, {"RescaleSlope": 1, "RescaleIntercept": -1024, "BitsStored": 12}, CLEAN.astype(int) - 1024, None),
    (CLEAN, {"RescaleSlope": 0.5, "RescaleIntercept": -3}, CLEAN * 0.5 - 3, None),
    (
        CLEAN,
        {"RescaleSlope": 2, "RescaleIntercept": -5, "PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12},
        2 * inverted(CLEAN).astype(int) - 5,
        None,
    ),
    (CLEAN.astype(np.int16) - 500, {}, CLEAN.astype(int) - 500, None),
    (CLEAN, {"WindowCenter": [40, 300], "WindowWidth": [401, 1500]}, CLEAN, (-160.5 + 0, 239.5)),
    (CLEAN, {"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "LINEAR_EXACT"}, CLEAN, (-160, 240)),
    (CLEAN, {"WindowCenter": 40, "WindowWidth": 0}, CLEAN, None),
    (GREY, {}, GREY, None),
    (GREY, {"PhotometricInterpretation": "MONOCHROME1"}, 255 - GREY, None),
    (COLOUR, {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, COLOUR, None),
]


@pytest.mark.parametrize(("stored", "fields", "values", "window"), DICOMS)
def test_dicom_values(stored: np.ndarray, fields: dict[str, Any], values: Any, window: Any, tmp_path: Path) -> None:
    picture = read_content(tmp_path, as_bytes(dicom(stored, **fields)))
    np.testing.assert_array_equal(picture.values, values)
    assert picture.window == (None if window is None else pytest.approx(window, abs=0.51))


def test_bits_beyond_those_stored_are_ignored(tmp_path: Path) -> None:
    overlaid = CLEAN | 0xF000
    picture = read_content(tmp_path, as_bytes(dicom(overlaid, BitsStored=12)))
    np.testing.assert_array_equal(picture.values, CLEAN)


def test_ybr_is_converted_to_rgb(tmp_path: Path) -> None:
    smooth = np.broadcast_to(np.arange(0, 240, 30, dtype=np.uint8)[:, None], (6, 8, 3)).copy()
    stored = np.asarray(Image.fromarray(smooth).convert("YCbCr"))
    picture = read_content(tmp_path, as_bytes(dicom(stored, SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL")))
    assert abs(picture.values.astype(int) - smooth).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_is_looked_up_for_images_only(bits: int, tmp_path: Path) -> None:
    stored, table = GREY % 4, np.array([[0, 10, 20, 250], [5, 5, 5, 5], [9, 8, 7, 6]])
    scale = 257 if bits == 16 else 1
    fields: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, entries in zip(("Red", "Green", "Blue"), table, strict=True):
        fields[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 0, bits]
        fields[f"{colour}PaletteColorLookupTableData"] = (entries * scale).astype(f"<u{bits // 8}").tobytes()
    content = as_bytes(dicom(stored, **fields))
    np.testing.assert_array_equal(read_content(tmp_path, content).values, table.T[stored])
    np.testing.assert_array_equal(read_content(tmp_path, content, what="mask").values, stored)


def test_modality_and_voi_lookup_tables(tmp_path: Path) -> None:
    modality = group(X={"LUTDescriptor": [4, 0, 16], "LUTData": [7, 5, 900, 40], "ModalityLUTType": "US"}).X
    voi = group(X={"LUTDescriptor": [6, 100, 8], "LUTData": [0, 0, 3, 90, 255, 255]}).X
    dataset = dicom((GREY % 4).astype(np.uint16), ModalityLUTSequence=modality, VOILUTSequence=voi)
    for sequence in (dataset.ModalityLUTSequence, dataset.VOILUTSequence):
        sequence[0]["LUTDescriptor"].VR = sequence[0]["LUTData"].VR = "US"
    picture = read_content(tmp_path, as_bytes(dataset))
    np.testing.assert_array_equal(picture.values, np.array([7, 5, 900, 40])[GREY % 4])
    assert picture.window == (101, 104)


def test_spacing_and_position_of_a_single_image(tmp_path: Path) -> None:
    position = {"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}  # sagittal
    picture = read_content(tmp_path, as_bytes(dicom(CLEAN, PixelSpacing=[2, 0.5], **position)))
    np.testing.assert_array_equal(picture.values, CLEAN)
    assert picture.spacing == (2, 0.5) and picture.affine is not None
    np.testing.assert_allclose(picture.affine @ [7, 5, 0, 1], [1, 2 + 7 * 0.5, 3 - 5 * 2, 1])
    assert read_content(tmp_path, as_bytes(dicom(CLEAN, ImagerPixelSpacing=[0.1, 0.1]))).spacing == (0.1, 0.1)
    assert read_content(tmp_path, as_bytes(dicom(CLEAN))).spacing is None


@pytest.mark.parametrize("name", ["scan", "IM.0001", "1.2.840.55"])
def test_dicom_without_a_suffix_is_recognised(name: str, tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_content(tmp_path, as_bytes(dicom(CLEAN)), name=name).values, CLEAN)


def test_deflated_dicom(tmp_path: Path) -> None:
    dataset = dicom(CLEAN)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    np.testing.assert_array_equal(read_content(tmp_path, as_bytes(dataset)).values, CLEAN)


def test_run_length_encoded_dicom(tmp_path: Path) -> None:
    for values in (CLEAN, ramp(3, 6, 8), np.zeros((3, 6, 8), np.uint8)):
        dataset = dicom(values)
        dataset.compress(RLELossless)
        picture = read_content(tmp_path, as_bytes(dataset), values.ndim)
        np.testing.assert_array_equal(picture.values, values)


SYNTAXES = [
    ("JPEGLosslessProcess14_1", 0), ("JPEGLosslessProcess14", 0), ("JPEGLSLossless", 0), ("JPEG2000Lossless", 0),
    ("JPEG2000", 2), ("JPEGLSNearLossless", 4),
]  # fmt: skip


@pytest.mark.parametrize(("syntax", "error"), SYNTAXES)
def test_compressed_dicom(syntax: str, error: int, tmp_path: Path) -> None:
    values = np.add.outer(np.arange(24), np.arange(32)).astype(np.uint16) * 40
    content = compress(as_bytes(dicom(values, BitsStored=12, RescaleSlope=1, RescaleIntercept=-7)), syntax, tmp_path)
    assert abs(read_content(tmp_path, content).values + 7 - values).max() <= error


def test_jpeg_in_dicom(tmp_path: Path) -> None:
    values = np.add.outer(np.arange(24), np.arange(32)).astype(np.uint8) * 4
    content = compress(as_bytes(dicom(values)), "JPEGBaselineProcess1", tmp_path)
    assert abs(read_content(tmp_path, content).values.astype(int) - values).max() <= 3
