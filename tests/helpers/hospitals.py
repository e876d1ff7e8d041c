"""Hospitals with tasks of every kind, as site folders with real files; all data is synthetic."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

TASKS = {
    "grade": {"kind": "classification", "classes": "no, yes"},
    "signs": {"kind": "multi-label", "classes": "dark, bright, edge"},
    "stage": {"kind": "ordinal", "classes": "low, middle, high"},
    "outline": {"kind": "segmentation", "classes": "background, blob", "decoder": "unet"},
    "organs": {"kind": "multi-label-segmentation", "classes": "organ, PTV"},
    "blobs": {"kind": "detection", "classes": "blob"},
    "size": {"kind": "regression", "classes": "area, side", "range": "0, 64"},
    "dose": {"kind": "dose", "classes": "organ, PTV", "range": "0, 80"},
}


def keys(*tasks: str) -> dict[str, str]:
    """Return the config keys of the given tasks, or of all tasks if none is given."""
    return {f"task.{n}.{key}": value for n in tasks or TASKS for key, value in TASKS[n].items()}


def write_site(folder: Path, tasks: list[str], images: int, dimensions: int = 2, side: int = 32, seed: int = 0) -> Path:
    """Write a site: bright blobs on noise, with labels of the given tasks; every fourth image is for validation."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    lines = [["image", "patient", "split", *tasks]]
    for i in range(images):
        corner, sides = rng.integers(2, side // 2, dimensions), rng.integers(side // 4, side // 2, dimensions)
        blob = np.zeros((side,) * dimensions, bool)
        blob[tuple(slice(a, a + n) for a, n in zip(corner, sides, strict=True))] = i % 5 > 0
        pixels = (rng.integers(0, 60, blob.shape) + 150 * blob).astype(np.uint8)
        dose = np.where(blob, 60, 20).astype(np.float32)
        possible, spacing = np.ones_like(blob), np.full(3, 2.0)
        np.savez(folder / f"{i}.npz", image=pixels, mask=blob.astype(np.uint8), organ=~blob, PTV=blob, dose=dose,
                 possible=possible, spacing=spacing)  # fmt: skip
        if dimensions == 2:
            Image.fromarray(pixels).save(folder / f"{i}.png")
        box = ",".join(map(str, [*corner[::-1], *sides[::-1]]))
        cells = {
            "grade": str(int(i % 5 > 0)),
            "signs": "none" if i % 5 == 0 else "bright; edge",
            "stage": ("low", "middle", "high")[i % 3],
            "outline": f"{i}.npz",
            "organs": f"{i}.npz",
            "blobs": box if i % 5 else "none",
            "size": f"{sides.max()}; ?",
            "dose": f"{i}.npz",
        }
        image = f"{i}.png" if dimensions == 2 and i % 2 else f"{i}.npz"
        lines.append([image, f"p{i}", "val" if i % 4 == 3 else "train", *(cells[task] for task in tasks)])
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    return folder
