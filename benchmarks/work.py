"""The federation that the benchmarks run: random grey images with one classification task, as site folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mtfed.config import RunConfigValue
from mtfed.federation.app_folder import AppFolder

CONFIG: dict[str, RunConfigValue] = {
    "name": "bench",
    "encoder": "vit_nano_patch8",
    "image-size": 32,
    "batch-size": 32,
    "schedule": "constant",
    "test-every": 0,
    "evaluate-every": 0,
    "task.finding.kind": "classification",
    "task.finding.classes": "no, yes",
    "balancing": "equal",
}
APP = AppFolder(Path(__file__).parent, {"serverapp": "mtfed.server:app", "clientapp": "mtfed.clients.app:app"}, CONFIG)


def write_sites(folder: Path, sites: int, images: int) -> Path:
    """Write site folders with so many random training images each and one for validation; return the folder."""
    rng = np.random.default_rng(0)
    for site in range(sites):
        site_folder = folder / f"site-{site:04d}"
        site_folder.mkdir(parents=True)
        lines = ["image,patient,split,finding"]
        for i in range(images + 1):
            Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(site_folder / f"{i}.png")
            lines.append(f"{i}.png,{i},{'val' if i == images else 'train'},{int(rng.integers(2))}")
        (site_folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder
