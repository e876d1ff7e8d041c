"""Folders that do not contain a set of images in its official form are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from helpers.drawings import draw_disc, draw_noise, write_text
from helpers.layouts import LAYOUTS
from mtfed.data.sets import find_set
from mtfed.data.sets.prepare import prepare
from mtfed.errors import MtfedError

# Set, change to its layout, error message.
WRONG = {
    "an empty folder": ("busi", lambda f: shutil.rmtree(f / "Dataset_BUSI_with_GT"), r"benign/\*\.png was not found"),
    "a folder lacks": ("busi", lambda f: shutil.rmtree(f / "Dataset_BUSI_with_GT/normal"), r"normal/\*\.png was not "),
    "a mask lacks": (
        "busi",
        lambda f: (f / "Dataset_BUSI_with_GT/benign/benign (2)_mask.png").unlink(),
        r"benign \(2\)\.png has no benign \(2\)_mask\.png next to it",
    ),
    "masks differ": (
        "busi",
        lambda f: draw_disc(f / "Dataset_BUSI_with_GT/benign/benign (2)_mask_1.png", (9, 9)),
        r"masks of .*benign \(2\)\.png differ in size",
    ),
    "a broken mask": (
        "busi",
        lambda f: write_text(f / "Dataset_BUSI_with_GT/benign/benign (2)_mask.png", "no picture"),
        "Cannot read the mask",
    ),
    "films lack": (
        "mias",
        lambda f: (f / "mdb006.pgm").unlink(),
        r"1 of 6 files are missing, the first is mdb006\.pgm",
    ),
    "another list": (
        "mias",
        lambda f: write_text(f / "Info.txt", "mdb001 G XXXX B 1 2 3"),
        "has an unexpected entry for mdb001",
    ),
    "no list": ("mias", lambda f: write_text(f / "Info.txt", "none"), "it contains no image of this set"),
    "images lack": (
        "cbis-ddsm",
        lambda f: shutil.rmtree(next(f.glob("CBIS-DDSM/Mass-Test*_MLO"))),
        "Expected DICOM files in .*Mass-Test_P_00005_RIGHT_MLO, found none",
    ),
    "a column lacks": (
        "cbis-ddsm",
        lambda f: write_text(f / "mass_case_description_test_set.csv", "patient_id,left or right breast\n"),
        r"mass_case_description_test_set\.csv lacks the column 'image view', it has patient_id",
    ),
    "no DICOM": (
        "inbreast",
        lambda f: write_text(next(f.glob("*/AllDICOMs/101*")), "none"),
        "Cannot read .*101_aa01_MG_L_MLO_ANON.dcm",
    ),
    "a film lacks": (
        "inbreast",
        lambda f: next(f.glob("*/AllDICOMs/101*")).unlink(),
        r"names 101, but there is no AllDICOMs/101_\*\.dcm",
    ),
    "no annotation": (
        "inbreast",
        lambda f: write_text(next(f.glob("*/AllXML/101*")), "<plist><dict>"),
        "101.xml is not an annotation of INbreast",
    ),
    "hostile annotation": (
        "inbreast",
        lambda f: write_text(
            next(f.glob("*/AllXML/101*")),
            '<!DOCTYPE x [<!ENTITY a "b">]><plist><dict><key>Images</key><string>&a;</string></dict></plist>',
        ),
        "101.xml is not an annotation of INbreast",
    ),
    "an unknown split": (
        "vindr-mammo",
        lambda f: write_text(
            f / "breast-level_annotations.csv",
            (f / "breast-level_annotations.csv").read_text().replace(",test", ",tset"),
        ),
        "split of .* should be one of training, test, it is 'tset'",
    ),
    "an unknown finding": (
        "vindr-mammo",
        lambda f: write_text(
            f / "finding_annotations.csv", (f / "finding_annotations.csv").read_text().replace("'Mass'", "'Mess'")
        ),
        "has an unknown finding 'Mess'",
    ),
    "no class": (
        "rsna-pneumonia",
        lambda f: write_text(f / "stage_2_detailed_class_info.csv", "patientId,class\nimg-0,Normal\n"),
        "has the class None for img-1",
    ),
    "another mapping": (
        "rsna-pneumonia",
        lambda f: write_text(f / "pneumonia-challenge-dataset-mappings_2018.json", '["a"]'),
        "is not the file that RSNA provides",
    ),
    "no text": (
        "rsna-pneumonia",
        lambda f: (f / "stage_2_detailed_class_info.csv").write_bytes(b"\xff\xfe\x00"),
        "is not a CSV table in UTF-8",
    ),
    "another name": (
        "kermany",
        lambda f: draw_noise(f / "chest_xray/train/NORMAL/scan.jpeg"),
        "scan.jpeg has a name of another form",
    ),
    "no test": ("kermany", lambda f: shutil.rmtree(f / "chest_xray/test"), r"chest_xray/test/NORMAL/\*\.jp\*g or"),
    "no patient": (
        "covid-chestxray",
        lambda f: write_text(
            f / "covid-chestxray-dataset-master/metadata.csv",
            "patientid,finding,view,modality,location,folder,filename,license\n,,PA,X-ray,,images,a.jpeg,\n",
        ),
        "'a.jpeg' lacks its patient",
    ),
    "a path": (
        "covid-chestxray",
        lambda f: write_text(
            f / "covid-chestxray-dataset-master/metadata.csv",
            "patientid,finding,view,modality,location,folder,filename,license\n1,,PA,X-ray,,images,../../a.jpeg,\n",
        ),
        "or is not a file name",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_layout_is_refused(case: str, tmp_path: Path) -> None:
    name, spoil, message = WRONG[case]
    LAYOUTS[name](tmp_path)
    spoil(tmp_path)
    with pytest.raises(MtfedError, match=message):
        prepare(find_set(name), tmp_path)
    assert not (tmp_path / "manifest.csv").exists()


def test_the_error_shows_the_layout_and_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MtfedError) as error:
        prepare(find_set("inbreast"), tmp_path)
    message = str(error.value)
    assert f"{tmp_path}/\n" in message and "AllDICOMs/  20586908" in message and "Ask its owners" in message
