"""The work that is timed: a federation of random grey images with one classification task, as site folders."""

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
    """Write site folders with random images, of which the last is held out; return the folder."""
    rng = np.random.default_rng(0)
    for site in range(sites):
        target = folder / f"site-{site:04d}"
        target.mkdir(parents=True)
        lines = ["image,patient,split,finding"]
        for i in range(images + 1):
            Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(target / f"{i}.png")
            lines.append(f"{i}.png,{i},{'val' if i == images else 'train'},{int(rng.integers(2))}")
        (target / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder
