"""Images, masks, boxes and volumes come to lie alike in what the model sees, and what cannot be read is named."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtfed.data.manifest import Root, SiteData
from mtfed.data.source import Frame, Source
from mtfed.errors import MtfedError

RNG = np.random.default_rng(0)


def folder(path: Path, **files: object) -> SiteData:
    """Write files, named with an underscore for the dot, and return them as a site's."""
    for name, content in files.items():
        target = path / name.replace("_", ".")
        if isinstance(content, bytes):
            target.write_bytes(content)
        elif isinstance(content, dict):
            np.savez(target, **content)
        elif target.suffix == ".npy":
            np.save(target, content)
        else:
            Image.fromarray(content).save(target)
    return SiteData("site", Root(path), ())


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (10, 20), (33, 47), (100, 100)])
def test_boxes_move_with_the_picture(shape: tuple[int, int]) -> None:
    frame = Frame(shape, 64)
    top, left, height, width = shape[0] // 4, shape[1] // 5, shape[0] // 2, shape[1] // 2
    picture = np.zeros(shape, np.uint8)
    picture[top : top + height, left : left + width] = 255
    ((x, y, w, h),) = frame.move(np.array([[left, top, width, height]]))
    seen = np.argwhere(frame.place(picture) > 127)
    assert np.abs(seen.min(0) - (y, x)).max() <= 1
    assert np.abs(seen.max(0) + 1 - (y + h, x + w)).max() <= 1


@pytest.mark.parametrize(("shape", "size"), [((20, 32, 24), 16), ((8, 6, 8), 16), ((16, 16, 16), 16)])
def test_boxes_move_with_the_volume(shape: tuple[int, int, int], size: int) -> None:
    frame = Frame(shape, size)
    low = np.array(shape) // 4
    sides = np.array(shape) // 2
    volume = np.zeros(shape, np.uint8)
    volume[tuple(slice(a, a + n) for a, n in zip(low, sides, strict=True))] = 1
    placed = frame.place(volume, nearest=True)
    assert placed.shape == (size,) * 3 and placed.dtype == np.uint8
    box = frame.move(np.array([[*low[::-1], *sides[::-1]]]))[0]
    seen = np.argwhere(placed)
    assert np.abs(seen.min(0) - box[2::-1]).max() <= 1
    assert np.abs(seen.max(0) + 1 - (box[:3] + box[3:])[::-1]).max() <= 1


def test_a_volume_is_shrunk_by_the_mean_and_an_even_one_is_kept() -> None:
    volume = RNG.normal(size=(8, 8, 8)).astype(np.float32)
    blocks = volume.reshape(4, 2, 4, 2, 4, 2).mean((1, 3, 5))
    np.testing.assert_allclose(Frame(volume.shape, 4).place(volume), blocks, atol=1e-6)
    np.testing.assert_array_equal(Frame(volume.shape, 8).place(volume), volume)


def test_pictures_of_every_kind_give_the_same_pixels(tmp_path: Path) -> None:
    grey = RNG.integers(0, 255, (16, 16), dtype=np.uint8)
    data = folder(tmp_path, a_png=grey, a_npy=grey, a_npz={"image": grey}, b_png=np.repeat(grey[..., None], 3, 2))
    for name in ("a.png", "a.npy", "a.npz", "b.png"):
        np.testing.assert_array_equal(Source(data, name, 16).pixels(1)[0], grey)
    assert Source(data, "a.png", 16).pixels(3).shape == (3, 16, 16)


def test_sixteen_bits_are_scaled_to_their_own_range(tmp_path: Path) -> None:
    deep = np.arange(256, dtype=np.uint16).reshape(16, 16) * 100 + 5000
    data = folder(tmp_path, a_png=deep, v_npz={"image": np.stack([deep] * 16)})
    np.testing.assert_array_equal(Source(data, "a.png", 16).pixels(1)[0], np.arange(256).reshape(16, 16))
    np.testing.assert_array_equal(Source(data, "v.npz", 16, 3).pixels(1)[0, 3], np.arange(256).reshape(16, 16))


BUFFER = io.BytesIO()
np.savez(BUFFER, image=np.zeros((4, 4), np.uint8))
BAD = [
    ("x.png", 2, b"not a picture", "Cannot read image x.png of site site"),
    ("x.png", 2, b"", "Cannot read image x.png of site site"),
    ("x.npz", 2, BUFFER.getvalue()[:60], "Cannot read image x.npz of site site"),
    ("x.npz", 2, {"other": np.zeros((4, 4))}, r"Expected an array 'image' in x.npz of site site, found other."),
    ("x.npz", 2, {"image": np.array([{"code": "any"}], object)}, "Cannot read image x.npz of site site"),
    ("x.npz", 3, {"image": np.zeros((4, 4))}, r"x.npz of site site should have 3 axes, its shape is \[4, 4\]"),
    ("x.png", 3, np.zeros((4, 4), np.uint8), "x.png of site site to be an .npz or .npy file: a volume"),
    ("../x.npy", 2, None, "Expected a path inside"),
    ("y.png", 2, None, "Cannot read image y.png of site site"),
]


@pytest.mark.parametrize(("name", "dimensions", "content", "message"), BAD)
def test_what_cannot_be_read_is_named(
    name: str, dimensions: int, content: object, message: str, tmp_path: Path
) -> None:
    data = folder(tmp_path, **({} if content is None else {name.replace(".", "_"): content}))
    with pytest.raises(MtfedError, match=message):
        Source(data, name, 16, dimensions).pixels(1)


def test_a_mask_must_fit_its_image(tmp_path: Path) -> None:
    data = folder(tmp_path, a_png=np.zeros((10, 20), np.uint8), m_png=np.zeros((20, 20), np.uint8))
    with pytest.raises(MtfedError, match=r"Mask m.png of site site should be 20 x 10 pixels, as its image"):
        source = Source(data, "a.png", 16)
        source.fit(source.array("m.png", "mask"), "m.png", nearest=True)
