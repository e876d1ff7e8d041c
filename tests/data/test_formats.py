"""Every format gives the numbers that are in it, and volumes of all formats lie alike."""

from __future__ import annotations

import gzip
import shutil
import struct
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations, product
from pathlib import Path
from threading import Barrier
from typing import Any

import nibabel
import numpy as np
import pytest
from helpers.scans import SHARED, as_bytes, dicom, group, nifti, ramp, site, write_nrrd, write_series
from PIL import Image
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from mtfed.config import read_config
from mtfed.data import formats
from mtfed.data.formats import Picture, files_of, read_picture, suffix_of
from mtfed.data.formats.volume_cache import VolumeCache
from mtfed.data.source import Source
from mtfed.errors import MtfedError
from mtfed.tasks.kind import kind_of
from mtfed.tasks.task import Task

LIES = np.array([[0.8, 0, 0, 10], [0, 0.8, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1.0]])  # what write_series writes
real = pytest.mark.skipif(not SHARED.is_dir(), reason="needs public volumes, which are not part of the project")


def read(folder: Path, name: str, dimensions: int = 2, what: str = "image") -> Picture:
    return read_picture(site(folder), name, what, dimensions)


def read_one(folder: Path, content: bytes, dimensions: int = 2, name: str = "a.dcm", what: str = "image") -> Picture:
    (folder / name).write_bytes(content)
    return read(folder, name, dimensions, what)


# Pictures.

GREY, COLOUR = ramp(6, 8, dtype=np.uint8), ramp(6, 8, 3, dtype=np.uint8)
PICTURES = [
    *((f"a.{suffix}", GREY) for suffix in ("png", "bmp", "tif", "tiff", "pgm", "PNG")),
    *((f"a.{suffix}", COLOUR) for suffix in ("png", "bmp", "tif", "ppm")),
    *((f"a.{suffix}", ramp(6, 8)) for suffix in ("png", "tif")),
    ("a.tif", ramp(6, 8, dtype=np.float32) - 7.5),
]


@pytest.mark.parametrize(("name", "values"), PICTURES)
def test_pictures(name: str, values: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / name)
    found = read(tmp_path, name)
    np.testing.assert_array_equal(found.values, values)
    assert found.values.dtype == values.dtype and found.spacing is found.affine is found.window is None


def test_gif(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.gif")
    np.testing.assert_array_equal(Source(site(tmp_path), "a.gif", 8).pixels(1)[0, 1:7], GREY)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK"])
def test_an_image_shows_colours_and_a_label_holds_numbers(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(COLOUR).convert(mode)
    image.save(tmp_path / "a.tif")
    expected = np.asarray(image.convert("L" if mode in ("1", "LA") else "RGB"))
    np.testing.assert_array_equal(read(tmp_path, "a.tif").values, expected)
    if mode in ("1", "P"):
        np.testing.assert_array_equal(read(tmp_path, "a.tif", what="mask").values, np.asarray(image))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pages_are_slices(dtype: type, tmp_path: Path) -> None:
    volume = ramp(5, 6, 8, dtype=dtype)
    pages = [Image.fromarray(page) for page in volume]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read(tmp_path, "a.tif", 3).values, volume)
    np.testing.assert_array_equal(read(tmp_path, "a.tif#3").values, volume[3])


def tiff(values: np.ndarray, bits: int, photometric: int) -> bytes:
    """Return a TIFF of one row of numbers, packed into so many bits each."""
    packed = int("".join(f"{value:0{bits}b}" for value in values), 2).to_bytes(len(values) * bits // 8)
    packed = values.astype("<u2").tobytes() if bits == 16 else packed
    told = {256: len(values), 257: 1, 258: bits, 259: 1, 262: photometric, 273: 122, 277: 1, 278: 1, 279: len(packed)}
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in told.items())
    return b"II*\0" + struct.pack("<IH", 8, len(told)) + fields + bytes(4) + packed


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_a_tiff_whose_zero_is_white(bits: int, tmp_path: Path) -> None:
    """An image is seen as it is shown, a label holds the numbers that are stored."""
    most = 2**bits - 1
    values = np.array([0, 1, most, most // 2, 1, 0, 0, 1])
    shown = (most - values) * (255 if bits == 1 else 1)
    content = tiff(values, bits, 0)
    np.testing.assert_array_equal(read_one(tmp_path, content, name="a.tif").values, shown[None])
    np.testing.assert_array_equal(read_one(tmp_path, content, name="a.tif", what="mask").values, values[None])
    plain = read_one(tmp_path, tiff(values, bits, 1), name="a.tif", what="mask")
    np.testing.assert_array_equal(plain.values, values[None])


# DICOM.

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
    found = read_one(tmp_path, as_bytes(dicom(stored, **fields)))
    np.testing.assert_array_equal(found.values, values)
    assert found.window == (None if window is None else pytest.approx(window, abs=0.51))


def test_what_lies_above_the_bits_that_are_stored_is_no_value(tmp_path: Path) -> None:
    overlaid = CLEAN | 0xF000
    found = read_one(tmp_path, as_bytes(dicom(overlaid, BitsStored=12)))
    np.testing.assert_array_equal(found.values, CLEAN)


def test_ybr_becomes_rgb(tmp_path: Path) -> None:
    smooth = np.broadcast_to(np.arange(0, 240, 30, dtype=np.uint8)[:, None], (6, 8, 3)).copy()
    stored = np.asarray(Image.fromarray(smooth).convert("YCbCr"))
    found = read_one(tmp_path, as_bytes(dicom(stored, SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL")))
    assert abs(found.values.astype(int) - smooth).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_is_looked_up_for_an_image_alone(bits: int, tmp_path: Path) -> None:
    stored, table = GREY % 4, np.array([[0, 10, 20, 250], [5, 5, 5, 5], [9, 8, 7, 6]])
    scale = 257 if bits == 16 else 1
    fields: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, entries in zip(("Red", "Green", "Blue"), table, strict=True):
        fields[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 0, bits]
        fields[f"{colour}PaletteColorLookupTableData"] = (entries * scale).astype(f"<u{bits // 8}").tobytes()
    content = as_bytes(dicom(stored, **fields))
    np.testing.assert_array_equal(read_one(tmp_path, content).values, table.T[stored])
    np.testing.assert_array_equal(read_one(tmp_path, content, what="mask").values, stored)


def test_tables_of_values_and_of_windows(tmp_path: Path) -> None:
    modality = group(X={"LUTDescriptor": [4, 0, 16], "LUTData": [7, 5, 900, 40], "ModalityLUTType": "US"}).X
    voi = group(X={"LUTDescriptor": [6, 100, 8], "LUTData": [0, 0, 3, 90, 255, 255]}).X
    dataset = dicom((GREY % 4).astype(np.uint16), ModalityLUTSequence=modality, VOILUTSequence=voi)
    for sequence in (dataset.ModalityLUTSequence, dataset.VOILUTSequence):
        sequence[0]["LUTDescriptor"].VR = sequence[0]["LUTData"].VR = "US"
    found = read_one(tmp_path, as_bytes(dataset))
    np.testing.assert_array_equal(found.values, np.array([7, 5, 900, 40])[GREY % 4])
    assert found.window == (101, 104)


def test_a_picture_knows_its_pixels_and_lies_as_it_was_taken(tmp_path: Path) -> None:
    place = {"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}  # sagittal
    found = read_one(tmp_path, as_bytes(dicom(CLEAN, PixelSpacing=[2, 0.5], **place)))
    np.testing.assert_array_equal(found.values, CLEAN)
    assert found.spacing == (2, 0.5) and found.affine is not None
    np.testing.assert_allclose(found.affine @ [7, 5, 0, 1], [1, 2 + 7 * 0.5, 3 - 5 * 2, 1])
    assert read_one(tmp_path, as_bytes(dicom(CLEAN, ImagerPixelSpacing=[0.1, 0.1]))).spacing == (0.1, 0.1)
    assert read_one(tmp_path, as_bytes(dicom(CLEAN))).spacing is None


@pytest.mark.parametrize("name", ["scan", "IM.0001", "1.2.840.55"])
def test_dicom_is_known_by_its_mark(name: str, tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_one(tmp_path, as_bytes(dicom(CLEAN)), name=name).values, CLEAN)


def test_deflated_dicom(tmp_path: Path) -> None:
    dataset = dicom(CLEAN)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    np.testing.assert_array_equal(read_one(tmp_path, as_bytes(dataset)).values, CLEAN)


def test_runs(tmp_path: Path) -> None:
    for values in (CLEAN, ramp(3, 6, 8), np.zeros((3, 6, 8), np.uint8)):
        dataset = dicom(values)
        dataset.compress(RLELossless)
        picture = read_one(tmp_path, as_bytes(dataset), values.ndim)
        np.testing.assert_array_equal(picture.values, values)


def compress(content: bytes, syntax: str, folder: Path) -> bytes:
    """Compress a DICOM file by GDCM."""
    gdcm = pytest.importorskip("gdcm")
    (folder / "plain").write_bytes(content)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(folder / "plain"))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(folder / "packed"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return (folder / "packed").read_bytes()


SYNTAXES = [
    ("JPEGLosslessProcess14_1", 0), ("JPEGLosslessProcess14", 0), ("JPEGLSLossless", 0), ("JPEG2000Lossless", 0),
    ("JPEG2000", 2), ("JPEGLSNearLossless", 4),
]  # fmt: skip


@pytest.mark.parametrize(("syntax", "error"), SYNTAXES)
def test_compressed_dicom(syntax: str, error: int, tmp_path: Path) -> None:
    values = np.add.outer(np.arange(24), np.arange(32)).astype(np.uint16) * 40
    content = compress(as_bytes(dicom(values, BitsStored=12, RescaleSlope=1, RescaleIntercept=-7)), syntax, tmp_path)
    assert abs(read_one(tmp_path, content).values + 7 - values).max() <= error


def test_jpeg_in_dicom(tmp_path: Path) -> None:
    values = np.add.outer(np.arange(24), np.arange(32)).astype(np.uint8) * 4
    content = compress(as_bytes(dicom(values)), "JPEGBaselineProcess1", tmp_path)
    assert abs(read_one(tmp_path, content).values.astype(int) - values).max() <= 3


# Volumes of several files or frames.


def test_a_series_is_in_order_whatever_its_files_are_called(tmp_path: Path) -> None:
    volume = ramp(5, 6, 8)
    affine = write_series(tmp_path / "1.2.840", volume, RescaleSlope=1, RescaleIntercept=-1000)
    for name, content in (("DICOMDIR.txt", b"x"), (".DS_Store", b""), ("VERSION", b"4"), ("thumb.jpg", b"x")):
        (tmp_path / "1.2.840" / name).write_bytes(content)
    (tmp_path / "1.2.840" / "more").mkdir()
    found = read(tmp_path, "1.2.840", 3)
    np.testing.assert_array_equal(found.values, volume.astype(int) - 1000)
    assert found.values.dtype == np.int32 or found.values.dtype == np.int16
    assert found.spacing == (3, 0.8, 0.8) and found.affine is not None
    np.testing.assert_allclose(found.affine, affine)
    np.testing.assert_array_equal(read(tmp_path, "1.2.840#4").values, volume[4].astype(int) - 1000)
    assert read(tmp_path, "1.2.840#4").affine is not None
    np.testing.assert_allclose(read(tmp_path, "1.2.840#4").affine[:3, 3], [10, 20, 42])  # type: ignore[index]
    assert len(files_of(site(tmp_path), "1.2.840#4")) == 9


def test_a_series_in_a_zip(tmp_path: Path) -> None:
    volume = ramp(4, 6, 8)
    write_series(tmp_path / "scan", volume)
    path = shutil.make_archive(str(tmp_path / "site"), "zip", tmp_path, "scan")
    np.testing.assert_array_equal(read(Path(path), "scan", 3).values, volume)


@pytest.mark.parametrize("along", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1), (-1, 0, 0, 0, -1, 0)])
def test_a_series_of_any_direction_lies_as_all_do(along: tuple[float, ...], tmp_path: Path) -> None:
    """A voxel's number must be that of the place where it lies."""
    volume = ramp(5, 6, 8)
    affine = write_series(tmp_path / "scan", volume, along=along)
    found = read(tmp_path, "scan", 3)
    assert found.affine is not None and (np.diag(found.affine)[:3] > 0).all()
    for k, j, i in np.argwhere(np.ones_like(volume)):
        x, y, z, _ = np.round(np.linalg.solve(found.affine, affine @ [i, j, k, 1])).astype(int)
        assert found.values[z, y, x] == volume[k, j, i]


def test_several_frames_with_a_slope_each(tmp_path: Path) -> None:
    frames, order = ramp(4, 6, 8), [2, 0, 3, 1]
    shared = group(
        PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
        PixelMeasuresSequence={"PixelSpacing": [0.5, 0.5], "SliceThickness": 9},
    )
    each = [
        group(
            PlanePositionSequence={"ImagePositionPatient": [0, 0, 2.5 * k]},
            PixelValueTransformationSequence={"RescaleSlope": k + 1, "RescaleIntercept": 0},
            FrameVOILUTSequence={"WindowCenter": 100, "WindowWidth": 100, "VOILUTFunction": "LINEAR_EXACT"},
        )
        for k in order
    ]
    dataset = dicom(frames[order], PerFrameFunctionalGroupsSequence=Sequence(each))
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    found = read_one(tmp_path, as_bytes(dataset), 3)
    np.testing.assert_array_equal(found.values, frames * np.array([1, 2, 3, 4])[:, None, None])
    assert found.spacing == (2.5, 0.5, 0.5) and found.window == (50, 150)


def test_frames_without_a_place_are_slices_as_they_come(tmp_path: Path) -> None:
    frames, colours = ramp(4, 6, 8), ramp(4, 6, 8, 3, dtype=np.uint8)
    assert read_one(tmp_path, as_bytes(dicom(frames, PixelSpacing=[1, 2])), 3).spacing is None
    found = read(tmp_path, "a.dcm#2")
    np.testing.assert_array_equal(found.values, frames[2])
    assert found.spacing == (1, 2)
    cine = dicom(colours, SamplesPerPixel=3, PhotometricInterpretation="RGB")
    (tmp_path / "c.dcm").write_bytes(as_bytes(cine))
    np.testing.assert_array_equal(read(tmp_path, "c.dcm#1").values, colours[1])
    with pytest.raises(MtfedError, match=r"Image c\.dcm of site north should have 3 axes, its shape is \[4, 6, 8, 3\]"):
        read(tmp_path, "c.dcm", 3)


def test_a_dose_of_a_plan(tmp_path: Path) -> None:
    place = {"ImagePositionPatient": [0, 0, -5], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [2, 2]}
    dose = dicom(ramp(3, 4, 5), DoseGridScaling=0.01, GridFrameOffsetVector=[0, 2.5, 5], **place)
    found = read_one(tmp_path, as_bytes(dose), 3, what="dose")
    np.testing.assert_allclose(found.values, ramp(3, 4, 5) * 0.01, rtol=1e-6)
    assert found.spacing == (2.5, 2, 2)


# NIfTI, NRRD, MetaImage.

AXES = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


@pytest.mark.parametrize(("order", "signs"), AXES)
def test_all_orders_and_directions_of_axes_give_one_array(
    order: tuple[int, ...], signs: tuple[int, ...], tmp_path: Path
) -> None:
    volume = ramp(3, 4, 5, dtype=np.int16)  # (z, y, x)
    xyz = volume.transpose()
    stored = xyz.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
    affine = np.zeros((4, 4))
    for axis, (source, sign) in enumerate(zip(order, signs, strict=True)):
        affine[:, axis] = sign * LIES[:, source]
        if sign < 0:
            affine[:, 3] -= affine[:, axis] * (stored.shape[axis] - 1)
    affine[:, 3] += LIES[:, 3]
    (tmp_path / "a.nii").write_bytes(nifti(stored, affine))
    write_nrrd(tmp_path / "a.nrrd", stored, space="left-posterior-superior",
               space_directions=affine[:3, :3].T, space_origin=affine[:3, 3])  # fmt: skip
    for name in ("a.nii", "a.nrrd"):
        found = read(tmp_path, name, 3)
        np.testing.assert_array_equal(found.values, volume)
        assert found.spacing == pytest.approx((3, 0.8, 0.8), abs=1e-5)
        np.testing.assert_allclose(found.affine, LIES, atol=1e-5)  # type: ignore[arg-type]


def test_an_oblique_volume_keeps_its_affine(tmp_path: Path) -> None:
    c, s = np.cos(0.3), np.sin(0.3)
    affine = np.array([[c, -s, 0, 1], [s, c, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]])
    (tmp_path / "a.nii").write_bytes(nifti(ramp(5, 4, 3), affine))
    found = read(tmp_path, "a.nii", 3)
    np.testing.assert_array_equal(found.values, ramp(5, 4, 3).transpose())
    np.testing.assert_allclose(found.affine, affine, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_nifti_values(dtype: type, tmp_path: Path) -> None:
    values = ramp(5, 4, 3, dtype=dtype)
    content = nifti(values, LIES, cal_min=-10, cal_max=200)
    for packed in (content, gzip.compress(content)):
        found = read_one(tmp_path, packed, 3, "a.nii.gz")
        np.testing.assert_array_equal(found.values, values.transpose())
        assert found.values.dtype == dtype and found.window == (-10, 200)
    scaled = read_one(tmp_path, nifti(values[..., None], LIES, scl_slope=0.5, scl_inter=-3), 3, "a.nii")
    np.testing.assert_allclose(scaled.values, values.transpose() * 0.5 - 3)
    micrometres = nifti(values, LIES @ np.diag([1000, 1000, 1000, 1]), xyzt_units=3)
    assert read_one(tmp_path, micrometres, 3, "a.nii").spacing == pytest.approx((3, 0.8, 0.8))


@pytest.mark.parametrize("space", ["right-anterior-superior", "left-anterior-superior", "LPS"])
@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
def test_nrrd_values(space: str, encoding: str, tmp_path: Path) -> None:
    values = ramp(5, 4, 3, dtype=np.int16)
    signs = np.array([-1 if "right" in space else 1, -1 if "anterior" in space else 1, 1])
    rows = LIES[:3, :3].T * signs
    write_nrrd(tmp_path / "a.nrrd", values, space=space, space_directions=rows, space_origin=LIES[:3, 3] * signs,
               encoding=encoding)  # fmt: skip
    found = read(tmp_path, "a.nrrd", 3)
    np.testing.assert_array_equal(found.values, values.transpose())
    np.testing.assert_allclose(found.affine, LIES)  # type: ignore[arg-type]


def test_nrrd_without_a_space(tmp_path: Path) -> None:
    write_nrrd(tmp_path / "a.nrrd", ramp(5, 4, 3), spacings=[1, 2, 3])
    write_nrrd(tmp_path / "b.nrrd", ramp(5, 4))
    write_nrrd(tmp_path / "c.nrrd", ramp(1, 5, 4, 3), space="left-posterior-superior", space_origin=[1, 2, 3],
               space_directions=np.vstack([[np.nan] * 3, np.eye(3)]))  # fmt: skip
    volume, picture = read(tmp_path, "a.nrrd", 3), read(tmp_path, "b.nrrd")
    assert volume.spacing == (3, 2, 1) and volume.affine is None
    np.testing.assert_array_equal(volume.values, ramp(5, 4, 3).transpose())
    np.testing.assert_array_equal(picture.values, ramp(5, 4).transpose())
    np.testing.assert_array_equal(read(tmp_path, "c.nrrd", 3).values, ramp(5, 4, 3).transpose())


@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
@pytest.mark.parametrize("compress", [False, True])
def test_metaimage(name: str, compress: bool, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(ramp(3, 4, 5).astype(np.int16))
    image.SetSpacing((0.8, 0.8, 3.0))
    image.SetOrigin((10, 20, 30))
    (tmp_path / "in").mkdir()
    sitk.WriteImage(image, str(tmp_path / "in" / name), useCompression=compress)
    found = read(tmp_path, f"in/{name}", 3)
    np.testing.assert_array_equal(found.values, ramp(3, 4, 5))
    np.testing.assert_allclose(found.affine, LIES)  # type: ignore[arg-type]
    files = sorted(f"in/{path.name}" for path in (tmp_path / "in").iterdir())
    assert sorted(files_of(site(tmp_path), f"in/{name}")) == files


@pytest.mark.parametrize("sides", [(5, 4), (5, 4, 3)])
def test_metaimage_as_other_programs_write_it(sides: tuple[int, ...], tmp_path: Path) -> None:
    """What has no bearing on the numbers is left out of what SimpleITK is given: it must find the same without."""
    sitk = pytest.importorskip("SimpleITK")
    count, values = len(sides), ramp(*sides, dtype=np.dtype(">f4"))
    turn = np.eye(count)[::-1].ravel()
    lines = [
        "ObjectType = Image", f"NDims = {count}", "Name = of a: b / c", "BinaryData = True", "0008|0060 = CT",
        "BinaryDataByteOrderMSB = True", f"Orientation = {' '.join(map(str, turn))}", f"Position = {'-1.5e1 ' * count}",
        f"CenterOfRotation = {'0 ' * count}", "AnatomicalOrientation = RAI", f"ElementSpacing = {'0.5 ' * count}",
        f"DimSize = {' '.join(map(str, sides))}", "ElementMin = 0", "ElementType = MET_FLOAT",
        "ElementDataFile = LOCAL",
    ]  # fmt: skip
    (tmp_path / "a.mha").write_bytes("\n".join([*lines, ""]).encode() + values.tobytes(order="F"))
    image, found = sitk.ReadImage(str(tmp_path / "a.mha")), read(tmp_path, "a.mha", count)
    assert image.GetDirection() == tuple(turn) and image.GetOrigin() == (-15,) * count
    # Of a volume x and z are exchanged, of a picture nothing is turned.
    np.testing.assert_array_equal(found.values, values if count == 3 else sitk.GetArrayFromImage(image))
    assert found.spacing == (0.5,) * count and (found.affine is None) == (count == 2)
    if found.affine is not None:
        np.testing.assert_allclose(found.affine, [[0.5, 0, 0, -15], [0, 0.5, 0, -15], [0, 0, 0.5, -15], [0, 0, 0, 1]])


# Slices, and pictures out of volumes.


def test_a_slice_of_a_volume_is_a_picture(tmp_path: Path) -> None:
    volume = ramp(3, 4, 5)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(nifti(volume.transpose(), LIES)))
    np.savez(tmp_path / "a.npz", image=volume, mask=volume % 2, spacing=[3, 0.8, 0.8])
    for name in ("a.nii.gz#1", "a.npz#1"):
        found = read(tmp_path, name)
        np.testing.assert_array_equal(found.values, volume[1])
        assert found.spacing == pytest.approx((0.8, 0.8))
    np.testing.assert_array_equal(read(tmp_path, "a.npz#2", what="mask").values, volume[2] % 2)
    for name, dimensions, message in (
        ("a.nii.gz", 2, r"a\.nii\.gz .* has 3 slices, and the model sees pictures; name one slice, as in a.nii.gz#1"),
        ("a.nii.gz#3", 2, "has the slices 0 to 2, there is no slice 3"),
        ("a.nii.gz#1", 3, r"Expected image a\.nii\.gz#1 of site north to be a volume; leave out #1"),
        ("b.nii.gz#1", 2, r"Cannot read image b\.nii\.gz of site north: there is no such file"),
    ):
        with pytest.raises(MtfedError, match=message):
            read(tmp_path, name, dimensions)


def test_slices_are_of_the_file_as_it_is_now(tmp_path: Path) -> None:
    for value in (1, 2):
        (tmp_path / "a.nii").write_bytes(nifti(np.full((5, 4, 3 + value), value, np.uint8), LIES))
        assert read(tmp_path, "a.nii#2").values.max() == value


@pytest.mark.parametrize("threads", [1, 3])
def test_volumes_are_kept_for_the_slices_that_follow(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each thread the image and its labels, and nothing of a thread that has ended."""
    whats, reads = ("image", "a", "b"), Counter[str]()
    for name in (f"{i}-{what}.npy" for i in range(threads) for what in whats):
        np.save(tmp_path / name, ramp(6, 4, 4))
    plain = formats._read
    monkeypatch.setattr(formats, "_read", lambda file, *rest: reads.update([file.name]) or plain(file, *rest))
    together = Barrier(threads)

    def slices(thread: int) -> None:
        for k, what in product(range(6), whats):
            together.wait()
            assert read(tmp_path, f"{thread}-{what}.npy#{k}", what=what).values[0, 0] == k * 48

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(slices, range(threads)))
    assert set(reads.values()) == {1} and len(reads) == 3 * threads


def test_a_thread_keeps_the_image_that_it_is_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtfed.data.formats.volume_cache.MAX_BYTES", 24)
    kept, read_of = VolumeCache(), []

    def get(key: str) -> str:
        kept.get(key, key.islower(), lambda: read_of.append(key) or Picture(np.zeros(8, np.uint8)))
        return "".join(read_of)

    assert [get(key) for key in "AaAbAabBbA"][-1] == "AabBbA"  # capitals are images
    assert [get(key) for key in "abcabA"][-1] == "AabBbAabcA"  # four are too many: the longest unused one goes
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(get, "b").result() == "AabBbAabcAb"


def test_a_single_slice_of_any_direction_is_a_picture_with_the_head_up(tmp_path: Path) -> None:
    for shape in ((5, 4, 1), (5, 1, 3), (1, 4, 3)):
        volume = ramp(*shape[::-1])
        (tmp_path / "a.nii").write_bytes(nifti(volume.transpose(), LIES))
        found = read(tmp_path, "a.nii")
        single = volume.squeeze()
        np.testing.assert_array_equal(found.values, single if shape[2] == 1 else single[::-1])
        assert found.affine is not None and found.spacing is not None
        y, x = 0, found.values.shape[1] - 1
        value = found.values[y, x]
        z, v, u = np.argwhere(volume == value)[0]
        np.testing.assert_allclose(found.affine @ [x, y, 0, 1], LIES @ [u, v, z, 1])


def test_suffixes() -> None:
    names = {"a.nii.gz": ".nii.gz", "x/B.NII.GZ": ".nii.gz", "a.b.dcm": ".dcm", "a.gz": "", "a": "", "x.y/a": "",
             ".png": ".png", "a.seg.nrrd": ".nrrd"}  # fmt: skip
    assert {name: suffix_of(name) for name in names} == names


# Labels over images of another format.

LIVER = Task(name="liver", kind="segmentation", classes=("background", "liver"))
ORGANS = Task(name="organs", kind="multi-label-segmentation", classes=("liver", "spleen", "gone"))
DOSE = Task(name="dose", kind="dose", classes=("PTV",), range=(0, 80))


def cube(dtype: Any = np.uint8) -> np.ndarray:
    """Return a mask (z, y, x) that is symmetric nowhere."""
    mask = np.zeros((8, 8, 8), dtype)
    mask[1:3, 2:6, 5:8] = 1
    return mask


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_a_nifti_mask_comes_to_lie_over_a_series(dtype: Any, tmp_path: Path) -> None:
    write_series(tmp_path / "scan", cube(np.uint16) * 1000, spacing=(3, 0.8, 0.8))
    flipped = LIES @ np.array([[-1, 0, 0, 7], [0, -1, 0, 7], [0, 0, 1, 0], [0, 0, 0, 1.0]])  # as NIfTI mostly is: RAS
    (tmp_path / "m.nii.gz").write_bytes(gzip.compress(nifti(cube(dtype)[:, ::-1, ::-1].transpose(), flipped)))
    source = Source(site(tmp_path), "scan", 32, 3)
    np.testing.assert_array_equal(source.array("m.nii.gz", "mask"), read(tmp_path, "scan", 3).values // 1000)
    mask = kind_of(LIVER).read("m.nii.gz", LIVER, source)
    np.testing.assert_array_equal(mask, source.fit(cube(), "cube", nearest=True))
    picture = Source(site(tmp_path), "scan#2", 8)
    mask = kind_of(LIVER).read("m.nii.gz#2", LIVER, picture)
    np.testing.assert_array_equal(mask > 0, picture.pixels(1)[0] > 127)
    with pytest.raises(MtfedError, match=r"Mask m\.nii\.gz#1 of site north lies up to 3 mm away from its image scan#2"):
        kind_of(LIVER).read("m.nii.gz#1", LIVER, picture)


def test_a_mask_that_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(nifti(cube().transpose(), LIES))
    moves = {"a little": 0.04, "more": 0.4}
    for name, move in moves.items():
        moved = LIES.copy()
        moved[0, 3] += move
        (tmp_path / f"{name}.nii").write_bytes(nifti(cube().transpose(), moved))
    wider = LIES @ np.diag([1.01, 1, 1, 1]) @ np.diag([1, 1, 1, 1.0])
    wider[0, :3] *= 1.02
    (tmp_path / "wider.nii").write_bytes(nifti(cube().transpose(), wider))
    np.save(tmp_path / "plain.npy", cube())
    source = Source(site(tmp_path), "a.nii", 32, 3)
    source.array("a little.nii", "mask")
    np.testing.assert_array_equal(source.array("plain.npy", "mask"), cube())
    for name in ("more.nii", "wider.nii"):
        with pytest.raises(MtfedError, match=f"Mask {name} of site north lies up to .* mm away from its image a.nii"):
            source.array(name, "mask")


def test_where_a_nifti_lies_that_does_not_say(tmp_path: Path) -> None:
    """nibabel then makes a place up, and so do others: two such files lie alike, a third cannot be compared."""
    for name, step in (("a", 2), ("m", 1)):
        image = nibabel.Nifti1Image(cube().transpose(), None)
        image.header.set_zooms((step,) * 3)
        (tmp_path / f"{name}.nii").write_bytes(image.to_bytes())
        assert not image.header["qform_code"] and not image.header["sform_code"]
    (tmp_path / "told.nii").write_bytes(nifti(cube().transpose(), np.eye(4)))
    np.testing.assert_array_equal(Source(site(tmp_path), "a.nii", 32, 3).array("m.nii", "mask"), cube()[:, ::-1])
    with pytest.raises(MtfedError, match=r"Mask m\.nii#2 of site north lies up to .* mm away from its image a\.nii#3"):
        Source(site(tmp_path), "a.nii#3", 32).array("m.nii#2", "mask")
    Source(site(tmp_path), "a.nii#3", 32).array("m.nii#3", "mask")
    cause = r"a\.nii does not say how it lies, its qform_code and sform_code are 0; set them so that it lies as told"
    for image, mask in (("a.nii", "told.nii"), ("told.nii", "a.nii"), ("a.nii#3", "told.nii#3")):
        message = f"Expected mask {mask} of site north to lie over its image {image}, but {cause}"
        with pytest.raises(MtfedError, match=message):
            Source(site(tmp_path), image, 32, 2 if "#" in image else 3).array(mask, "mask")


def test_a_folder_is_arrays_by_stem(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(nifti(cube().transpose(), LIES)))
    organs = tmp_path / "segmentations"
    organs.mkdir()
    (organs / "liver.nii.gz").write_bytes(gzip.compress(nifti(cube(np.float32).transpose(), LIES)))
    write_nrrd(organs / "spleen.nrrd", 255 * cube().transpose())
    np.save(organs / "other.npy", np.zeros(3))
    (organs / "README").write_text("x")
    source = Source(site(tmp_path), "a.nii.gz", 32, 3)
    found = kind_of(ORGANS).read("segmentations", ORGANS, source)
    expected = source.fit(cube(), "cube", nearest=True)
    np.testing.assert_array_equal(found, np.stack([expected, expected, np.full(expected.shape, 255)]))
    (organs / "liver.npy").write_bytes(b"")
    with pytest.raises(MtfedError, match=r"Folder segmentations of site north should have one file called liver, it h"):
        kind_of(ORGANS).read("segmentations", ORGANS, Source(site(tmp_path), "a.nii.gz", 32, 3))
    with pytest.raises(MtfedError, match=r"Cannot read organs nothing of site north: it is neither an \.npz file nor"):
        kind_of(ORGANS).read("nothing", ORGANS, source)


def test_a_dose_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "ct.nii").write_bytes(nifti(cube().transpose(), LIES))
    (tmp_path / "plan").mkdir()
    for name, values in (("dose", 60 * cube(np.float32)), ("possible", np.ones_like(cube())), ("PTV", cube())):
        (tmp_path / "plan" / f"{name}.nii").write_bytes(nifti(values.transpose(), LIES))
    found = kind_of(DOSE).read("plan", DOSE, Source(site(tmp_path), "ct.nii", 32, 3))
    assert found[0].max() == 24000 and (found[2] > 0).all()


WHITE = [  # values of a mask of two classes, what they become
    ([0, 255], [0, 1]),
    ([0, 65535], [0, 1]),
    ([0.0, 1.0], [0, 1]),
    ([0.0, 255.0], [0, 1]),
    ([0, 1], [0, 1]),
    ([0, 2], None),
    ([0, 1, 255], None),
    ([0, 254, 255], None),
    ([255, 255], None),
    ([0.0, 0.5], None),
    ([0.0, np.nan], None),
    ([0.0, np.inf], None),
]


@pytest.mark.parametrize(("values", "indices"), WHITE)
def test_white_is_the_second_of_two_classes(values: list[float], indices: Any, tmp_path: Path) -> None:
    row = np.array(values)
    np.save(tmp_path / "m.npy", np.tile(row if row.dtype.kind == "f" else row.astype(np.uint16), (8, 8))[:8, :8])
    np.save(tmp_path / "a.npy", np.zeros((8, 8)))
    source = Source(site(tmp_path), "a.npy", 8)
    if indices is None:
        with pytest.raises(MtfedError, match=r"Mask m\.npy of site north should be one channel of class indices below"):
            kind_of(LIVER).read("m.npy", LIVER, source)
    else:
        np.testing.assert_array_equal(kind_of(LIVER).read("m.npy", LIVER, source), np.tile(indices, (8, 8))[:8, :8])


def test_white_is_no_class_of_three(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.tile(np.array([0, 255], np.uint8), (8, 4)))
    three = LIVER.model_copy(update={"classes": ("a", "b", "c")})
    with pytest.raises(MtfedError, match="values up to 255"):
        kind_of(three).read("m.npy", three, Source(site(tmp_path), "m.npy", 8))


@pytest.mark.parametrize(
    ("window", "ends"), [("40, 400", (-160, 240)), ("", None), ("0.5,1", (0, 1)), ("-600 , 1500", (-1350, 150))]
)
def test_the_window_of_a_config(window: str, ends: Any) -> None:
    config = read_config({"task.a.kind": "classification", "task.a.classes": "n, y", "window": window})
    assert config.window_ends == ends


@pytest.mark.parametrize("window", ["40", "40, 0", "40, -1", "a, b", "1, 2, 3", "nan, 5", "5, inf", ","])
def test_a_bad_window_is_named(window: str) -> None:
    with pytest.raises(MtfedError, match=r"Config key window: expected a level and a width above 0, such as '40, 400'"):
        read_config({"task.a.kind": "classification", "task.a.classes": "n, y", "window": window})


# Real files.


@real
def test_a_real_series() -> None:
    found = read(SHARED, "dicom_ct", 3)  # JPEG 2000; its thickness is 3 mm, its spacing 2
    assert found.values.shape == (8, 512, 512) and found.values.dtype == np.int16
    assert found.spacing == pytest.approx((2, 0.9765625, 0.9765625), abs=1e-6) and found.window == (-110, 189)
    assert found.values.min() == -1024
    assert found.affine is not None and found.affine[2, 3] == -780.5
    mr = read(SHARED, "dicom_mr", 3)
    assert mr.values.shape == (32, 51, 35) and mr.spacing == (1, 1, 1)


REAL = [("example_ct_sm.nii.gz", "example_seg.nii.gz", (30, 101, 122), (3, 3, 3)),
        ("example_mr_sm.nii.gz", "example_seg_mr.nii.gz", (20, 91, 117), (3, 3, 3)),
        ("brain1_image.nrrd", "brain1_label.nrrd", (25, 256, 256), (6.5, 0.78125, 0.78125)),
        ("breast1_image.nrrd", "breast1_label.nrrd", (21, 120, 45), (2.1, 0.664062, 0.664062))]  # fmt: skip


@real
@pytest.mark.parametrize(("image", "label", "shape", "spacing"), REAL)
def test_real_volumes_and_their_labels(
    image: str, label: str, shape: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    source = Source(site(SHARED), image, 32, 3)
    assert source.letterbox.shape == shape and source.spacing == pytest.approx(spacing)
    assert source.fit(source.array(label, "mask"), label, nearest=True).any()
    extents = np.multiply(shape, spacing)
    np.testing.assert_allclose(source.letterbox.inner, extents / extents.max() * 32, atol=0.5)


@real
def test_the_liver_is_on_the_right_and_the_spine_at_the_back() -> None:
    """As TotalSegmentator numbers them: liver 5, spleen 1, vertebrae of the loins 27 to 31."""
    labels = read(SHARED, "example_seg.nii.gz", 3, "mask").values
    centre = {
        name: np.argwhere(np.isin(labels, numbers)).mean(0)
        for name, numbers in (("liver", [5]), ("spleen", [1]), ("spine", list(range(25, 51))))
    }
    assert centre["liver"][2] < centre["spleen"][2]  # x goes to the left
    assert centre["spine"][1] > centre["liver"][1]  # y goes back
