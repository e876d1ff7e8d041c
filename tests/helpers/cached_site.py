"""A small site whose decoded images are cached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.hospitals import keys
from mtfed.config import Config, read_config
from mtfed.data import cache, decoding
from mtfed.data.loading import load_shard
from mtfed.data.manifest import Row, SiteData
from mtfed.data.shard import Shard
from mtfed.data.simulated_sites import site_folder
from mtfed.data.store import Decoded

GRADED = read_config({"image-size": 16, **keys("grade")})


def graded(folder: Path, images: int = 6) -> Path:
    """Write a site of 16 px pictures with a grade; every third is for validation."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["image,patient,split,grade"]
    for i in range(images):
        pixels = np.random.default_rng(i).integers(0, 255, (16, 16), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(f"{i}.png,p{i},{'val' if i % 3 == 2 else 'train'},{i % 2}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def stores(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / ".mtfed-cache").glob("*-*"))


def opened(folder: Path, config: Config = GRADED, split: str = "train") -> Shard:
    """Load a split as a new process would."""
    cache._open.clear()
    return load_shard(site_folder(folder, "h", config), config, split)


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the images decoded from now on."""
    seen: list[str] = []
    original = decoding.decode_row

    def decode_row(data: SiteData, row: Row, config: Config) -> Decoded | str:
        seen.append(row.image)
        return original(data, row, config)

    monkeypatch.setattr(decoding, "decode_row", decode_row)
    return seen


def rewrite(folder: Path, change: Callable[[str], str]) -> None:
    lines = (folder / "manifest.csv").read_text().splitlines(keepends=True)
    (folder / "manifest.csv").write_text("".join([lines[0], *map(change, lines[1:])]))


def break_files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_bytes(b"no picture")
    return folder
