"""A small site whose data is correct, and functions that put one fault into it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from mtfed.cli import main

SITE = """
key = "st-mary"
[task.ill]
kind = "classification"
classes = "no, yes"
[task.lesion]
kind = "segmentation"
classes = "background, lesion"
[task.spots]
kind = "detection"
classes = "spot, scar"
[task.age]
kind = "regression"
classes = "years"
range = "0, 110"
"""
HEAD = ["image", "patient", "split", "ill", "lesion", "spots", "age"]
SIDE = 40
Table = dict[str, list[str]]  # image -> the other cells of its row
Spoil = Callable[[Path, Table], None]


def drawn(seed: int) -> np.ndarray:
    """Return an image that resembles no other."""
    noise = np.random.default_rng(seed).normal(size=(SIDE, SIDE))
    smooth = gaussian_filter(noise, 2.5)
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).round().astype(np.uint8)


def save(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(path)


def make_site(parent: Path, spoil: Spoil | None = None) -> Path:
    """Write a correct site, spoil it, and return its folder."""
    folder = parent / "site"
    folder.mkdir()
    table: Table = {}
    for i in range(12):
        values = drawn(i)
        save(folder / f"{i}.png", values)
        save(folder / f"{i}_m.png", (values > 160).astype(np.uint8))
        patient, split = f"p{i // 2}" if i < 8 else f"p{i}", "val" if i > 8 else "train"
        boxes = "2,3,10,12,spot" if i % 2 else "5,5,8,8,scar; 20,20,9,9,spot"
        table[f"{i}.png"] = [patient, split, ("no", "yes")[i % 2], f"{i}_m.png", boxes, "61"]
    (folder / "site.toml").write_text(SITE, encoding="utf-8")
    if spoil:
        spoil(folder, table)
    rows = [HEAD, *([image.split("|")[0], *cells] for image, cells in table.items())]
    lines = [",".join(f'"{cell}"' for cell in row) for row in rows]
    (folder / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder


def check(folder: Path, *options: str) -> tuple[int, dict[str, dict]]:
    """Check a site in one process; return the exit code and the findings by id."""
    record = folder.parent / "found.json"
    code = main(["site", "check", str(folder), "--jobs", "1", "--json", str(record), *options])
    return code, {finding["id"]: finding for finding in json.loads(record.read_text())["findings"]}


def cell(name: str, place: int, value: str) -> Spoil:
    def spoil(folder: Path, table: Table) -> None:
        table[name][place] = value

    return spoil


def column(place: int, value_of: Callable[[str, str], str]) -> Spoil:
    def spoil(folder: Path, table: Table) -> None:
        for name, cells in table.items():
            cells[place] = value_of(name, cells[1])

    return spoil


def content(name: str, make: Callable[[], bytes | np.ndarray]) -> Spoil:
    def spoil(folder: Path, table: Table) -> None:
        made = make()
        if isinstance(made, bytes):
            (folder / name).write_bytes(made)
        else:
            save(folder / name, made)

    return spoil


def row(image: str, cells: list[str], values: np.ndarray | None = None) -> Spoil:
    def spoil(folder: Path, table: Table) -> None:
        table[image] = cells
        if values is not None:
            save(folder / image, values)

    return spoil


def broken(name: str) -> Callable[[], bytes]:
    """Return a function that returns a PNG file that cannot be read."""
    return lambda: b"\x89PNG\r\n\x1a\nnothing" + name.encode()


MISSING = ["q", "train", "yes", "", "", ""]  # cells of a row without masks, boxes and numbers
