"""One image of a site, and what lies beside it: read, and brought into the square or cube that the model sees."""

from __future__ import annotations

import io
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import MtfedError
from .manifest import SiteData

LEAST = 4  # voxels along an axis of a volume in its frame, where the volume itself has more


@dataclass(frozen=True)
class Frame:
    """Where an image lies in the square or cube of side ``size``: resized as a whole, centred, zeros around it.

    Pixels are taken as squares, and voxels as cubes: a volume of thick slices comes out flat, unless it is resampled.
    """

    shape: tuple[int, ...]  # of the image: (H, W) or (D, H, W)
    size: int

    @cached_property
    def inner(self) -> tuple[int, ...]:
        """Return the image's shape within the frame."""
        longest = max(self.shape)
        return tuple(max(round(side / longest * self.size), 1) for side in self.shape)

    @cached_property
    def offset(self) -> tuple[int, ...]:
        """Return where the image begins within the frame."""
        return tuple(round((self.size - side) * 0.5) for side in self.inner)

    @property
    def scale(self) -> np.ndarray:
        """Return pixels of the frame per pixel of the image, along every axis."""
        return np.divide(self.inner, self.shape)

    def place(self, array: np.ndarray, *, nearest: bool = False) -> np.ndarray:
        """Return an array of the image's shape, resized into the frame: smoothly, or by the nearest neighbour."""
        if len(self.shape) == 2:
            method = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
            return np.asarray(ImageOps.pad(Image.fromarray(array), (self.size, self.size), method))
        kept = torch.from_numpy(np.ascontiguousarray(array, np.float32))[None, None]
        shrinks = self.size < max(self.shape)
        mode = "nearest-exact" if nearest else "area" if shrinks else "trilinear"
        small = F.interpolate(kept, self.inner, mode=mode)[0, 0].numpy()
        framed = np.zeros((self.size,) * 3, np.float32)
        framed[tuple(slice(o, o + n) for o, n in zip(self.offset, self.inner, strict=True))] = small
        if array.dtype.kind == "f":
            return framed.astype(array.dtype)
        return np.round(framed).astype(array.dtype)

    def move(self, boxes: np.ndarray) -> np.ndarray:
        """Return boxes (N, 2 dims), lower corner x, y[, z] and size, in the pixels of the frame."""
        scale, offset = self.scale[::-1], np.asarray(self.offset[::-1], float)  # boxes begin with x, arrays end with it
        corner, size = np.split(np.asarray(boxes, float), 2, axis=1)
        return np.concatenate([corner * scale + offset, size * scale], axis=1)


class Source:
    """An image of a site; labels of it are read through this, so that they come to lie where it does.

    Args:
        data: the site's.
        image: path of the image within the site's folder.
        size: side of the square or cube that the model sees.
        dimensions: 2 or 3.
    """

    def __init__(self, data: SiteData, image: str, size: int, dimensions: int = 2) -> None:
        self.data = data
        self.image = image
        self.dimensions = dimensions
        self._size = size
        self._kept: dict[str, dict[str, np.ndarray]] = {}

    @property
    def where(self) -> str:
        """Say for errors which image of which site this is."""
        return f"{self.image} of site {self.data.key}"

    @cached_property
    def frame(self) -> Frame:
        """Return where the image lies in what the model sees."""
        if self.dimensions == 2:
            return Frame(self._picture.size[::-1], self._size)
        frame = Frame(self._volume.shape, self._size)
        if any(inner < LEAST < side for inner, side in zip(frame.inner, frame.shape, strict=True)):
            raise MtfedError(
                f"Image {self.where} has {_times(frame.shape)} voxels, of which the model would see but "
                f"{_times(frame.inner)}; resample it to even voxels first."
            )
        return frame

    def pixels(self, channels: int) -> np.ndarray:
        """Return the image as (C, S, S) or (C, S, S, S) uint8."""
        if self.dimensions == 3:
            return np.repeat(self.frame.place(self._volume)[None], channels, axis=0)
        image = self._picture.convert("L" if channels == 1 else "RGB")
        array = np.asarray(ImageOps.pad(image, (self._size, self._size), Image.Resampling.BILINEAR))
        return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))

    @cached_property
    def _picture(self) -> Image.Image:
        """Return the image of two dimensions, of 8 bits."""
        if not self.image.endswith((".npy", ".npz")):
            image = self._open(self.image, "image")
            # Of 16 or more bits, which Pillow's conversion would cut off at 255.
            return Image.fromarray(self._eight_bit(np.asarray(image))) if image.mode[0] in "IF" else image
        array = self.array(self.image, "image")
        if array.ndim != 2 and (array.ndim != 3 or array.shape[2] != 3):
            raise MtfedError(
                f"Image {self.where} should have the axes (H, W) or (H, W, 3), its shape is {list(array.shape)}."
            )
        return Image.fromarray(self._eight_bit(array))

    @cached_property
    def _volume(self) -> np.ndarray:
        """Return the image of three dimensions, of 8 bits."""
        array = self.array(self.image, "image")
        if array.ndim != 3:
            raise MtfedError(f"Image {self.where} should have 3 axes, its shape is {list(array.shape)}.")
        return self._eight_bit(array)

    def _eight_bit(self, values: np.ndarray) -> np.ndarray:
        """Return the image's values, of other than 8 bits scaled to their own range."""
        if values.dtype == np.uint8:
            return values
        values = values.astype(np.float64)
        if strange := values.size - np.count_nonzero(np.isfinite(values)):
            raise MtfedError(
                f"Image {self.where} should hold finite numbers, {strange} of its {values.size} values are NaN or "
                "infinite; replace them, as by its lowest."
            )
        low, high = values.min(), values.max()
        return np.round((values - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)

    def fit(self, array: np.ndarray, what: str, *, nearest: bool) -> np.ndarray:
        """Return an array that lies over the image, in the frame; refuse one of another shape."""
        if array.shape == self.frame.shape:
            return self.frame.place(array, nearest=nearest)
        expected, found = self.frame.shape, array.shape
        if self.dimensions == 2:  # pictures are told by their width first, volumes as arrays have them
            expected, found = expected[::-1], found[::-1]
        raise MtfedError(
            f"{what[0].upper()}{what[1:]} of site {self.data.key} should be {_times(expected)} "
            f"{'pixels' if self.dimensions == 2 else 'voxels'}, as its image {self.image} is; it is {_times(found)}: "
            "resample it to the image."
        )

    def array(self, name: str, what: str) -> np.ndarray:
        """Return the numbers of a picture, of an ``.npy`` file, or of the array called ``what`` in an ``.npz`` file."""
        array = self._array(name, what)
        if array.dtype.kind not in "buif" or not array.size:
            raise MtfedError(
                f"{what.capitalize()} {name} of site {self.data.key} should be an array of numbers; it has type "
                f"{array.dtype} and shape {list(array.shape)}."
            )
        return array

    def arrays(self, name: str, what: str) -> dict[str, np.ndarray]:
        """Return the arrays of an ``.npz`` file by name; one that holds image and labels alike is read once."""
        if name not in self._kept:
            content = self.data.read(name, what)
            with self._reading(name, what), np.load(io.BytesIO(content), allow_pickle=False) as file:
                self._kept[name] = dict(file)
        return self._kept[name]

    def _array(self, name: str, what: str) -> np.ndarray:
        if name.endswith(".npz"):
            arrays = self.arrays(name, what)
            if what not in arrays:
                raise MtfedError(
                    f"Expected an array {what!r} in {name} of site {self.data.key}, found "
                    f"{', '.join(arrays) or 'none'}."
                )
            return arrays[what]
        if name.endswith(".npy"):
            content = self.data.read(name, what)
            with self._reading(name, what):
                return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        if self.dimensions == 3:
            raise MtfedError(
                f"Expected {what} {name} of site {self.data.key} to be an .npz or .npy file: a volume; save the array "
                f"with numpy.savez({what}=...)."
            )
        return np.asarray(self._open(name, what))

    def _open(self, name: str, what: str) -> Image.Image:
        content = self.data.read(name, what)
        with self._reading(name, what):
            image = Image.open(io.BytesIO(content))
            image.load()
            with suppress(Exception):  # a broken EXIF block turns nothing
                ImageOps.exif_transpose(image, in_place=True)  # as viewers show it, and boxes are drawn
            return image

    def _reading(self, name: str, what: str) -> _Reading:
        return _Reading(name, f"{what} {name} of site {self.data.key}")


class _Reading:
    """Say of any failure to decode which file it was."""

    def __init__(self, name: str, what: str) -> None:
        self.name = name
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception):  # which are of as many kinds as there are ways to be broken
            return
        if self.name.endswith((".npy", ".npz")):
            # In our own words: numpy's advice would be to run what the file holds.
            reason = "it is broken, or holds something else than arrays of numbers; mend or remove it"
        elif isinstance(error, UnidentifiedImageError):
            reason = "it is no picture that can be read; mend it, or save it as .png or .npz"
        else:
            reason = f"{str(error).rstrip('.') or 'it is broken'}; mend or remove it"
        raise MtfedError(f"Cannot read {self.what}: {reason}.") from error


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
