"""The placement of an image in the square or cube that the model sees."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image


@dataclass(frozen=True)
class Letterbox:
    """Place a whole image in a square or cube of side ``size``: resized, centred, and padded with zeros.

    The image keeps its proportions, in millimetres if the spacing is known, else in pixels.
    """

    shape: tuple[int, ...]  # shape of the image: (H, W) or (D, H, W)
    size: int
    spacing: tuple[float, ...] | None = None  # mm along its axes

    @cached_property
    def inner(self) -> tuple[int, ...]:
        """Return the shape of the resized image within the square or cube."""
        steps = self.spacing or (1.0,) * len(self.shape)
        extents = [side * (step / min(steps)) for side, step in zip(self.shape, steps, strict=True)]
        longest = max(extents)
        return tuple(max(round(extent / longest * self.size), 1) for extent in extents)

    @cached_property
    def offset(self) -> tuple[int, ...]:
        """Return the corner of the resized image within the square or cube."""
        return tuple(round((self.size - side) * 0.5) for side in self.inner)

    @property
    def scale(self) -> np.ndarray:
        """Return the model's pixels per pixel of the image, along every axis."""
        return np.divide(self.inner, self.shape)

    def place(self, array: np.ndarray, *, nearest: bool = False) -> np.ndarray:
        """Return an array of the image's shape, resized and padded; ``nearest``: without interpolation."""
        if len(self.shape) == 2:
            return np.asarray(self.place_picture(Image.fromarray(array), nearest=nearest))
        resized = self._resize(torch.from_numpy(np.ascontiguousarray(array, np.float32))[None, None], nearest)
        padded = np.zeros((self.size,) * 3, np.float32)
        padded[tuple(slice(o, o + n) for o, n in zip(self.offset, self.inner, strict=True))] = resized[0, 0].numpy()
        if array.dtype.kind == "f":
            return padded.astype(array.dtype)
        return np.round(padded).astype(array.dtype)

    def place_picture(self, image: Image.Image, *, nearest: bool = False) -> Image.Image:
        """Return a picture of the image's shape, resized and padded as by :meth:`place`."""
        (height, width), (top, left) = self.inner, self.offset
        resized = image.resize((width, height), Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR)
        padded = Image.new(image.mode, (self.size, self.size))
        padded.paste(resized, (left, top))
        return padded

    def _resize(self, volume: torch.Tensor, nearest: bool) -> torch.Tensor:
        if nearest:
            return F.interpolate(volume, self.inner, mode="nearest-exact")
        # The mean along axes that shrink, linear interpolation along axes that grow.
        shrunk = tuple(min(pair) for pair in zip(self.inner, self.shape, strict=True))
        if shrunk != self.shape:
            volume = F.interpolate(volume, shrunk, mode="area")
        return volume if shrunk == self.inner else F.interpolate(volume, self.inner, mode="trilinear")

    def move(self, boxes: np.ndarray) -> np.ndarray:
        """Return boxes (N, 2 dims), lower corner x, y[, z] and size, in the model's pixels."""
        scale, offset = self.scale[::-1], np.asarray(self.offset[::-1], float)  # boxes begin with x, arrays end with it
        corner, size = np.split(np.asarray(boxes, float), 2, axis=1)
        return np.concatenate([corner * scale + offset, size * scale], axis=1)
