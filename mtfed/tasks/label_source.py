"""What a task kind asks of an image to read its labels; :class:`mtfed.data.source.Source` provides it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import numpy as np


class Letterbox(Protocol):
    """Where an image is placed in the square or cube that the model sees."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the original image, (H, W) or (D, H, W)."""

    @property
    def scale(self) -> np.ndarray:
        """Return the model's pixels per pixel of the image, along every axis."""

    def move(self, boxes: np.ndarray) -> np.ndarray:
        """Return boxes (N, 2d), corner and size with x first, in the model's pixels."""


class LabelSource(Protocol):
    """An image of a site and the files in its folder."""

    dimensions: int

    @property
    def site(self) -> str:
        """Return the site's key, for errors."""

    @property
    def where(self) -> str:
        """Return the image and its site, for errors."""

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Return millimetres along the image's axes, if its file contains them."""

    @property
    def letterbox(self) -> Letterbox:
        """Return where the image is placed in what the model sees."""

    def container(self, name: str) -> Literal["archive", "folder", ""]:
        """Return whether a path names an archive of arrays or a folder of files, "" if a single file."""

    def array(self, name: str, what: str) -> np.ndarray:
        """Return the values of a picture or volume in a file."""

    def arrays(self, name: str, what: str) -> Mapping[str, np.ndarray]:
        """Return the arrays of an archive or a folder by name."""

    def fit(self, array: np.ndarray, what: str, *, nearest: bool) -> np.ndarray:
        """Return an array over the image in the model's pixels; LabelError if it has another shape."""
