"""Masks as sets come with, converted to what mtfed reads: pictures of class indices, or structures in an .npz."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import MtfedError

# Modes in which a number is no brightness: an index, a truth value, or how opaque it is.
SHOWN = dict.fromkeys(("1", "LA", "La"), "L") | dict.fromkeys(("P", "PA", "RGBA", "RGBa", "CMYK"), "RGB")


def read_mask(path: Path, above: int = 0) -> np.ndarray:
    """Return where a picture is brighter than a value, (H, W) bool; of colours, where any of them is."""
    try:
        with Image.open(path) as image:
            values = np.asarray(image.convert(SHOWN.get(image.mode, image.mode)))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MtfedError(f"Cannot read the mask {path}: {error}; get it again from the set's owners.") from None
    return np.greater(values, above).reshape(*values.shape[:2], -1).any(axis=2)


def save_mask(labels: Path, name: str, mask: np.ndarray) -> str:
    """Write class indices (H, W) as ``labels/NAME.png`` and return the cell that names it."""
    path = labels / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    Image.fromarray(mask.astype(np.uint8)).save(part, "PNG", compress_level=1)
    os.replace(part, path)
    return path.relative_to(labels.parent).as_posix()


def save_arrays(labels: Path, name: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Write arrays as ``labels/NAME.npz`` and return the cell that names it."""
    path = labels / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]  # no array is called allow_pickle
    os.replace(part, path)
    return path.relative_to(labels.parent).as_posix()
