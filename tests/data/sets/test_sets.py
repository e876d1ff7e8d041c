"""Every named data set: its official form becomes a manifest that trains; another is refused with what is missing."""

from __future__ import annotations

import csv
import re
import shutil
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.layouts import LAYOUTS, SIDE, disc, grey, prepared, shards, text
from PIL import Image

from mtfed.cli import main
from mtfed.data.sets import all_sets, find_set, register_set
from mtfed.data.sets.app import site_file
from mtfed.data.sets.dataset import DataSet, Sample
from mtfed.data.sets.masks import read_mask
from mtfed.data.sets.medmnist import CLASSES, TABLE
from mtfed.data.sets.prepare import prepare
from mtfed.errors import MtfedError
from mtfed.site.site_file import read_site_file
from mtfed.tasks.specs import KIND_SPECS
from mtfed.tasks.task import Task


def rows(folder: Path) -> dict[str, dict[str, str]]:
    """Return the rows of a manifest by the end of the image's name."""
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as file:
        return {Path(row["image"]).name: row for row in csv.DictReader(file)}


@pytest.fixture
def laid(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder in which the set that the test names as ``request.param`` lies and is prepared."""
    folder = tmp_path / request.param
    folder.mkdir()
    LAYOUTS[request.param](folder)
    prepare(find_set(request.param), folder)
    return folder


def lay(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("laid", [name], indirect=True)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_official_form_trains(name: str, tmp_path: Path) -> None:
    config, data = prepared(name, tmp_path / name, LAYOUTS[name])
    shards(config, data)
    # What is written is read back as it is meant.
    site = tomllib.loads((tmp_path / name / "site.toml").read_text())
    assert site["key"] == name and site["task"].keys() == config.tasks.keys()
    assert all(Task(name=task, **declared) == config.tasks[task] for task, declared in site["task"].items())
    assert config.data == str(tmp_path / name) and config.dimensions == find_set(name).dimensions
    assert not list((tmp_path / name).rglob("*.part"))


def test_every_set_says_what_it_must(tmp_path: Path) -> None:
    sets = all_sets()
    path = tmp_path / "site.toml"
    assert list(sets)[:18] == list(TABLE)
    for name, dataset in sets.items():
        assert re.fullmatch(r"[a-z0-9-]+", name)
        told = [dataset.title, dataset.licence, dataset.terms, dataset.citation, dataset.place, dataset.modality]
        assert all(told) and dataset.home.startswith(("https://", "http://")) and dataset.needs, name
        assert dataset.fetched or dataset.access, f"{name}: nobody is told how to get it"
        for task, declared in dataset.tasks.items():
            assert Task(name=task, **declared).kind in KIND_SPECS
        path.write_text(site_file(dataset), encoding="utf-8")
        told_of_site = read_site_file(path)
        assert (told_of_site.key, told_of_site.dimensions) == (name, dataset.dimensions)
        assert told_of_site.tasks.keys() == dataset.tasks.keys()
        for file in dataset.files:
            assert not file.md5 or re.fullmatch("[0-9a-f]{32}", file.md5)
            assert not file.sha256 or re.fullmatch("[0-9a-f]{64}", file.sha256)


def test_prepared_twice_is_the_same(tmp_path: Path) -> None:
    for _ in range(2):
        prepared("busi", tmp_path, LAYOUTS["busi"] if not (tmp_path / "manifest.csv").exists() else lambda folder: None)
    first = (tmp_path / "manifest.csv").read_bytes()
    prepare(find_set("busi"), tmp_path)
    assert (tmp_path / "manifest.csv").read_bytes() == first


@pytest.mark.parametrize(("name", "classes"), [("pathmnist", 9), ("chestmnist", 14), ("organmnist3d", 11)])
def test_medmnist_names_its_classes(name: str, classes: int) -> None:
    assert len(CLASSES[name].split(", ")) == classes


@lay("chestmnist")
def test_medmnist_keeps_its_splits_and_pixels(laid: Path) -> None:
    found = rows(laid)
    with np.load(laid / "chestmnist.npz") as file:
        np.testing.assert_array_equal(np.asarray(Image.open(laid / "images/test/000003.png")), file["test_images"][3])
    with open(laid / "manifest.csv", newline="") as table:
        assert Counter(row["split"] for row in csv.DictReader(table)) == {"train": 6, "val": 3, "test": 4}
    assert found["000005.png"]["findings"] == "nodule"


def test_medmnist_takes_the_largest_copy_that_lies_there(tmp_path: Path) -> None:
    for size in (28, 64):
        arrays = {f"{s}_images": np.full((2, size, size), 7, np.uint8) for s in ("train", "val", "test")}
        labels = {f"{s}_labels": np.array([[0], [1]], np.uint8) for s in ("train", "val", "test")}
        np.savez(tmp_path / f"breastmnist{'' if size == 28 else f'_{size}'}.npz", **arrays, **labels)
    prepare(find_set("breastmnist"), tmp_path)
    assert Image.open(tmp_path / "images/val/000001.png").size == (64, 64)
    assert rows(tmp_path)["000000.png"]["malignancy"] == "malignant"


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"train_labels": np.zeros((2, 1), np.uint8)},
        {"train_labels": np.array(["a"], object), "train_images": np.zeros((1, 28, 28), np.uint8)},
        {"train_labels": np.zeros((2, 1), np.uint8), "train_images": np.zeros((3, 28, 28), np.uint8)},
        {"train_labels": np.zeros((2, 1), np.uint8), "train_images": np.zeros((2, 28, 28))},
        {"train_labels": np.full((2, 1), 9, np.uint8), "train_images": np.zeros((2, 28, 28), np.uint8)},
    ],
)
def test_medmnist_of_another_form(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "breastmnist.npz", **arrays)
    with pytest.raises(MtfedError, match="is not the file that MedMNIST gives"):
        prepare(find_set("breastmnist"), tmp_path)
    assert not (tmp_path / "manifest.csv").exists()


@lay("busi")
def test_busi_joins_the_masks_of_an_image(laid: Path) -> None:
    found = rows(laid)
    assert [row["lesion"] for row in found.values()] == ["normal"] * 3 + ["benign"] * 3 + ["malignant"] * 3
    one, both = (np.asarray(Image.open(laid / f"labels/benign({i}).png")) for i in (2, 10))
    assert one.max() == both.max() == 1 and both.sum() > one.sum()
    assert np.asarray(Image.open(laid / found["normal (1).png"]["outline"])).max() == 0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_mask_is_where_a_picture_is_bright(mode: str, tmp_path: Path) -> None:
    marked = np.zeros((8, 10), bool)
    marked[2:5, 1:4] = True
    grey = Image.fromarray(marked * np.uint8(255))
    image = Image.fromarray(marked * np.uint16(65535)) if mode == "I;16" else grey.convert(mode)
    image.save(tmp_path / "mask.tif")
    for above in (0, 127):
        np.testing.assert_array_equal(read_mask(tmp_path / "mask.tif", above), marked)


@lay("mias")
def test_mias_counts_from_the_bottom_and_pairs_films(laid: Path) -> None:
    found = rows(laid)
    assert [row["patient"] for row in found.values()] == ["001", "001", "002", "002", "003", "003"]
    assert found["mdb001.pgm"]["lesions"] == f"{15 - 7},{SIDE - 25 - 7},14,14"
    assert found["mdb002.pgm"]["lesions"].count(";") == 1 and found["mdb002.pgm"]["severity"] == "malignant"
    assert found["mdb002.pgm"]["abnormality"] == "circumscribed mass; calcification"
    assert found["mdb003.pgm"]["lesions"] == "none" and found["mdb003.pgm"]["severity"] == "normal"
    assert found["mdb005.pgm"]["lesions"] == "" and found["mdb005.pgm"]["severity"] == "malignant"
    assert found["mdb001.pgm"]["laterality"] == "right" and found["mdb002.pgm"]["laterality"] == "left"


@lay("cbis-ddsm")
def test_cbis_ddsm_keeps_women_apart_and_joins_masks(laid: Path) -> None:
    with open(laid / "manifest.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["patient"], row["split"]) for row in found] == [
        ("P_00001", "train"),
        ("P_00005", "test"),  # and her image of the training of calcifications is left out
        ("P_00007", "train"),
        ("P_00038", "test"),
    ]
    assert [row["pathology"] for row in found] == ["malignant", "benign", "benign", "malignant"]
    assert [row["density"] for row in found] == ["category 3", "category 2", "", "category 4"]
    assert [row["abnormality"] for row in found] == ["mass", "mass", "calcification", "calcification"]
    both, one = (np.asarray(Image.open(laid / found[i]["outline"])) for i in (0, 1))
    assert both.shape == one.shape == (40, SIDE) and both.sum() > one.sum() > 0


@lay("inbreast")
def test_inbreast_draws_contours(laid: Path) -> None:
    found = {name.split("_")[0]: row for name, row in rows(laid).items()}
    assert [row["patient"] for row in found.values()] == ["aa01", "aa01", "bb02", "cc03"]
    assert found["101"]["birads"] == "4a" and found["101"]["density"] == "" and found["102"]["density"] == "ACR 4"
    assert found["101"]["masses"] == "5.0,6.0,10.5,10.2" and found["102"]["masses"] == "none"
    with np.load(laid / found["101"]["findings"]) as masks:
        assert masks["mass"].shape == (40, SIDE) and masks["mass"][10, 10] == 1 and masks["mass"][20, 10] == 0
        assert masks["calcification"].sum() == masks["calcification"][30, 20] == 1
    with np.load(laid / found["103"]["findings"]) as masks:
        assert not masks["mass"].any() and not masks["calcification"].any()


@lay("vindr-mammo")
def test_vindr_mammo_gives_a_box_a_kind(laid: Path) -> None:
    found = rows(laid)
    assert found["0CC.dicom"]["findings"] == "none" and found["0CC.dicom"]["patient"] == "study0"
    boxes = "-1.5,4.25,13.5,11.75,Mass; 10,10,10,20,Suspicious Calcification; 10,10,10,20,Mass"
    assert found["2MLO.dicom"]["findings"] == boxes and found["2MLO.dicom"]["split"] == "test"
    assert found["2MLO.dicom"]["birads"] == "BI-RADS 3" and found["2MLO.dicom"]["density"] == "D"


@lay("rsna-pneumonia")
def test_rsna_pneumonia_knows_patients_by_the_mapping(laid: Path) -> None:
    found = list(rows(laid).values())
    assert [row["patient"] for row in found] == ["00000000", "00000000", "00000001", "00000001"]
    assert [row["finding"] for row in found] == ["normal", "other abnormality", "lung opacity", "lung opacity"]
    assert found[0]["opacities"] == "none" and found[3]["opacities"] == "4,5,10,12; 18,6,9,12"
    (laid / "pneumonia-challenge-dataset-mappings_2018.json").unlink()
    prepare(find_set("rsna-pneumonia"), laid)
    assert len({row["patient"] for row in rows(laid).values()}) == 4


@pytest.mark.parametrize(
    ("name", "patient", "cause"),
    [
        ("person1_bacteria_1", "person1", "bacterial"),
        ("person1_virus_7", "person1", "viral"),
        ("BACTERIA-1008087-0001", "1008087", "bacterial"),
        ("VIRUS-1008087-0002", "1008087", "viral"),
    ],
)
def test_kermany_reads_children_from_names(name: str, patient: str, cause: str, tmp_path: Path) -> None:
    for split, number in (("train", "1003233"), ("test", "1003244")):
        grey(tmp_path / split / "PNEUMONIA" / f"{name}.jpeg")
        grey(tmp_path / split / "NORMAL" / f"NORMAL-{number}-0001.jpeg")
    prepare(find_set("kermany"), tmp_path)
    with open(tmp_path / "manifest.csv", newline="") as file:
        found = [(row["patient"], row["split"], row["pneumonia"], row["cause"]) for row in csv.DictReader(file)]
    well = [("1003233", "train", "normal", ""), ("1003244", "test", "normal", "")]
    if patient.isdecimal():  # a number of its own in all of the set: a child of the test set is left out of training
        assert found == [*well, (patient, "test", "pneumonia", cause)]
    else:  # numbered from 1 in either split
        sick = [(f"{split}/{patient}", split, "pneumonia", cause) for split in ("train", "test")]
        assert found == [well[0], sick[0], well[1], sick[1]]


def test_kermany_takes_the_val_of_copies_for_training(tmp_path: Path) -> None:
    LAYOUTS["kermany"](tmp_path)
    grey(tmp_path / "chest_xray/val/PNEUMONIA/person3_bacteria_9.jpeg")  # a child of training
    prepare(find_set("kermany"), tmp_path)
    row = rows(tmp_path)["person3_bacteria_9.jpeg"]
    assert (row["split"], row["patient"]) == ("train", "train/person3")


@lay("covid-chestxray")
def test_covid_chestxray_takes_films_from_the_front(laid: Path) -> None:
    found = rows(laid)
    assert list(found) == ["a.jpeg", "b.png", "c.jpg", "d.png", "e.png"]
    assert [row["finding"] for row in found.values()] == ["COVID-19", "COVID-19", "other pneumonia", "no finding", ""]
    assert [row["site"] for row in found.values()] == ["Vietnam", "Vietnam", "", "Canada", "Canada"]
    assert found["a.jpeg"]["severity"] == "6.0; 4.0" and not found["b.png"]["severity"]
    assert found["a.jpeg"]["age"] == "65" and not found["c.jpg"]["age"]


# A set, what is done to its layout, and what the error says.
WRONG = {
    "an empty folder": ("busi", lambda f: shutil.rmtree(f / "Dataset_BUSI_with_GT"), r"benign/\*\.png was not found"),
    "a folder lacks": ("busi", lambda f: shutil.rmtree(f / "Dataset_BUSI_with_GT/normal"), r"normal/\*\.png was not "),
    "a mask lacks": (
        "busi",
        lambda f: (f / "Dataset_BUSI_with_GT/benign/benign (2)_mask.png").unlink(),
        r"benign \(2\)\.png has no benign \(2\)_mask\.png beside it",
    ),
    "masks differ": (
        "busi",
        lambda f: disc(f / "Dataset_BUSI_with_GT/benign/benign (2)_mask_1.png", (9, 9)),
        r"masks of .*benign \(2\)\.png differ in size",
    ),
    "a broken mask": (
        "busi",
        lambda f: text(f / "Dataset_BUSI_with_GT/benign/benign (2)_mask.png", "no picture"),
        "Cannot read the mask",
    ),
    "films lack": (
        "mias",
        lambda f: (f / "mdb006.pgm").unlink(),
        r"1 of 6 files are missing, the first is mdb006\.pgm",
    ),
    "another list": ("mias", lambda f: text(f / "Info.txt", "mdb001 G XXXX B 1 2 3"), "says something else of mdb001"),
    "no list": ("mias", lambda f: text(f / "Info.txt", "none"), "it holds no image of this set"),
    "images lack": (
        "cbis-ddsm",
        lambda f: shutil.rmtree(next(f.glob("CBIS-DDSM/Mass-Test*_MLO"))),
        "Expected DICOM files in .*Mass-Test_P_00005_RIGHT_MLO, found none",
    ),
    "a column lacks": (
        "cbis-ddsm",
        lambda f: text(f / "mass_case_description_test_set.csv", "patient_id,left or right breast\n"),
        r"mass_case_description_test_set\.csv lacks the column 'image view', it has patient_id",
    ),
    "no DICOM": (
        "inbreast",
        lambda f: text(next(f.glob("*/AllDICOMs/101*")), "none"),
        "Cannot read .*101_aa01_MG_L_MLO_ANON.dcm",
    ),
    "a film lacks": (
        "inbreast",
        lambda f: next(f.glob("*/AllDICOMs/101*")).unlink(),
        r"names 101, of which no AllDICOMs/101_\*\.dcm is there",
    ),
    "no annotation": (
        "inbreast",
        lambda f: text(next(f.glob("*/AllXML/101*")), "<plist><dict>"),
        "101.xml is no annotation of INbreast",
    ),
    "hostile annotation": (
        "inbreast",
        lambda f: text(
            next(f.glob("*/AllXML/101*")),
            '<!DOCTYPE x [<!ENTITY a "b">]><plist><dict><key>Images</key><string>&a;</string></dict></plist>',
        ),
        "101.xml is no annotation of INbreast",
    ),
    "an unknown split": (
        "vindr-mammo",
        lambda f: text(
            f / "breast-level_annotations.csv",
            (f / "breast-level_annotations.csv").read_text().replace(",test", ",tset"),
        ),
        "split should be training or test, it is 'tset'",
    ),
    "an unknown finding": (
        "vindr-mammo",
        lambda f: text(
            f / "finding_annotations.csv", (f / "finding_annotations.csv").read_text().replace("'Mass'", "'Mess'")
        ),
        "has an unknown finding 'Mess'",
    ),
    "no class": (
        "rsna-pneumonia",
        lambda f: text(f / "stage_2_detailed_class_info.csv", "patientId,class\nimg-0,Normal\n"),
        "says of img-1: None",
    ),
    "another mapping": (
        "rsna-pneumonia",
        lambda f: text(f / "pneumonia-challenge-dataset-mappings_2018.json", '["a"]'),
        "is not the file that RSNA gives",
    ),
    "no text": (
        "rsna-pneumonia",
        lambda f: (f / "stage_2_detailed_class_info.csv").write_bytes(b"\xff\xfe\x00"),
        "is not a CSV table in UTF-8",
    ),
    "another name": (
        "kermany",
        lambda f: grey(f / "chest_xray/train/NORMAL/scan.jpeg"),
        "scan.jpeg has a name of another form",
    ),
    "no test": ("kermany", lambda f: shutil.rmtree(f / "chest_xray/test"), r"chest_xray/test/NORMAL/\*\.jp\*g or"),
    "no patient": (
        "covid-chestxray",
        lambda f: text(
            f / "covid-chestxray-dataset-master/metadata.csv",
            "patientid,finding,view,modality,location,folder,filename,license\n,,PA,X-ray,,images,a.jpeg,\n",
        ),
        "'a.jpeg' lacks its patient",
    ),
    "a path": (
        "covid-chestxray",
        lambda f: text(
            f / "covid-chestxray-dataset-master/metadata.csv",
            "patientid,finding,view,modality,location,folder,filename,license\n1,,PA,X-ray,,images,../../a.jpeg,\n",
        ),
        "or is no file's name",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_another_form_is_named(case: str, tmp_path: Path) -> None:
    name, spoil, message = WRONG[case]
    LAYOUTS[name](tmp_path)
    spoil(tmp_path)
    with pytest.raises(MtfedError, match=message):
        prepare(find_set(name), tmp_path)
    assert not (tmp_path / "manifest.csv").exists()


def test_the_error_shows_the_layout_and_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MtfedError) as error:
        prepare(find_set("inbreast"), tmp_path)
    told = str(error.value)
    assert f"{tmp_path}/\n" in told and "AllDICOMs/  20586908" in told and "Ask its owners" in told


def test_a_patient_in_two_splits_is_refused(tmp_path: Path) -> None:
    grey(tmp_path / "a.png")
    grey(tmp_path / "b.png")
    items = [Sample("a.png", "1", {"lesion": "normal"}, "train"), Sample("b.png", "1", {}, "test")]
    dataset: DataSet = replace(find_set("busi"), needs=(), read=lambda folder, labels: items)
    with pytest.raises(MtfedError, match="patient '1' is in train and in test"):
        prepare(dataset, tmp_path)


@pytest.mark.parametrize(("name", "near"), [("busii", "busi"), ("cbis_ddsn", "cbis-ddsm"), ("medmnist", "pathmnist")])
def test_an_unknown_name_offers_the_nearest(name: str, near: str) -> None:
    with pytest.raises(MtfedError, match=f"Unknown data set '{name}'; did you mean '.*mnist.*|{near}'"):
        find_set(name)
    assert find_set("CBIS_DDSM").name == "cbis-ddsm"


def test_a_set_from_outside_is_offered_once() -> None:
    toy = replace(find_set("busi"), name="toy")
    register_set(toy)
    try:
        assert find_set("toy") is toy
        with pytest.raises(MtfedError, match="already a data set 'toy'"):
            register_set(toy)
    finally:
        del all_sets()["toy"]


def test_the_commands_show_what_there_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["data", "list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0].split() == ["name", "images", "what", "tasks", "licence", "get"]
    assert any("by hand" in line for line in listed) and len(listed) == len(all_sets()) + 1
    for words in (["show", "vindr-mammo"], ["list", "vindr-mammo"]):
        assert main(["data", *words]) == 0
        told = capsys.readouterr().out
        assert "Register at PhysioNet" in told and "finding_annotations.csv" in told and "10:277" in told
    assert main(["data", "get", "inbreast", "--folder", str(tmp_path)]) == 2
    assert "Ask its owners" in capsys.readouterr().err


def test_what_was_placed_by_hand_is_prepared(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "my sets"
    folder.mkdir()
    LAYOUTS["vindr-mammo"](folder)
    assert main(["data", "get", "vindr-mammo", "--folder", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "6 images of 3 patients (train 4, test 2)" in told and "PhysioNet" in told
    assert f"mtfed simulate '{folder}/experiment'" in told


def test_nothing_is_downloaded_without_a_yes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["data", "get", "breastmnist", "--folder", str(tmp_path / "b")]) == 2
    assert "--yes` accepts the licence" in capsys.readouterr().err and not (tmp_path / "b").exists()
