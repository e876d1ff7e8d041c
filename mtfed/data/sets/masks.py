"""Convert the masks that come with data sets to what mtfed reads: PNGs of class indices, or structures in an .npz."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from ...errors import MtfedError

# Pillow modes whose numbers are not brightness (but palette indices, truth values or opacity), and how to convert them.
BRIGHTNESS_MODES = dict.fromkeys(("1", "LA", "La"), "L") | dict.fromkeys(("P", "PA", "RGBA", "RGBa", "CMYK"), "RGB")


def read_mask(path: Path, threshold: int = 0) -> np.ndarray:
    """Return where any channel of an image is above a threshold, (H, W) bool."""
    try:
        with Image.open(path) as image:
            values = np.asarray(image.convert(BRIGHTNESS_MODES.get(image.mode, image.mode)))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MtfedError(f"Cannot read the mask {path}: {error}; get it again from the set's owners.") from None
    return np.greater(values, threshold).reshape(*values.shape[:2], -1).any(axis=2)


def save_mask(labels: Path, name: str, mask: np.ndarray) -> str:
    """Write class indices (H, W) as ``labels/NAME.png`` and return the manifest cell, which is its path."""
    picture = Image.fromarray(mask.astype(np.uint8))
    return _save(labels / f"{name}.png", lambda file: picture.save(file, "PNG", compress_level=1))


def save_arrays(labels: Path, name: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Write arrays as ``labels/NAME.npz`` and return the manifest cell, which is its path."""
    # No array is called allow_pickle.
    return _save(labels / f"{name}.npz", lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]


def _save(path: Path, write: Callable[[IO[bytes]], None]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        write(file)
    os.replace(part, path)
    return f"{path.parent.name}/{path.name}"


def dicom_shape(path: Path) -> tuple[int, int]:
    """Return the height and width of a DICOM image, which its masks must have."""
    from ..formats.dicom import read_header

    try:
        with open(path, "rb") as file:
            header = read_header(file)
        return int(header.Rows), int(header.Columns)
    except Exception as error:  # pydicom raises many types for broken files
        raise MtfedError(f"Cannot read {path}: {error}; get it again from the set's owners.") from None
