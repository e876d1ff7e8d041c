"""Sites with images and volumes, with and without labels, and the config of their federation."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from mtfed.config import Config, RunConfigValue, read_config
from mtfed.data.site_file import SITE_FILE, write_site_file

from .hospitals import keys, write_site

FLAT, CUBE = 32, 16  # sides of images and volumes
KEYS: dict[str, RunConfigValue] = {
    **keys("grade", "outline"), "task.outline.dimensions": 3, "image-size": FLAT, "volume-size": CUBE,
    "model": "medformer", "encoder": "vit_nano_patch8", "decoder-width": 8, "batch-size": 4,
}  # fmt: skip
PRETEXT: dict[str, RunConfigValue] = {
    "task.fill.kind": "reconstruction", "task.turn.kind": "orientation", "task.turn.dimensions": 3,
}  # fmt: skip


def config(data: Path | str = "sample", **changes: Any) -> Config:
    return read_config(KEYS | {"data": str(data)} | {key.replace("_", "-"): value for key, value in changes.items()})


def write_sites(folder: Path, images: int = 8, test: bool = True) -> Path:
    """Write site a with graded images, b with outlined volumes, c with images without labels; and test images."""
    write_site(folder / "a", ["grade"], images, 2, FLAT, seed=1)
    write_site(folder / "b", ["outline"], images, 3, CUBE, seed=2)
    write_site(folder / "c", [], images, 2, FLAT, seed=3)
    for name, modality in (("a", "chest X-ray"), ("b", "CT"), ("c", "MRI of the brain")):
        write_site_file(folder / name / SITE_FILE, {"modality": modality, "dimensions": "3" if name == "b" else "2"})
    if test:
        rows = rows_of(write_mixed(folder / "test", images // 2))
        rewrite(folder / "test", [row | {"split": "test"} for row in rows])
    return folder


def write_mixed(folder: Path, images: int = 8) -> Path:
    """Write one site with images and volumes; every fourth of each is for validation, and the last has no label."""
    table: list[dict[str, str]] = []
    for name, task, dimensions, side in (("flat", "grade", 2, FLAT), ("deep", "outline", 3, CUBE)):
        write_site(folder / name, [task], images, dimensions, side, seed=dimensions)
        with open(folder / name / "manifest.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        (folder / name / "manifest.csv").unlink()
        for row in rows:
            row |= {
                "image": f"{name}/{row['image']}",
                "patient": f"{name}-{row['patient']}",
                "dimensions": str(dimensions),
            }
        for row in rows if task == "outline" else ():
            row[task] = f"{name}/{row[task]}"
        rows[-2][task] = ""
        table += rows
    rewrite(folder, table)
    return folder


def rewrite(folder: Path, rows: list[dict[str, str]]) -> None:
    columns = ("image", "patient", "split", "grade", "outline", "dimensions")
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
