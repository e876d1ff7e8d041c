"""Write five public sets of images as site folders, which the experiments of the models train on.

python -m benchmarks.images --source FOLDER --out images

FOLDER holds one folder a set, each with an ``index.csv`` (one row an image, column ``split``), ``images.zip`` and
``masks.zip``; of OpenKBP, ``volumes/ID.npz`` at 64^3. A set becomes ``images/SET/SITE/`` with a manifest; test images
go to ``images/SET/test``, which is the server's. Licences of these sets mostly forbid passing images on, so the folders
stay where they are made.
"""

from __future__ import annotations

import argparse
import csv
import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
from PIL import Image

Row = dict[str, str]
# The structures in the order of the set's bit field; those from PTV56 on are targets.
STRUCTURES = (
    "Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Esophagus", "Larynx", "Mandible", "PTV56", "PTV63",
    "PTV70",
)  # fmt: skip


@dataclass(frozen=True)
class Set:
    """How a set's rows become a manifest's: task -> the cell of a row, empty where it has no label."""

    name: str
    cells: dict[str, Callable[[Row], str]]
    site: Callable[[Row], str] = lambda row: "hospital"
    patient: str = "id"
    split: Callable[[Row], str] = lambda row: row["split"]


def mask_of(row: Row) -> str:
    """Return the path of a row's mask."""
    return f"{row['id']}-mask.png" if row.get("has_mask") == "1" else ""


def lung_boxes(row: Row) -> str:
    """Return the boxes of both lungs."""
    sides = {"rl": "right lung", "ll": "left lung"}
    boxes = [[*(row[f"{side}_{edge}"] for edge in "xywh"), name] for side, name in sides.items() if row[f"{side}_x"]]
    return "; ".join(",".join(box) for box in boxes)


def lesion_boxes(row: Row) -> str:
    """Return the boxes of a mammogram's lesions; one with a finding but no place is not labelled."""
    boxes = [",".join(box.split()) for box in row["boxes_xywh"].split(";") if box.strip()]
    return "; ".join(boxes) or ("none" if row["severity"] == "0" else "")


def sixth(row: Row) -> str:
    """Return a split that validates on every sixth patient; the given one has a single image without COVID-19 there."""
    if row["split"] == "test":
        return "test"
    return "train" if crc32(row["patient"].encode()) % 6 else "val"


def severity(row: Row) -> str:
    """Return how far the disease reaches and how dense it is, both as the raters scored."""
    return f"{row['geographic_extent']}; {row['opacity']}" if row["geographic_extent"] else ""


SETS = (
    Set(
        "covid_cxr",
        {
            # Of 609 only 13 are without a finding, which is too few for a class of their own.
            "covid": lambda row: "" if row["label"] == "-1" else "yes" if row["label"] == "1" else "no",
            "lungs": mask_of,
            "sides": lung_boxes,
            "severity": severity,
        },
        site=lambda row: row["client"].lower().replace(" ", "-"),
        patient="patient",
        split=sixth,
    ),
    Set("busi", {"lesion": lambda row: row["label"], "outline": mask_of}, patient="group"),
    Set("isic2017", {"melanoma": lambda row: row["label"], "age": lambda row: row["age"]}, patient="group"),
    Set(
        "mias",
        {"density": lambda row: row["density"], "severity": lambda row: row["severity"], "lesions": lesion_boxes},
        patient="patient",
    ),
)


def main() -> None:
    """Read the sources and write the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    given = parser.parse_args()
    for one in SETS:
        write(given.out / one.name, one, pictures(given.source / one.name, one, given.out / one.name))
    write(given.out / "openkbp3d", DOSE, volumes(given.source / "openkbp3d", given.out / "openkbp3d"))


def site_of(row: Row, one: Set) -> str:
    """Return the folder that a row goes to."""
    return "test" if row["split"] == "test" else one.site(row)


def pictures(source: Path, one: Set, out: Path) -> Iterator[tuple[Row, str]]:
    """Copy images and masks; yield each row and its image's path."""
    with zipfile.ZipFile(source / "images.zip") as images:
        masks = zipfile.ZipFile(source / "masks.zip") if (source / "masks.zip").exists() else None
        for row in read(source / "index.csv"):
            folder = out / site_of(row, one)
            folder.mkdir(parents=True, exist_ok=True)
            name = Path(row["file"]).name
            (folder / name).write_bytes(images.read(row["file"]))
            if masks is not None and mask_of(row):
                mask = np.asarray(Image.open(io.BytesIO(masks.read(f"{row['id']}.png")))) > 0
                Image.fromarray(mask.astype(np.uint8)).save(folder / mask_of(row))
            yield row, name


DOSE = Set("openkbp3d", {"structures": lambda row: f"{row['id']}.npz", "dose": lambda row: f"{row['id']}.npz"})


def volumes(source: Path, out: Path) -> Iterator[tuple[Row, str]]:
    """Write one file a patient: image, dose in Gy, where it can be, voxel spacing in mm, and the structures it has."""
    for row in read(source / "index.csv"):
        folder = out / site_of(row, DOSE)
        folder.mkdir(parents=True, exist_ok=True)
        with np.load(source / "volumes" / f"{row['id']}.npz") as file:
            given = dict(file)
        fields = {name: (given["structures"] >> bit) & 1 > 0 for bit, name in enumerate(STRUCTURES)}
        np.savez_compressed(
            folder / f"{row['id']}.npz",
            image=given["ct"],
            dose=(given["dose"] / 20).astype(np.float32),
            possible=given["possible_dose"],
            spacing=np.asarray([float(side) for side in row["spacing_mm"].split("x")]),
            **{name: mask for name, mask in fields.items() if mask.any()},
        )
        yield row, f"{row['id']}.npz"


def read(index: Path) -> list[Row]:
    """Return the rows of an index."""
    with open(index, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(out: Path, one: Set, rows: Iterator[tuple[Row, str]]) -> None:
    """Write the manifests."""
    lines: dict[str, list[list[str]]] = {}
    for row, image in rows:
        cells = [cell(row) for cell in one.cells.values()]
        lines.setdefault(site_of(row, one), []).append([image, row[one.patient], one.split(row), *cells])
    for site, own in lines.items():
        with open(out / site / "manifest.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["image", "patient", "split", *one.cells], *own])
        print(f"{one.name:12} {site:16} {len(own):5} images")


if __name__ == "__main__":
    main()
