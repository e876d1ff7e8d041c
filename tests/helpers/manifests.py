"""Small sites with a manifest."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import SMALL, TASKS
from mtfed.config import read_config

CONFIG = read_config(TASKS | SMALL)

TASK_NAMES = list(CONFIG.tasks)


def png(size: tuple[int, int] = (40, 30), value: int | None = None, mode: str = "L") -> bytes:
    rng = np.random.default_rng(0)
    shape = size[::-1] + ((3,) if mode == "RGB" else ())
    pixels = rng.integers(0, 255, shape) if value is None else np.full(shape, value)
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8), mode).save(out, "PNG")
    return out.getvalue()


def write(folder: Path, manifest: str, files: dict[str, bytes] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.csv").write_text(manifest, encoding="utf-8")
    for name, content in (files or {}).items():
        (folder / name).write_bytes(content)
    return folder


def parquet(folder: Path, columns: dict[str, object], **types: object) -> Path:
    """Write a manifest of typed columns."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    arrays = [pyarrow.array(cells, types.get(name)) for name, cells in columns.items()]
    parquet.write_table(pyarrow.table(arrays, list(columns)), folder / "manifest.parquet")
    return folder
