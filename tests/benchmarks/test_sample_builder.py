"""How the embedded sample is built, and that its sources still give the shipped archive."""

import csv
import io
import os
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.fixtures import sample as builder
from mtfed.data import sample
from mtfed.errors import MtfedError

SHIPPED = Path(sample.__file__).parent
Rows = list[dict[str, str]]


def test_rebuilding_gives_the_same_bytes(tmp_path: Path) -> None:
    given, default = os.environ.get("MTFED_SHARED_DATA"), Path(__file__).resolve().parents[3] / "shared" / "data"
    if not given and not default.is_dir():
        pytest.skip("source sets absent: MTFED_SHARED_DATA is not set and there is no ../shared/data")
    builder.build(Path(given or default), tmp_path / "cxr.zip")
    assert (tmp_path / "cxr.zip").read_bytes() == (SHIPPED / "cxr.zip").read_bytes()
    assert (tmp_path / "ATTRIBUTION.md").read_bytes() == (SHIPPED / "ATTRIBUTION.md").read_bytes()


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
    ({}, [[0, 2], [1, 1]], "mask of 0 and 1"),
    ({}, [[0, 0], [0, 0]], "mask of 0 and 1"),
    ({}, [[0, 1]], "mask of 0 and 1"),
]


@pytest.mark.parametrize(("change", "mask", "expected"), LUNG_CASES)
def test_lung_images(tmp_path: Path, change: dict[str, str], mask: list[list[int]], expected: int | str) -> None:
    lung_source(tmp_path, [GOOD | change], mask)
    if isinstance(expected, str):
        with pytest.raises(MtfedError, match=expected):
            builder.lung_images(tmp_path)
    else:
        assert len(builder.lung_images(tmp_path)[0]) == expected


def test_a_patient_in_both_splits_is_refused(tmp_path: Path) -> None:
    lung_source(tmp_path, [GOOD, GOOD | {"id": "b", "split": "val"}], LUNGS)
    with pytest.raises(MtfedError, match="patient 1 is in both"):
        builder.lung_images(tmp_path)


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
    monkeypatch.setattr(builder, "PER_CLASS", {"train": 2, "test": 2})
    images = np.arange(8, dtype=np.uint8)[:, None, None] * np.ones((8, 28, 28), np.uint8)  # all different
    shared = test == "train"
    np.savez(
        tmp_path / "pneumoniamnist.npz",
        train_images=images[:4], train_labels=np.array(train)[:, None],
        test_images=images[:4] if shared else images[4:], test_labels=np.array(train if shared else test)[:, None],
    )  # fmt: skip
    if message:
        with pytest.raises(MtfedError, match=message):
            builder.pneumonia_images(tmp_path)
    else:
        rows, files = builder.pneumonia_images(tmp_path)
        assert Counter((row.split, row.pneumonia) for row in rows) == dict.fromkeys(
            [(split, label) for split in ("train", "test") for label in "01"], 2
        )
        assert all(Image.open(io.BytesIO(files[row.image])).size == (28, 28) for row in rows)
