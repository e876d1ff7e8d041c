"""DICOM series and files with several frames become volumes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.sequence import Sequence
from pydicom.uid import (
    SegmentationStorage,
)

from helpers.broken_files import NOISE, refuse
from helpers.scans import (
    as_bytes,
    dicom,
    group,
    ramp,
    read,
    read_content,
    site,
    write_series,
)
from mtfed.data.formats import files_of
from mtfed.errors import MtfedError


def test_slices_are_ordered_by_position_not_by_name(tmp_path: Path) -> None:
    volume = ramp(5, 6, 8)
    affine = write_series(tmp_path / "1.2.840", volume, RescaleSlope=1, RescaleIntercept=-1000)
    for name, content in (("DICOMDIR.txt", b"x"), (".DS_Store", b""), ("VERSION", b"4"), ("thumb.jpg", b"x")):
        (tmp_path / "1.2.840" / name).write_bytes(content)
    (tmp_path / "1.2.840" / "more").mkdir()
    result = read(tmp_path, "1.2.840", 3)
    np.testing.assert_array_equal(result.values, volume.astype(int) - 1000)
    assert result.values.dtype == np.int32 or result.values.dtype == np.int16
    assert result.spacing == (3, 0.8, 0.8) and result.affine is not None
    np.testing.assert_allclose(result.affine, affine)
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
def test_a_series_in_any_direction_has_the_common_layout(along: tuple[float, ...], tmp_path: Path) -> None:
    """Every voxel has the value that was written at its position."""
    volume = ramp(5, 6, 8)
    affine = write_series(tmp_path / "scan", volume, along=along)
    result = read(tmp_path, "scan", 3)
    assert result.affine is not None and (np.diag(result.affine)[:3] > 0).all()
    for k, j, i in np.argwhere(np.ones_like(volume)):
        x, y, z, _ = np.round(np.linalg.solve(result.affine, affine @ [i, j, k, 1])).astype(int)
        assert result.values[z, y, x] == volume[k, j, i]


def test_frames_with_different_slopes(tmp_path: Path) -> None:
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
    result = read_content(tmp_path, as_bytes(dataset), 3)
    np.testing.assert_array_equal(result.values, frames * np.array([1, 2, 3, 4])[:, None, None])
    assert result.spacing == (2.5, 0.5, 0.5) and result.window == (50, 150)


def test_frames_without_positions_keep_their_order(tmp_path: Path) -> None:
    frames, colours = ramp(4, 6, 8), ramp(4, 6, 8, 3, dtype=np.uint8)
    assert read_content(tmp_path, as_bytes(dicom(frames, PixelSpacing=[1, 2])), 3).spacing is None
    result = read(tmp_path, "a.dcm#2")
    np.testing.assert_array_equal(result.values, frames[2])
    assert result.spacing == (1, 2)
    cine = dicom(colours, SamplesPerPixel=3, PhotometricInterpretation="RGB")
    (tmp_path / "c.dcm").write_bytes(as_bytes(cine))
    np.testing.assert_array_equal(read(tmp_path, "c.dcm#1").values, colours[1])
    with pytest.raises(MtfedError, match=r"Image c\.dcm of site north should have 3 axes, its shape is \[4, 6, 8, 3\]"):
        read(tmp_path, "c.dcm", 3)


def test_a_dose_grid(tmp_path: Path) -> None:
    position = {
        "ImagePositionPatient": [0, 0, -5],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [2, 2],
    }
    dose = dicom(ramp(3, 4, 5), DoseGridScaling=0.01, GridFrameOffsetVector=[0, 2.5, 5], **position)
    result = read_content(tmp_path, as_bytes(dose), 3, what="dose")
    np.testing.assert_allclose(result.values, ramp(3, 4, 5) * 0.01, rtol=1e-6)
    assert result.spacing == (2.5, 2, 2)


def test_dicom_without_an_image_is_refused(tmp_path: Path) -> None:
    plan = dicom(NOISE)
    del plan.PixelData
    (tmp_path / "a.dcm").write_bytes(as_bytes(plan))
    refuse(tmp_path, "a.dcm", r"it holds no picture \(CT Image Storage\); name a file that does")
    segments = dicom(NOISE.astype(np.uint8), SegmentSequence=Sequence([dicom(NOISE)]))
    segments.SOPClassUID = SegmentationStorage
    del segments.SegmentSequence[0].PixelData
    (tmp_path / "s.dcm").write_bytes(as_bytes(segments))
    refuse(tmp_path, "s.dcm", "it is a DICOM segmentation; save it as NIfTI or NRRD over its image")


VOLUME = ramp(6, 16, 16)


def spoil(folder: Path, change: Callable[[list[Any]], None]) -> None:
    """Write a series after changing its datasets, which are sorted by position."""
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


def without_positions(datasets: list[Any]) -> None:
    for dataset in datasets:
        del dataset.ImagePositionPatient, dataset.InstanceNumber


def duplicated(datasets: list[Any]) -> None:
    datasets[4].ImagePositionPatient = datasets[3].ImagePositionPatient


SPOILED: list[tuple[Callable[[list[Any]], None], str]] = [
    (replaced(3, None), r"scan/IM\d+ and scan/IM\d+ are 6 mm apart, most of its slices 3 mm: some are missing"),
    (changed(3, ImagePositionPatient=[10, 20, 40]), "some are missing, or they are uneven; complete the series, or re"),
    (changed(3, ImagePositionPatient=[15, 20, 39]), "its slices are shifted against each other; resample it"),
    (duplicated, "have the same position; put each phase or echo into a folder of its own"),
    (changed(2, SeriesInstanceUID="1.2.4"), "it holds 2 series, of 5, 1 images; put each into a folder of its own"),
    (smaller, "its images have several sizes, as 8 x 8 and 16 x 16; put each stack into a folder of its own"),
    (changed(2, PixelSpacing=[1, 1]), "its images have several pixel spacings"),
    (changed(2, ImageOrientationPatient=[0, 1, 0, 0, 0, 1]), "its images cut the patient in several directions"),
    (without_positions, "its images have neither positions nor an order; save them as one NIfTI or NRRD file"),
    (replaced(2, b""), r"Cannot read image scan/IM\d+ of site north: it is empty; repair or remove it"),
    (
        replaced(5, b"cut"),
        r"Cannot read image scan/IM\d+ of site north: it is not a DICOM file: its mark 'DICM' is missing",
    ),
    (replaced(2, as_bytes(dicom(ramp(16, 16)))[:140]), r"Cannot read image scan/IM\d+ of site north"),
]


@pytest.mark.parametrize(("change", "message"), SPOILED)
def test_a_folder_that_is_no_series_is_refused(
    change: Callable[[list[Any]], None], message: str, tmp_path: Path
) -> None:
    spoil(tmp_path / "scan", change)
    refuse(tmp_path, "scan", message)


def test_folders_without_a_series_are_refused(tmp_path: Path) -> None:
    (tmp_path / "scan").mkdir()
    refuse(tmp_path, "scan", "Is a directory|no such file")
    (tmp_path / "scan" / "notes.txt").write_text("x")
    refuse(tmp_path, "scan", "it is a folder without DICOM files; name a file, or a folder with one series")
    (tmp_path / "scan" / "a.dcm").write_text("x")
    with pytest.raises(
        MtfedError, match=r"Cannot read image scan/a\.dcm of site north: it is not a DICOM file: its mark"
    ):
        read(tmp_path, "scan")
