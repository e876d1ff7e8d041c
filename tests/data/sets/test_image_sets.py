"""Readers of image sets, on small copies of the official layouts."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.drawings import SIDE, draw_noise
from helpers.layouts import LAYOUTS, rows_by_image
from mtfed.data.sets import find_set
from mtfed.data.sets.masks import read_mask
from mtfed.data.sets.medmnist import CLASSES
from mtfed.data.sets.prepare import prepare
from mtfed.errors import MtfedError


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Lay out and prepare the set ``request.param``; return its folder."""
    folder = tmp_path / request.param
    folder.mkdir()
    LAYOUTS[request.param](folder)
    prepare(find_set(request.param), folder)
    return folder


def with_set(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("folder", [name], indirect=True)


@pytest.mark.parametrize(("name", "classes"), [("pathmnist", 9), ("chestmnist", 14), ("organmnist3d", 11)])
def test_medmnist_names_its_classes(name: str, classes: int) -> None:
    assert len(CLASSES[name].split(", ")) == classes


@with_set("chestmnist")
def test_medmnist_keeps_its_splits_and_pixels(folder: Path) -> None:
    rows = rows_by_image(folder)
    with np.load(folder / "chestmnist.npz") as file:
        np.testing.assert_array_equal(np.asarray(Image.open(folder / "images/test/000003.png")), file["test_images"][3])
    with open(folder / "manifest.csv", newline="") as table:
        assert Counter(row["split"] for row in csv.DictReader(table)) == {"train": 6, "val": 3, "test": 4}
    assert rows["000005.png"]["chest"] == "nodule"


def test_medmnist_reads_the_largest_version(tmp_path: Path) -> None:
    for size in (28, 64):
        arrays = {f"{s}_images": np.full((2, size, size), 7, np.uint8) for s in ("train", "val", "test")}
        labels = {f"{s}_labels": np.array([[0], [1]], np.uint8) for s in ("train", "val", "test")}
        np.savez(tmp_path / f"breastmnist{'' if size == 28 else f'_{size}'}.npz", **arrays, **labels)
    prepare(find_set("breastmnist"), tmp_path)
    assert Image.open(tmp_path / "images/val/000001.png").size == (64, 64)
    row = rows_by_image(tmp_path)["000000.png"]
    assert (row["breast"], row["modality"], row["body-part"]) == ("malignant", "breast ultrasound", "breast")
    for size, side in ((28, 32), (64, 64)):
        prepare(find_set("breastmnist").version(size), tmp_path)
        assert Image.open(tmp_path / "images/val/000001.png").size == (size, size)
        assert f"image-size = {side}\n" in (tmp_path / "experiment/pyproject.toml").read_text()
    with pytest.raises(MtfedError, match="does not contain BreastMNIST, 128 pixels"):
        prepare(find_set("breastmnist").version(128), tmp_path)


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
def test_a_malformed_medmnist_file_is_refused(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "breastmnist.npz", **arrays)
    with pytest.raises(MtfedError, match="is not the file that MedMNIST provides"):
        prepare(find_set("breastmnist"), tmp_path)
    assert not (tmp_path / "manifest.csv").exists()


@with_set("busi")
def test_busi_joins_the_masks_of_an_image(folder: Path) -> None:
    rows = rows_by_image(folder)
    assert [row["lesion"] for row in rows.values()] == ["normal"] * 3 + ["benign"] * 3 + ["malignant"] * 3
    single, both = (np.asarray(Image.open(folder / f"labels/benign({i}).png")) for i in (2, 10))
    assert single.max() == both.max() == 1 and both.sum() > single.sum()
    assert np.asarray(Image.open(folder / rows["normal (1).png"]["outline"])).max() == 0


@with_set("mias")
def test_mias_counts_from_the_bottom_and_pairs_films(folder: Path) -> None:
    rows = rows_by_image(folder)
    assert [row["patient"] for row in rows.values()] == ["001", "001", "002", "002", "003", "003"]
    assert rows["mdb001.pgm"]["lesions"] == f"{15 - 7},{SIDE - 25 - 7},14,14"
    assert rows["mdb002.pgm"]["lesions"].count(";") == 1 and rows["mdb002.pgm"]["severity"] == "malignant"
    assert rows["mdb002.pgm"]["abnormality"] == "circumscribed mass; calcification"
    assert rows["mdb003.pgm"]["lesions"] == "none" and rows["mdb003.pgm"]["severity"] == "normal"
    assert rows["mdb005.pgm"]["lesions"] == "" and rows["mdb005.pgm"]["severity"] == "malignant"
    assert rows["mdb001.pgm"]["laterality"] == "right" and rows["mdb002.pgm"]["laterality"] == "left"


@with_set("cbis-ddsm")
def test_cbis_ddsm_separates_women_and_joins_masks(folder: Path) -> None:
    with open(folder / "manifest.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["patient"], row["split"]) for row in rows] == [
        ("P_00001", "train"),
        ("P_00005", "test"),  # her training image of a calcification is excluded
        ("P_00007", "train"),
        ("P_00038", "test"),
    ]
    assert [row["pathology"] for row in rows] == ["malignant", "benign", "benign", "malignant"]
    assert [row["density"] for row in rows] == ["category 3", "category 2", "", "category 4"]
    assert [row["abnormality"] for row in rows] == ["mass", "mass", "calcification", "calcification"]
    both, single = (np.asarray(Image.open(folder / rows[i]["outline"])) for i in (0, 1))
    assert both.shape == single.shape == (40, SIDE) and both.sum() > single.sum() > 0


@with_set("inbreast")
def test_inbreast_draws_contours(folder: Path) -> None:
    rows = {name.split("_")[0]: row for name, row in rows_by_image(folder).items()}
    assert [row["patient"] for row in rows.values()] == ["aa01", "aa01", "bb02", "cc03"]
    assert rows["101"]["birads"] == "4a" and rows["101"]["density"] == "" and rows["102"]["density"] == "ACR 4"
    assert rows["101"]["masses"] == "5.0,6.0,10.5,10.2" and rows["102"]["masses"] == "none"
    with np.load(folder / rows["101"]["findings"]) as masks:
        assert masks["mass"].shape == (40, SIDE) and masks["mass"][10, 10] == 1 and masks["mass"][20, 10] == 0
        assert masks["calcification"].sum() == masks["calcification"][30, 20] == 1
    with np.load(folder / rows["103"]["findings"]) as masks:
        assert not masks["mass"].any() and not masks["calcification"].any()


@with_set("vindr-mammo")
def test_vindr_mammo_gives_a_box_per_category(folder: Path) -> None:
    rows = rows_by_image(folder)
    assert rows["0CC.dicom"]["findings"] == "none" and rows["0CC.dicom"]["patient"] == "study0"
    boxes = "-1.5,4.25,13.5,11.75,Mass; 10,10,10,20,Suspicious Calcification; 10,10,10,20,Mass"
    assert rows["2MLO.dicom"]["findings"] == boxes and rows["2MLO.dicom"]["split"] == "test"
    assert rows["2MLO.dicom"]["birads"] == "BI-RADS 3" and rows["2MLO.dicom"]["density"] == "D"


@with_set("rsna-pneumonia")
def test_rsna_pneumonia_takes_patients_from_the_mapping(folder: Path) -> None:
    rows = list(rows_by_image(folder).values())
    assert [row["patient"] for row in rows] == ["00000000", "00000000", "00000001", "00000001"]
    assert [row["finding"] for row in rows] == ["normal", "other abnormality", "lung opacity", "lung opacity"]
    assert rows[0]["opacities"] == "none" and rows[3]["opacities"] == "4,5,10,12; 18,6,9,12"
    (folder / "pneumonia-challenge-dataset-mappings_2018.json").unlink()
    prepare(find_set("rsna-pneumonia"), folder)
    assert len({row["patient"] for row in rows_by_image(folder).values()}) == 4


@pytest.mark.parametrize(
    ("name", "patient", "cause"),
    [
        ("person1_bacteria_1", "person1", "bacterial"),
        ("person1_virus_7", "person1", "viral"),
        ("BACTERIA-1008087-0001", "1008087", "bacterial"),
        ("VIRUS-1008087-0002", "1008087", "viral"),
    ],
)
def test_kermany_identifies_children_by_file_names(name: str, patient: str, cause: str, tmp_path: Path) -> None:
    for split, number in (("train", "1003233"), ("test", "1003244")):
        draw_noise(tmp_path / split / "PNEUMONIA" / f"{name}.jpeg")
        draw_noise(tmp_path / split / "NORMAL" / f"NORMAL-{number}-0001.jpeg")
    prepare(find_set("kermany"), tmp_path)
    with open(tmp_path / "manifest.csv", newline="") as file:
        rows = [(row["patient"], row["split"], row["pneumonia"], row["cause"]) for row in csv.DictReader(file)]
    well = [("1003233", "train", "normal", ""), ("1003244", "test", "normal", "")]
    if patient.isdecimal():  # unique in the whole set: a child of the test set is excluded from training
        assert rows == [*well, (patient, "test", "pneumonia", cause)]
    else:  # numbered from 1 in each split
        sick = [(f"{split}/{patient}", split, "pneumonia", cause) for split in ("train", "test")]
        assert rows == [well[0], sick[0], well[1], sick[1]]


def test_kermany_reads_val_images_as_training_images(tmp_path: Path) -> None:
    LAYOUTS["kermany"](tmp_path)
    draw_noise(tmp_path / "chest_xray/val/PNEUMONIA/person3_bacteria_9.jpeg")  # a child of training
    prepare(find_set("kermany"), tmp_path)
    row = rows_by_image(tmp_path)["person3_bacteria_9.jpeg"]
    assert (row["split"], row["patient"]) == ("train", "train/person3")


@with_set("covid-chestxray")
def test_covid_chestxray_takes_frontal_films(folder: Path) -> None:
    rows = rows_by_image(folder)
    assert list(rows) == ["a.jpeg", "b.png", "c.jpg", "d.png", "e.png"]
    assert [row["finding"] for row in rows.values()] == ["COVID-19", "COVID-19", "other pneumonia", "no finding", ""]
    assert [row["site"] for row in rows.values()] == ["Vietnam", "Vietnam", "", "Canada", "Canada"]
    assert rows["a.jpeg"]["severity"] == "6.0; 4.0" and not rows["b.png"]["severity"]
    assert rows["a.jpeg"]["age"] == "65" and not rows["c.jpg"]["age"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_mask_is_where_an_image_is_bright(mode: str, tmp_path: Path) -> None:
    marked = np.zeros((8, 10), bool)
    marked[2:5, 1:4] = True
    grey = Image.fromarray(marked * np.uint8(255))
    image = Image.fromarray(marked * np.uint16(65535)) if mode == "I;16" else grey.convert(mode)
    image.save(tmp_path / "mask.tif")
    for above in (0, 127):
        np.testing.assert_array_equal(read_mask(tmp_path / "mask.tif", above), marked)
