"""Images, masks, boxes and volumes stay aligned in what the model sees, and errors name what cannot be read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from mtfed.data.letterbox import Letterbox
from mtfed.data.manifest import SiteData
from mtfed.data.root import Root
from mtfed.data.source import Source
from mtfed.errors import MtfedError

RNG = np.random.default_rng(0)


def folder(path: Path, **files: object) -> SiteData:
    """Write files, whose names have an underscore instead of the dot, and return a site with them."""
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
    letterbox = Letterbox(shape, 64)
    top, left, height, width = shape[0] // 4, shape[1] // 5, shape[0] // 2, shape[1] // 2
    picture = np.zeros(shape, np.uint8)
    picture[top : top + height, left : left + width] = 255
    ((x, y, w, h),) = letterbox.move(np.array([[left, top, width, height]]))
    seen = np.argwhere(letterbox.place(picture) > 127)
    assert np.abs(seen.min(0) - (y, x)).max() <= 1
    assert np.abs(seen.max(0) + 1 - (y + h, x + w)).max() <= 1


@pytest.mark.parametrize(("shape", "size"), [((20, 32, 24), 16), ((8, 6, 8), 16), ((16, 16, 16), 16)])
def test_boxes_move_with_the_volume(shape: tuple[int, int, int], size: int) -> None:
    letterbox = Letterbox(shape, size)
    low = np.array(shape) // 4
    sides = np.array(shape) // 2
    volume = np.zeros(shape, np.uint8)
    volume[tuple(slice(a, a + n) for a, n in zip(low, sides, strict=True))] = 1
    placed = letterbox.place(volume, nearest=True)
    assert placed.shape == (size,) * 3 and placed.dtype == np.uint8
    box = letterbox.move(np.array([[*low[::-1], *sides[::-1]]]))[0]
    seen = np.argwhere(placed)
    assert np.abs(seen.min(0) - box[2::-1]).max() <= 1
    assert np.abs(seen.max(0) + 1 - (box[:3] + box[3:])[::-1]).max() <= 1


INNER = [  # shape, spacing, shape within a letterbox of 64
    ((30, 512, 512), (5, 0.7, 0.7), (27, 64, 64)),
    ((8, 512, 512), (10, 0.7, 0.7), (14, 64, 64)),
    ((100, 10, 10), (0.1, 1, 1), (64, 64, 64)),
    ((40, 64, 20), (3, 3, 3), (40, 64, 20)),
    ((64, 32), (1, 2), (64, 64)),
    ((100, 50), (0.5, 0.25), (64, 16)),
    ((33, 47), (0.3, 0.3), (45, 64)),
]


@pytest.mark.parametrize(("shape", "spacing", "inner"), INNER)
def test_a_letterbox_keeps_proportions_in_millimetres(
    shape: tuple[int, ...], spacing: tuple[float, ...], inner: tuple[int, ...]
) -> None:
    letterbox = Letterbox(shape, 64, spacing)
    assert letterbox.inner == inner
    low, sides = np.array(shape) // 4, np.array(shape) // 2
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(a, a + n) for a, n in zip(low, sides, strict=True))] = 255
    corner, size = np.split(letterbox.move(np.array([[*low[::-1], *sides[::-1]]]))[0][::-1].reshape(2, -1)[::-1], 2)
    for nearest in (True, False):
        seen = np.argwhere(letterbox.place(mask, nearest=nearest) > 127)
        assert np.abs(seen.min(0) - corner).max() <= 1
        assert np.abs(seen.max(0) + 1 - corner - size).max() <= 1


@pytest.mark.parametrize("shape", [(40, 64), (33, 47), (20, 32, 24), (9, 7, 11)])
def test_even_spacing_equals_unknown_spacing(shape: tuple[int, ...]) -> None:
    array = RNG.integers(0, 255, shape, dtype=np.uint8)
    for spacing in (0.1, 0.7, 3.0):
        placed = Letterbox(shape, 16, (spacing,) * len(shape)).place(array)
        np.testing.assert_array_equal(placed, Letterbox(shape, 16).place(array))


def test_thick_slices_keep_their_proportions(tmp_path: Path) -> None:
    """A ball in thick slices is seen as a ball."""
    z, y, x = np.meshgrid((np.arange(12) - 5.5) * 8, np.arange(96) - 47.5, np.arange(96) - 47.5, indexing="ij")
    ball = (z**2 + y**2 + x**2 < 40**2).astype(np.uint8) * 200
    data = folder(tmp_path, v_npz={"image": ball, "mask": ball // 200, "spacing": [8, 1, 1]})
    source = Source(data, "v.npz", 32, 3)
    seen = source.pixels(1)[0] > 100
    mask = source.fit(source.array("v.npz", "mask"), "mask", nearest=True)
    for content in (seen, mask > 0):
        sides = np.ptp(np.argwhere(content), axis=0) + 1
        assert abs(sides - 80 / 3).max() <= 2.5
    assert source.spacing == (8, 1, 1)


WINDOWS = [  # dtype, window, values of a ramp from 0 to 100 at 0, 25, 50, 75, 100
    (np.int16, (25, 75), [0, 0, 128, 255, 255]),
    (np.float32, (0, 200), [0, 32, 64, 96, 128]),
    (np.int16, None, [0, 64, 128, 191, 255]),
    (np.uint8, (25, 75), [0, 25, 50, 75, 100]),
]


@pytest.mark.parametrize(("dtype", "window", "seen"), WINDOWS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_windows_apply_to_images_of_more_than_8_bits(
    dtype: type, window: tuple[float, float] | None, seen: list[int], dimensions: int, tmp_path: Path
) -> None:
    ramp: np.ndarray = np.zeros((5,) * dimensions, dtype) + np.arange(0, 101, 25, dtype=dtype)
    data = folder(tmp_path, a_npy=ramp)
    pixels = Source(data, "a.npy", 5, dimensions, window).pixels(1)[0]
    assert abs(pixels.reshape(-1, 5)[0].astype(int) - seen).max() <= 1


def test_volumes_are_shrunk_by_the_mean() -> None:
    volume = RNG.normal(size=(8, 8, 8)).astype(np.float32)
    blocks = volume.reshape(4, 2, 4, 2, 4, 2).mean((1, 3, 5))
    np.testing.assert_allclose(Letterbox(volume.shape, 4).place(volume), blocks, atol=1e-6)
    np.testing.assert_array_equal(Letterbox(volume.shape, 8).place(volume), volume)


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


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint16, np.int64, np.uint64, np.float16, np.float64])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_arrays_of_any_numbers_are_read(dtype: type, dimensions: int, tmp_path: Path) -> None:
    array = RNG.integers(0, 2, (16,) * dimensions)
    data = folder(tmp_path, a_npy=array.astype(dtype))
    np.testing.assert_array_equal(Source(data, "a.npy", 16, dimensions).pixels(1)[0], 255 * array)


def test_colours_of_many_bits_are_scaled_together(tmp_path: Path) -> None:
    data = folder(tmp_path, a_npy=np.arange(768).reshape(16, 16, 3))
    pixels = Source(data, "a.npy", 16).pixels(3)
    np.testing.assert_array_equal(pixels, np.round(np.arange(768) * (255 / 767)).reshape(16, 16, 3).transpose(2, 0, 1))


STORED = {  # how a camera stores a picture x, by the EXIF orientation (EXIF 2.32, 4.6.5)
    1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: np.transpose, 6: np.rot90,
    7: lambda x: np.rot90(x, 2).T, 8: lambda x: np.rot90(x, 3),
}  # fmt: skip


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(orientation: int, tmp_path: Path) -> None:
    upright = RNG.integers(0, 255, (12, 16), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](upright))
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    source = Source(SiteData("site", Root(tmp_path), ()), "a.png", 16)
    assert source.letterbox.shape == (12, 16)
    np.testing.assert_array_equal(source.pixels(1)[0, 2:14], upright)
    np.testing.assert_array_equal(source.array("a.png", "mask"), upright)


def test_a_broken_exif_orientation_is_ignored(tmp_path: Path) -> None:
    grey = RNG.integers(0, 255, (16, 16), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png", exif=b"Exif\0\0no such block")
    source = Source(SiteData("site", Root(tmp_path), ()), "a.png", 16)
    np.testing.assert_array_equal(source.pixels(1)[0], grey)


BUFFER = io.BytesIO()
np.savez(BUFFER, image=np.zeros((4, 4), np.uint8))
HOLES = np.where(np.eye(4) > 0, np.nan, 1)
FLAT = {"image": np.zeros((24, 128, 128), np.uint8)}
BAD = [
    (
        "x.png",
        2,
        b"not a picture",
        "Cannot read image x.png of site site: it cannot be read as a picture; rep",
    ),
    ("x.png", 2, b"", "Cannot read image x.png of site site"),
    ("x.nii.gz", 2, b"a volume", "Cannot read image x.nii.gz of site site: it is broken, or not a NIfTI file; rep"),
    ("x.npz", 2, BUFFER.getvalue()[:60], "x.npz of site site: it is broken, or contains something other than arrays"),
    ("x.npy", 2, BUFFER.getvalue(), "x.npy of site site: it is broken, or contains something other than arrays"),
    (
        "x.npz",
        2,
        b"\x80pickled",
        "x.npz of site site: it is broken, or contains something other than arrays of numbers",
    ),
    ("x.npz", 2, {"other": np.zeros((4, 4))}, r"Expected an array 'image' in x.npz of site site, got other."),
    ("x.npz", 2, {"image": np.array([{"code": "any"}], object)}, "Cannot read image x.npz of site site"),
    ("x.npz", 2, {"image": np.array(["a"])}, "x.npz of site site should be an array of numbers; it has type <U1 and "),
    ("x.npy", 2, np.zeros((4, 4), complex), "x.npy of site site should be an array of numbers; it has type complex128"),
    ("x.npy", 2, np.zeros((0, 4, 4)), r"should be an array of numbers; it has type float64 and shape \[0, 4, 4\]"),
    ("x.npy", 3, np.zeros((0, 4, 4)), r"should be an array of numbers; it has type float64 and shape \[0, 4, 4\]"),
    (
        "x.npy",
        2,
        HOLES,
        "x.npy of site site should contain finite numbers, 4 of its 16 values are NaN or infinite; r",
    ),
    ("x.tif", 2, HOLES.astype(np.float32), "x.tif of site site should contain finite numbers, 4 of its 16 values"),
    ("x.npy", 3, np.stack([HOLES] * 3) * np.inf, "finite numbers, 48 of its 48 values are NaN or infinite"),
    ("x.npy", 2, np.zeros((3, 8, 8)), r"x.npy of site site should have the axes \(H, W\) or \(H, W, 3\), its shape is"),
    ("x.npz", 3, {"image": np.zeros((4, 4))}, r"x.npz of site site should have 3 axes, its shape is \[4, 4\]"),
    ("x.npy", 3, np.zeros((24, 128, 128)), "has 24 x 128 x 128 voxels, of which .* only 3 x 16 x 16; resample it"),
    ("x.png", 3, np.zeros((4, 4), np.uint8), r"and the model sees volumes; .* numpy.savez\(image=...\)"),
    ("x.nii.gz", 3, b"a volume", "x.nii.gz of site site: it is broken, or not a NIfTI file; repair or remove it"),
    ("x.npz", 3, FLAT, "only 3 x 16 x 16; resample it to even voxels first, or add an array 'spacing' with the"),
    ("x.npz", 3, FLAT | {"spacing": [1, 1, 1]}, "only 3 x 16 x 16; crop it, or raise image-size"),
    ("x.npz", 3, FLAT | {"spacing": [1, 1]}, r"Spacing in x.npz of site site should be three .* it is \[1, 1\]"),
    ("x.npz", 3, FLAT | {"spacing": [1, 1, 0]}, "should be three numbers above 0, in mm along the axes"),
    ("x.npz", 2, {"image": HOLES[:3], "spacing": [1, np.nan]}, "should be two or three numbers above 0, in mm"),
    ("../x.npy", 2, None, "Expected a path inside"),
    ("y.png", 2, None, "Cannot read image y.png of site site: there is no such file; add it, or correct the manifest"),
    ("y.npz", 3, None, "Cannot read image y.npz of site site: there is no such file"),
]


@pytest.mark.parametrize(("name", "dimensions", "content", "message"), BAD)
def test_errors_name_the_file(name: str, dimensions: int, content: object, message: str, tmp_path: Path) -> None:
    data = folder(tmp_path, **({} if content is None else {name.replace(".", "_"): content}))
    with pytest.raises(MtfedError, match=message):
        Source(data, name, 16, dimensions).pixels(1)


@pytest.mark.parametrize("shape", [(4, 64, 64), (3, 20, 16), (16, 64, 64)])
def test_a_flat_volume_is_accepted(shape: tuple[int, ...], tmp_path: Path) -> None:
    data = folder(tmp_path, v_npy=np.zeros(shape, np.uint8))
    assert Source(data, "v.npy", 16, 3).pixels(1).shape == (1, 16, 16, 16)


def test_a_mask_must_fit_its_image(tmp_path: Path) -> None:
    data = folder(tmp_path, a_png=np.zeros((10, 20), np.uint8), v_npy=np.zeros((10, 20, 30)))
    with pytest.raises(MtfedError, match=r"^Mask m.png of .* 20 x 10 pixels, as its image a.png is; it is 20 x 20: "):
        Source(data, "a.png", 16).fit(np.zeros((20, 20)), "mask m.png", nearest=True)
    with pytest.raises(MtfedError, match=r"^Dose in d.npz of .* 10 x 20 x 30 voxels, .*; it is 30 x 20 x 10: resample"):
        Source(data, "v.npy", 16, 3).fit(np.zeros((30, 20, 10)), "dose in d.npz", nearest=False)


@pytest.mark.parametrize(("proportions", "inner"), [("millimetres", (20, 8, 20)), ("pixels", (20, 20, 20))])
def test_the_config_chooses_the_proportions(
    tmp_path: Path, proportions: Literal["millimetres", "pixels"], inner
) -> None:
    np.savez(tmp_path / "a.npz", image=np.zeros((10, 10, 10), np.uint8), spacing=[5.0, 2.0, 5.0])
    source = Source(SiteData("site", Root(tmp_path), ()), "a.npz", 20, 3, proportions=proportions)
    assert source.letterbox.inner == inner and source.spacing == (5.0, 2.0, 5.0)
