"""The sample inside the package: its contents, and whether its licences allow shipping it."""

import csv
import io
import zipfile
from collections import Counter, defaultdict
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.fixtures.sample import OPEN_LICENCES
from mtfed.data import sample

FOLDER = Path(sample.__file__).parent
ARCHIVE, ATTRIBUTION = FOLDER / "cxr.zip", FOLDER / "ATTRIBUTION.md"
COLUMNS = ["id", "image", "patient", "split", "pneumonia", "lungs", "hospital", "source", "licence", "url", "doi"]
SIZES = {"PneumoniaMNIST": (28, 28), "covid-chestxray-dataset": (224, 224)}

Rows = list[dict[str, str]]
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def files() -> Files:
    with zipfile.ZipFile(ARCHIVE) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def rows(files: Files) -> Rows:
    return list(csv.DictReader(io.StringIO(files["manifest.csv"].decode(), newline="")))


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "L"
        return np.asarray(image)


def test_package_data_is_small() -> None:
    assert ARCHIVE.stat().st_size + ATTRIBUTION.stat().st_size <= 4_000_000


def test_manifest_names_every_file_once(rows: Rows, files: Files) -> None:
    named = [row["image"] for row in rows] + [row["lungs"] for row in rows if row["lungs"]]
    assert list(rows[0]) == COLUMNS
    assert sorted([*named, "manifest.csv"]) == sorted(files)
    assert len({row["id"] for row in rows}) == len(rows)


def test_images_have_the_size_of_their_source(rows: Rows, files: Files) -> None:
    for row in rows:
        assert pixels(files[row["image"]]).shape == SIZES[row["source"]], row["id"]


def test_masks_are_binary_and_have_the_size_of_their_image(rows: Rows, files: Files) -> None:
    for row in filter(lambda row: row["lungs"], rows):
        mask = pixels(files[row["lungs"]])
        assert mask.shape == pixels(files[row["image"]]).shape, row["id"]
        assert np.unique(mask).tolist() == [0, 1], row["id"]
        assert 0.15 < mask.mean() < 0.65, row["id"]  # two lungs in a frontal view


def test_counts_per_task_and_split(rows: Rows) -> None:
    assert Counter((row["split"], row["pneumonia"]) for row in rows if row["pneumonia"]) == {
        ("train", "0"): 800, ("train", "1"): 800, ("test", "0"): 200, ("test", "1"): 200,
    }  # fmt: skip
    assert Counter(row["split"] for row in rows if row["lungs"]) == {"train": 65, "test": 18}
    assert all(bool(row["pneumonia"]) != bool(row["lungs"]) for row in rows)  # each image has one task


def test_no_patient_and_no_image_is_in_both_splits(rows: Rows, files: Files) -> None:
    patients, images = defaultdict(set), defaultdict(list)
    for row in rows:
        patients[row["patient"]].add(row["split"])
        images[sha256(pixels(files[row["image"]]).tobytes()).digest()].append(row["id"])
    assert [patient for patient, splits in patients.items() if len(splits) > 1] == []
    assert [ids for ids in images.values() if len(ids) > 1] == []  # no image appears twice, not even within one split


def test_licences_allow_shipping_and_all_sources_are_credited(rows: Rows) -> None:
    text = ATTRIBUTION.read_text(encoding="utf-8")
    assert {row["licence"] for row in rows} <= set(OPEN_LICENCES)
    for row in rows:
        assert row["url"] in text and row["doi"] in text, row["id"]
        if row["lungs"]:
            assert f"| {row['id']} | " in text, row["id"]


def test_text_has_no_undecoded_characters(rows: Rows) -> None:
    text = ATTRIBUTION.read_text(encoding="utf-8")
    assert "\ufffd" not in text and "?" not in text
    assert not [row["id"] for row in rows if "?" in "".join(row.values())]
    assert any(row["hospital"].startswith("Centro Médico Imbanaco") for row in rows)
