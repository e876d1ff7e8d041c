"""One image of a site, and what lies beside it: read, and brought into the square or cube that the model sees."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from ..errors import MtfedError
from .manifest import SiteData

UNREADABLE = (OSError, KeyError, SyntaxError, ValueError, EOFError, zipfile.BadZipFile, Image.DecompressionBombError)


@dataclass(frozen=True)
class Frame:
    """Where an image lies in the square or cube of side ``size``: resized as a whole, centred, zeros around it."""

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
        shape = self._shape() if self.dimensions == 2 else self.array(self.image, "image").shape
        if len(shape) != self.dimensions:
            raise MtfedError(f"Image {self.where} should have {self.dimensions} axes, its shape is {list(shape)}.")
        return Frame(shape, self._size)

    def pixels(self, channels: int) -> np.ndarray:
        """Return the image as (C, S, S) or (C, S, S, S) uint8."""
        if self.dimensions == 3:
            values = _eight_bit(self.array(self.image, "image"))
            return np.repeat(self.frame.place(values)[None], channels, axis=0)
        image = self._open(self.image, "image")
        if image.mode[0] in "IF":  # of 16 or more bits, which Pillow's conversion would cut off at 255
            image = Image.fromarray(_eight_bit(np.asarray(image)))
        image = image.convert("L" if channels == 1 else "RGB")
        array = np.asarray(ImageOps.pad(image, (self._size, self._size), Image.Resampling.BILINEAR))
        return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))

    def fit(self, array: np.ndarray, name: str, *, nearest: bool) -> np.ndarray:
        """Return an array that lies over the image, in the frame; refuse one of another shape."""
        if array.shape != self.frame.shape:
            expected, found = (" x ".join(map(str, shape[::-1])) for shape in (self.frame.shape, array.shape))
            raise MtfedError(
                f"Mask {name} of site {self.data.key} should be {expected} pixels, as its image {self.image} is; "
                f"it is {found}."
            )
        return self.frame.place(array, nearest=nearest)

    def array(self, name: str, what: str) -> np.ndarray:
        """Return a picture, an ``.npy`` file, or the array called ``what`` of an ``.npz`` file."""
        if name.endswith(".npz"):
            arrays = self.arrays(name, what)
            if what not in arrays:
                raise MtfedError(
                    f"Expected an array {what!r} in {name} of site {self.data.key}, found "
                    f"{', '.join(arrays) or 'none'}."
                )
            return arrays[what]
        if name.endswith(".npy"):
            with self._reading(name, what):
                return np.load(io.BytesIO(self.data.root.read(name)), allow_pickle=False)
        if self.dimensions == 3:
            raise MtfedError(f"Expected {what} {name} of site {self.data.key} to be an .npz or .npy file: a volume.")
        return np.asarray(self._open(name, what))

    def arrays(self, name: str, what: str) -> dict[str, np.ndarray]:
        """Return the arrays of an ``.npz`` file by name; one that holds image and labels alike is read once."""
        if name not in self._kept:
            with self._reading(name, what), np.load(io.BytesIO(self.data.root.read(name)), allow_pickle=False) as file:
                self._kept[name] = dict(file)
        return self._kept[name]

    def _open(self, name: str, what: str) -> Image.Image:
        with self._reading(name, what):
            if name.endswith((".npy", ".npz")):
                return Image.fromarray(self.array(name, what))
            image = Image.open(io.BytesIO(self.data.root.read(name)))
            image.load()
            return image

    def _shape(self) -> tuple[int, ...]:
        with self._reading(self.image, "image"):
            if self.image.endswith((".npy", ".npz")):
                return self.array(self.image, "image").shape[:2]
            return Image.open(io.BytesIO(self.data.root.read(self.image))).size[::-1]  # read without decoding

    def _reading(self, name: str, what: str) -> _Reading:
        return _Reading(f"{what} {name} of site {self.data.key}")


class _Reading:
    """Say of any failure to read which file it was."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UNREADABLE) and not isinstance(error, MtfedError):
            raise MtfedError(f"Cannot read {self.what}: {error}; mend or remove it.") from error


def _eight_bit(values: np.ndarray) -> np.ndarray:
    """Return values of other than 8 bits scaled to their own range."""
    if values.dtype == np.uint8:
        return values
    values = values.astype(np.float64)
    low, high = values.min(), values.max()
    return np.round((values - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
