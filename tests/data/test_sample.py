"""The embedded sample: what is in it, that it may be shipped, and that its sources still give it."""

import csv
import io
import os
import zipfile
from collections import Counter, defaultdict
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtfed.data.sample import build
from mtfed.errors import MtfedError

FOLDER = Path(build.__file__).parent
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


def test_images_open_at_their_size(rows: Rows, files: Files) -> None:
    for row in rows:
        assert pixels(files[row["image"]]).shape == SIZES[row["source"]], row["id"]


def test_masks_are_binary_and_fit(rows: Rows, files: Files) -> None:
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
    assert all(bool(row["pneumonia"]) != bool(row["lungs"]) for row in rows)  # one task an image


def test_no_patient_and_no_image_in_both_splits(rows: Rows, files: Files) -> None:
    patients, images = defaultdict(set), defaultdict(list)
    for row in rows:
        patients[row["patient"]].add(row["split"])
        images[sha256(pixels(files[row["image"]]).tobytes()).digest()].append(row["id"])
    assert [patient for patient, splits in patients.items() if len(splits) > 1] == []
    assert [ids for ids in images.values() if len(ids) > 1] == []  # nor twice in one split


def test_licences_allow_shipping_and_everyone_is_credited(rows: Rows) -> None:
    text = ATTRIBUTION.read_text(encoding="utf-8")
    assert {row["licence"] for row in rows} <= set(build.OPEN_LICENCES)
    for row in rows:
        assert row["url"] in text and row["doi"] in text, row["id"]
        if row["lungs"]:
            assert f"| {row['id']} | " in text, row["id"]


def test_text_is_clean(rows: Rows) -> None:
    text = ATTRIBUTION.read_text(encoding="utf-8")
    assert "\ufffd" not in text and "?" not in text
    assert not [row["id"] for row in rows if "?" in "".join(row.values())]
    assert any(row["hospital"].startswith("Centro Médico Imbanaco") for row in rows)


def test_rebuilding_gives_the_same_bytes(tmp_path: Path) -> None:
    given, beside = os.environ.get("MTFED_SHARED_DATA"), Path(__file__).resolve().parents[3] / "shared" / "data"
    if not given and not beside.is_dir():
        pytest.skip("source sets absent: MTFED_SHARED_DATA is not set and there is no ../shared/data")
    build.build(Path(given or beside), tmp_path / "cxr.zip")
    assert (tmp_path / "cxr.zip").read_bytes() == ARCHIVE.read_bytes()
    assert (tmp_path / "ATTRIBUTION.md").read_bytes() == ATTRIBUTION.read_bytes()


GOOD = {
    "id": "a", "file": "a.jpg", "split": "train", "patient": "1", "location": "Cali", "license": "CC BY 4.0",
    "doi": "10.7150/thno.46465", "url": "https://example.org",
}  # fmt: skip
LUNGS = [[0, 1], [1, 1]]
LUNG_CASES = [  # changes to the good entry, mask, how many are taken or the message
    ({}, LUNGS, 1),
    ({"split": "val"}, LUNGS, 1),
    ({"license": "CC BY-NC-SA"}, LUNGS, 0),
    ({"license": "CC BY-SA"}, LUNGS, 0),
    ({"license": ""}, LUNGS, 0),
    ({"id": "b"}, LUNGS, 0),  # no mask of that name
    ({"location": "M?xico"}, LUNGS, "lost a character"),
    ({"doi": "10.1/unknown"}, LUNGS, "no work to credit"),
    ({}, [[0, 2], [1, 1]], "mask of 0 and 1 expected"),
    ({}, [[0, 0], [0, 0]], "mask of 0 and 1 expected"),
    ({}, [[0, 1]], "mask of 0 and 1 expected"),
]


@pytest.mark.parametrize(("change", "mask", "expected"), LUNG_CASES)
def test_lung_images(tmp_path: Path, change: dict[str, str], mask: list[list[int]], expected: int | str) -> None:
    lung_source(tmp_path, [GOOD | change], mask)
    if isinstance(expected, str):
        with pytest.raises(MtfedError, match=expected):
            build.lung_images(tmp_path)
    else:
        assert len(build.lung_images(tmp_path)[0]) == expected


def test_a_patient_in_both_splits_is_refused(tmp_path: Path) -> None:
    lung_source(tmp_path, [GOOD, GOOD | {"id": "b", "split": "val"}], LUNGS)
    with pytest.raises(MtfedError, match="patient 1 is in both"):
        build.lung_images(tmp_path)


def lung_source(folder: Path, entries: Rows, mask: list[list[int]]) -> None:
    with (folder / "index.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, GOOD)
        writer.writeheader()
        writer.writerows(entries)
    for archive, name, array in (("images", "a.jpg", np.zeros((2, 2))), ("masks", "a.png", np.array(mask))):
        buffer = io.BytesIO()
        Image.fromarray(array.astype(np.uint8)).save(buffer, Path(name).suffix[1:].replace("jpg", "jpeg"))
        with zipfile.ZipFile(folder / f"{archive}.zip", "w") as file:
            file.writestr(name, buffer.getvalue())


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1], None),
        ([0, 1, 1, 1], [0, 0, 1, 1], "expected 2 different train images of class 0, got 1"),
        ([0, 0, 1, 1], "train", "are the same image"),
    ],
)
def test_pneumonia_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: list[int], test: list[int] | str, message: str | None
) -> None:
    monkeypatch.setattr(build, "PER_CLASS", {"train": 2, "test": 2})
    images = np.arange(8, dtype=np.uint8)[:, None, None] * np.ones((8, 28, 28), np.uint8)  # all different
    shared = test == "train"
    np.savez(
        tmp_path / "pneumoniamnist.npz",
        train_images=images[:4], train_labels=np.array(train)[:, None],
        test_images=images[:4] if shared else images[4:], test_labels=np.array(train if shared else test)[:, None],
    )  # fmt: skip
    if message:
        with pytest.raises(MtfedError, match=message):
            build.pneumonia_images(tmp_path)
    else:
        rows, files = build.pneumonia_images(tmp_path)
        assert Counter((row.split, row.pneumonia) for row in rows) == dict.fromkeys(
            [(split, label) for split in ("train", "test") for label in "01"], 2
        )
        assert all(pixels(files[row.image]).shape == (28, 28) for row in rows)
