"""``mtfed site check`` finds and names every kind of fault."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.checked_site import (
    MISSING,
    SIDE,
    Spoil,
    Table,
    broken,
    cell,
    check,
    column,
    content,
    drawn,
    make_site,
    row,
)
from helpers.slices import dicom
from mtfed.site.check.findings import CHECKS


def resave(cells: list[str]) -> Spoil:
    def spoil(folder: Path, table: Table) -> None:
        with Image.open(folder / "1.png") as image:
            image.resize((33, 33)).save(folder / "near.jpg", quality=80)
        table["near.jpg"] = cells

    return spoil


def brighter(folder: Path, table: Table) -> None:
    for i in range(12):
        name = f"{i}.npy"
        values = drawn(i).astype(np.float32) / 255
        np.save(folder / name, values * (1000 if i == 4 else 1))
        table[name] = table.pop(f"{i}.png")
        (folder / f"{i}.png").unlink()


def units(folder: Path, table: Table) -> None:
    np.save(folder / "hu.npy", drawn(77).astype(np.int16) * 8 - 1000)
    table["hu.npy"] = ["q", "train", "yes", "", "", ""]


def spaced(folder: Path, table: Table) -> None:
    for i in range(10):
        dicom(folder / f"{i}.dcm", PixelSpacing=[90, 90] if i == 3 else [0.9, 0.9])
        table[f"{i}.dcm"] = [f"d{i}", "train", "yes", "", "", ""]


def thermal(folder: Path, table: Table) -> None:
    site = (folder / "site.toml").read_text()
    (folder / "site.toml").write_text(f"modality = 'thermogram'\nbody-part = 'chest'\n{site}")


def sliced(folder: Path, table: Table) -> None:
    np.save(folder / "v.npy", np.stack([drawn(50), drawn(51)]))
    table["v.npy#0"], table["v.npy#1"] = MISSING, ["r", *MISSING[1:]]


FAULTS: dict[str, tuple[str, str, str, Spoil]] = {
    # fault: id of the finding, its severity, the name of an occurrence, how to cause it
    "no such file": ("missing", "error", "gone.png", row("gone.png", MISSING)),
    "a path outside": ("outside", "error", "../x.png", row("../x.png", MISSING)),
    "no picture": ("unreadable", "error", "3.png", content("3.png", broken("3"))),
    "cut off": ("unreadable", "error", "3.png", content("3.png", lambda: png_of(drawn(3))[:300])),
    "an empty file": ("unreadable", "error", "3.png", content("3.png", lambda: b"")),
    "more than allowed": ("too-many-unreadable", "error", "split train", content("3.png", broken("3"))),
    "blank": ("blank", "error", "3.png", content("3.png", lambda: np.full((SIDE, SIDE), 9, np.uint8))),
    "nearly blank": ("nearly-blank", "warning", "3.png", content("3.png", lambda: one_pixel())),
    "no such mask": ("label-missing", "error", "gone.png", cell("3.png", 3, "gone.png")),
    "a broken mask": ("label-unreadable", "error", "3_m.png", content("3_m.png", broken("m"))),
    "a small mask": ("mask-misfit", "error", "3_m.png", content("3_m.png", lambda: np.ones((9, 9), np.uint8))),
    "values": ("mask-values", "error", "3_m.png", content("3_m.png", lambda: (drawn(3) // 64).astype(np.uint8))),
    "empty mask": ("empty-mask", "note", "3_m.png", content("3_m.png", lambda: np.zeros((SIDE, SIDE), np.uint8))),
    "a class": ("class-unknown", "error", "3.png", cell("3.png", 2, "yess")),
    "a class of a box": ("class-unknown", "error", "3.png", cell("3.png", 4, "2,3,10,12,spott")),
    "two ways": ("class-written", "note", "ill", cell("3.png", 2, "1")),
    "a number": ("outside-range", "error", "3.png", cell("3.png", 5, "610")),
    "a box outside": ("outside-range", "error", "3.png", cell("3.png", 4, "90,90,5,5,spot")),
    "no number": ("label-wrong", "error", "3.png", cell("3.png", 5, "old")),
    "no box": ("label-wrong", "error", "3.png", cell("3.png", 4, "2,3,spot")),
    "a split": ("manifest-lines", "error", "line 5", cell("3.png", 1, "trian")),
    "a patient": ("manifest-lines", "error", "line 5", cell("3.png", 0, "")),
    "patient in two splits": ("patient-split", "error", "p9", cell("8.png", 0, "p9")),
    "two patients": ("image-patients", "error", "3.png", row("3.png|again", ["q", "train", "yes", "", "", ""])),
    "a volume of two patients": ("image-patients", "error", "v.npy", sliced),
    "twice": ("named-twice", "note", "3.png", row("3.png|again", ["p1", "train", "yes", "", "", ""])),
    "same image": ("same-across", "error", "3.png and x.png", row("x.png", MISSING, drawn(3))),
    "same patient": ("same-within", "note", "3.png and x.png", row("x.png", ["p1", *MISSING[1:]], drawn(3))),
    "near": ("near-across", "error", "1.png and near.jpg", resave(MISSING)),
    "near, same patient": ("near-within", "note", "1.png and near.jpg", resave(["p0", *MISSING[1:]])),
    "far brighter": ("intensity-outlier", "warning", "4.npy", brighter),
    "other units": ("mixed-kinds", "warning", "more than 8 bits, negative values", units),
    "far larger": ("size-outlier", "warning", "3.png", content("3.png", lambda: drawn(3).repeat(6, 0).repeat(6, 1))),
    "millimetres": ("spacing-outlier", "warning", "3.dcm", spaced),
    "an unknown modality": ("word-unknown", "warning", "modality 'thermogram'", thermal),
    "some spacing": ("some-spacing", "note", "0.png", spaced),
    "a rare class": ("few-patients", "warning", "ill: yes", column(2, lambda n, _: "yes" if n == "3.png" else "no")),
    "no validation": ("no-validation", "warning", "age", column(5, lambda name, split: "" if split == "val" else "7")),
    "no training": ("no-training", "error", "age", column(5, lambda name, split: "" if split == "train" else "7")),
    "no label": ("no-labels", "warning", "age", column(5, lambda name, split: "")),
    "unlabelled": ("unlabelled", "note", "x.png", row("x.png", ["q", "train", "", "", "", ""], drawn(90))),
    "unnamed": ("unnamed", "note", "more.png", content("more.png", lambda: drawn(91))),
}  # fmt: skip


def png_of(values: np.ndarray) -> bytes:
    written = io.BytesIO()
    Image.fromarray(values).save(written, "PNG")
    return written.getvalue()


def one_pixel() -> np.ndarray:
    values = np.zeros((SIDE, SIDE), np.uint8)
    values[3, 3] = 200
    return values


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found_and_named(tmp_path: Path, fault: str) -> None:
    name, severity, names, spoil = FAULTS[fault]
    code, findings = check(make_site(tmp_path, spoil))
    assert name in findings, list(findings)
    assert findings[name]["severity"] == severity
    assert names in [item["name"] for item in findings[name]["items"]]
    assert code == int(any(finding["severity"] == "error" for finding in findings.values()))


def test_every_check_is_tested() -> None:
    tested = {fault[0] for fault in FAULTS.values()} | {"killed", "unreadable-allowed", "burned-in"}
    assert set(CHECKS) - tested == {f"tags-{group}" for group in ("person", "staff", "place", "time", "private")}
