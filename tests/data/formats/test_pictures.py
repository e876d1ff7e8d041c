"""Pictures are read with the values that they contain."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.scans import (
    ramp,
    read,
    read_content,
    site,
)
from mtfed.data.source import Source

GREY, COLOUR = ramp(6, 8, dtype=np.uint8), ramp(6, 8, 3, dtype=np.uint8)

PICTURES = [
    *((f"a.{suffix}", GREY) for suffix in ("png", "bmp", "tif", "tiff", "pgm", "PNG")),
    *((f"a.{suffix}", COLOUR) for suffix in ("png", "bmp", "tif", "ppm")),
    *((f"a.{suffix}", ramp(6, 8)) for suffix in ("png", "tif")),
    ("a.tif", ramp(6, 8, dtype=np.float32) - 7.5),
]


@pytest.mark.parametrize(("name", "values"), PICTURES)
def test_pictures(name: str, values: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / name)
    picture = read(tmp_path, name)
    np.testing.assert_array_equal(picture.values, values)
    assert picture.values.dtype == values.dtype and picture.spacing is picture.affine is picture.window is None


def test_gif(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.gif")
    np.testing.assert_array_equal(Source(site(tmp_path), "a.gif", 8).pixels(1)[0, 1:7], GREY)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK"])
def test_images_are_converted_to_colours_and_labels_are_not(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(COLOUR).convert(mode)
    image.save(tmp_path / "a.tif")
    expected = np.asarray(image.convert("L" if mode in ("1", "LA") else "RGB"))
    np.testing.assert_array_equal(read(tmp_path, "a.tif").values, expected)
    if mode in ("1", "P"):
        np.testing.assert_array_equal(read(tmp_path, "a.tif", what="mask").values, np.asarray(image))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pages_are_slices_of_a_volume(dtype: type, tmp_path: Path) -> None:
    volume = ramp(5, 6, 8, dtype=dtype)
    pages = [Image.fromarray(page) for page in volume]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read(tmp_path, "a.tif", 3).values, volume)
    np.testing.assert_array_equal(read(tmp_path, "a.tif#3").values, volume[3])


def tiff(values: np.ndarray, bits: int, photometric: int) -> bytes:
    """Return a TIFF of one row of numbers, packed into so many bits each."""
    packed = int("".join(f"{value:0{bits}b}" for value in values), 2).to_bytes(len(values) * bits // 8)
    packed = values.astype("<u2").tobytes() if bits == 16 else packed
    tags = {
        256: len(values),
        257: 1,
        258: bits,
        259: 1,
        262: photometric,
        273: 122,
        277: 1,
        278: 1,
        279: len(packed),
    }
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + fields + bytes(4) + packed


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_a_tiff_whose_zero_is_white(bits: int, tmp_path: Path) -> None:
    """An image has the displayed values, a label the stored ones."""
    highest = 2**bits - 1
    values = np.array([0, 1, highest, highest // 2, 1, 0, 0, 1])
    shown = (highest - values) * (255 if bits == 1 else 1)
    content = tiff(values, bits, 0)
    np.testing.assert_array_equal(read_content(tmp_path, content, name="a.tif").values, shown[None])
    np.testing.assert_array_equal(read_content(tmp_path, content, name="a.tif", what="mask").values, values[None])
    plain = read_content(tmp_path, tiff(values, bits, 1), name="a.tif", what="mask")
    np.testing.assert_array_equal(plain.values, values[None])
