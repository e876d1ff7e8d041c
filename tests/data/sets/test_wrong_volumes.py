"""Folders that do not contain a set of colour images or volumes in its official form are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers.colour_layouts import HAM
from helpers.drawings import VOLUME_SHAPE, write_nifti, write_text
from helpers.layouts import LAYOUTS
from mtfed.data.sets import find_set
from mtfed.data.sets.prepare import prepare
from mtfed.errors import MtfedError


def _unlink(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def _write(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: write_text(folder / name, content) and None


WRONG: list[tuple[str, Callable[[Path], None], str]] = [
    ("ham10000", _unlink("HAM10000_metadata.csv"), "HAM10000_metadata"),
    ("ham10000", _unlink("HAM10000_images_part_2/ISIC_0024302.jpg"), "names the image ISIC_0024302.jpg"),
    ("ham10000", _write("HAM10000_metadata.csv", HAM + "HAM_1,ISIC_0024300,wart,x,1,m,back,\n"), "diagnosis 'wart'"),
    ("ham10000", _write("HAM10000_metadata.csv", "image_id,dx\n"), "lacks the column 'lesion_id'"),
    (
        "ham10000",
        lambda folder: next(folder.rglob("ISIC_0024301_segmentation.png")).write_bytes(b"no picture") and None,
        "Cannot read the mask .*ISIC_0024301_segmentation.png",
    ),
    ("isic2017", _unlink("ISIC-2017_Training_Part3_GroundTruth.csv"), "Part3_GroundTruth.csv was not found"),
    (
        "isic2017",
        _write("ISIC-2017_Test_v2_Part3_GroundTruth.csv", "image_id,melanoma,seborrheic_keratosis\nISIC_0000002,x,0\n"),
        "melanoma of ISIC_0000002 should be one of 0, 1, .*, it is 'x'",
    ),
    (
        "isic2018-diagnosis",
        _write(
            "ISIC2018_Task3_Test_GroundTruth/ISIC2018_Task3_Test_GroundTruth.csv",
            "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\nISIC_0000003,1.0,1.0,0.0,0.0,0.0,0.0,0.0\n",
        ),
        "should have one diagnosis, it has 2",
    ),
    (
        "isic2018-diagnosis",
        _write("ISIC2018_Task3_Training_LesionGroupings.csv", "image,lesion_id\nISIC_0000000,HAM_1\n"),
        "does not contain the lesion that ISIC_0000001 shows",
    ),
    ("openkbp", _unlink("provided-data/valid-pats/pt_201/dose.csv"), "Cannot read .*dose.csv"),
    ("openkbp", _write("provided-data/train-pats/pt_1/ct.csv", ",data\n2097152,7.0\n"), "outside a grid of 128 x 128"),
    ("openkbp", _write("provided-data/train-pats/pt_1/dose.csv", ",data\n1,many\n"), "is not a table of numbers"),
    ("openkbp", _write("provided-data/train-pats/pt_1/voxel_dimensions.csv", "1\n2\n"), "three numbers above 0"),
    ("stoic", _unlink("data/mha/2.mha"), "1 of 3 files are missing, the first is data/mha/2.mha"),
    (
        "stoic",
        _write("metadata/reference.csv", "PatientID,probCOVID,probSevere\n0,2,0\n"),
        "probCOVID of 0 should be one of 0, 1, .*, it is '2'",
    ),
    ("msd-spleen", _write("Task09_Spleen/dataset.json", "{}"), "is not the table of a Decathlon set"),
    (
        "msd-spleen",
        _write("Task09_Spleen/dataset.json", '{"training": [], "labels": {"0": "background"}}'),
        "should name the labels 0 to 1",
    ),
    (
        "msd-spleen",
        _write(
            "Task09_Spleen/dataset.json", '{"training": [{"image": "../../up.nii", "label": "a.nii"}], "labels": {}}'
        ),
        "leads out of its folder",
    ),
    (
        "stoic",
        lambda folder: write_text(
            folder / "metadata/reference.csv", "PatientID,probCOVID,probSevere\n../../../up,1,0\n"
        ),
        "leads out of its folder",
    ),
    ("msd-spleen", _unlink("Task09_Spleen/labelsTr/case_001.nii.gz"), "1 of 4 files are missing"),
    (
        "msd-prostate",
        lambda folder: write_nifti(folder / "Task05_Prostate/imagesTr/case_001.nii.gz", np.zeros((4, 4, 4), np.int16)),
        "should have the 2 channels T2, ADC",
    ),
    (
        "msd-prostate",
        lambda folder: (folder / "Task05_Prostate/imagesTr/case_001.nii.gz").write_bytes(b"broken") and None,
        "Cannot read .*case_001.nii.gz",
    ),
    ("drive", _unlink("training/1st_manual/21_manual1.gif"), "21_manual1.gif|_manual1.gif was not found"),
    ("prostate-ct", _unlink("p1/structures/Body.nii.gz"), "structures/Body"),
    ("prostate-ct", _unlink("p1/ct.nii.gz"), "Expected one ct.nii.gz"),
    (
        "prostate-ct",
        lambda folder: write_nifti(folder / "p1/structures/Rectum.nii.gz", np.zeros((3, 3, 3), np.uint8)),
        "should have the voxels of p1/ct.nii.gz",
    ),
    (
        "prostate-ct",
        lambda folder: write_nifti(
            folder / "p1/structures/Rectum.nii.gz", np.zeros(VOLUME_SHAPE[::-1], np.uint8), (1.0, 1.0, 3.0)
        ),
        "mm away from its image",
    ),
    (
        "prostate-ct",
        lambda folder: write_nifti(folder / "p2/structures/Heart.nii.gz", np.zeros((3, 3, 3))),
        "contains Heart",
    ),
    ("prostate-ct", _write("patients.csv", "patient,split\np1,dev\n"), "it is 'dev'"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), WRONG)
def test_a_changed_layout_is_refused(name: str, spoil: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path)
    spoil(tmp_path)
    with pytest.raises(MtfedError, match=message):
        prepare(find_set(name), tmp_path)
    assert not (tmp_path / "manifest.csv").exists()


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_error_for_an_empty_folder_shows_the_layout(name: str, tmp_path: Path) -> None:
    with pytest.raises(MtfedError, match=r"in its official form.*was not found") as error:
        prepare(find_set(name), tmp_path)
    for line in find_set(name).layout.strip().splitlines():
        assert line in str(error.value)
