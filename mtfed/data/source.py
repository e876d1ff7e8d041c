"""One image of a site, and what lies beside it: read, and brought into the square or cube that the model sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..errors import LabelError, MtfedError
from .formats import Picture, file_of, format_of, read_picture, split_slice
from .formats.arrays import Npz
from .formats.folder import Folder
from .formats.source_file import SourceFile
from .manifest import SiteData

LEAST = 4  # voxels along an axis of a volume in its frame, where the volume itself has more
PART = 2**22  # values that are scaled at once
Proportions = Literal["millimetres", "pixels"]
MAX_AWAY = 0.1  # voxels by which a label may lie away from its image


@dataclass(frozen=True)
class Letterbox:
    """Where an image lies in the square or cube of side ``size``: resized as a whole, centred, zeros around it.

    It keeps its true proportions: millimetres count, or where they are unknown, pixels as squares and voxels as cubes.
    """

    shape: tuple[int, ...]  # of the image: (H, W) or (D, H, W)
    size: int
    spacing: tuple[float, ...] | None = None  # mm along its axes

    @cached_property
    def inner(self) -> tuple[int, ...]:
        """Return the image's shape within the frame."""
        steps = self.spacing or (1.0,) * len(self.shape)
        extents = [side * (step / min(steps)) for side, step in zip(self.shape, steps, strict=True)]
        longest = max(extents)
        return tuple(max(round(extent / longest * self.size), 1) for extent in extents)

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
            return np.asarray(self.place_picture(Image.fromarray(array), nearest=nearest))
        small = self._resize(torch.from_numpy(np.ascontiguousarray(array, np.float32))[None, None], nearest)
        framed = np.zeros((self.size,) * 3, np.float32)
        framed[tuple(slice(o, o + n) for o, n in zip(self.offset, self.inner, strict=True))] = small[0, 0].numpy()
        if array.dtype.kind == "f":
            return framed.astype(array.dtype)
        return np.round(framed).astype(array.dtype)

    def place_picture(self, image: Image.Image, *, nearest: bool = False) -> Image.Image:
        """Return a picture of the image's shape as :meth:`place` does."""
        (height, width), (top, left) = self.inner, self.offset
        small = image.resize((width, height), Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR)
        framed = Image.new(image.mode, (self.size, self.size))
        framed.paste(small, (left, top))
        return framed

    def _resize(self, volume: torch.Tensor, nearest: bool) -> torch.Tensor:
        if nearest:
            return F.interpolate(volume, self.inner, mode="nearest-exact")
        # The mean along the axes that shrink, and a line between voxels along those that grow.
        shrunk = tuple(min(pair) for pair in zip(self.inner, self.shape, strict=True))
        if shrunk != self.shape:
            volume = F.interpolate(volume, shrunk, mode="area")
        return volume if shrunk == self.inner else F.interpolate(volume, self.inner, mode="trilinear")

    def move(self, boxes: np.ndarray) -> np.ndarray:
        """Return boxes (N, 2 dims), lower corner x, y[, z] and size, in the pixels of the frame."""
        scale, offset = self.scale[::-1], np.asarray(self.offset[::-1], float)  # boxes begin with x, arrays end with it
        corner, size = np.split(np.asarray(boxes, float), 2, axis=1)
        return np.concatenate([corner * scale + offset, size * scale], axis=1)


class Source:
    """An image of a site; labels of it are read through this, so that they come to lie where it does.

    Args:
        data: the site's.
        image: path of the image within the site's folder, or another name of :mod:`.formats`.
        size: side of the square or cube that the model sees.
        dimensions: 2 or 3.
        window: low and high end of what is seen of images of more than 8 bits; by default what the file asks for,
            else from its lowest value to its highest.
        proportions: of the image in its frame: as it is in ``millimetres``, where its file says so, or in ``pixels``.
    """

    def __init__(
        self,
        data: SiteData,
        image: str,
        size: int,
        dimensions: int = 2,
        window: tuple[float, float] | None = None,
        proportions: Proportions = "millimetres",
    ) -> None:
        self.data = data
        self.image = image
        self.dimensions = dimensions
        self._size = size
        self._window = window
        self._proportions = proportions
        self._kept: dict[str, Mapping[str, np.ndarray]] = {}

    @property
    def site(self) -> str:
        """Return the site's key."""
        return self.data.key

    @property
    def where(self) -> str:
        """Return the image and its site, for errors."""
        return f"{self.image} of site {self.site}"

    @staticmethod
    def container(name: str) -> Literal["archive", "folder", ""]:
        """Return whether a label's path names an archive of arrays (``.npz``) or a folder, "" if a single file."""
        format = format_of(name)
        return "folder" if format is None else "archive" if format.is_archive else ""

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Return millimetres along the image's axes, where its file says."""
        return self._picture.spacing

    @cached_property
    def letterbox(self) -> Letterbox:
        """Return where the image lies in what the model sees."""
        spacing = self.spacing if self._proportions == "millimetres" else None
        letterbox = Letterbox(self._picture.values.shape[: self.dimensions], self._size, spacing)
        sides = zip(letterbox.inner, letterbox.shape, strict=True)
        if self.dimensions == 3 and any(inner < LEAST < side for inner, side in sides):
            advice = "crop it, or raise image-size" if spacing else "resample it to even voxels first"
            if not self.spacing and self.image.endswith(".npz"):
                advice += ", or say how large they are in an array 'spacing' beside it"
            raise MtfedError(
                f"Image {self.where} has {_times(letterbox.shape)} voxels, of which the model would see but "
                f"{_times(letterbox.inner)}; {advice}."
            )
        return letterbox

    def pixels(self, channels: int) -> np.ndarray:
        """Return the image as (C, S, S) or (C, S, S, S) uint8."""
        values = self._picture.values
        if self.dimensions == 3:
            return np.repeat(self.letterbox.place(values)[None], channels, axis=0)
        image = Image.fromarray(values).convert("L" if channels == 1 else "RGB")
        array = np.asarray(self.letterbox.place_picture(image))
        return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))

    @cached_property
    def _picture(self) -> Picture:
        """Return the image, of 8 bits."""
        picture = self.read(self.image, "image")
        return replace(picture, values=np.ascontiguousarray(self._eight_bit(picture)))

    def _eight_bit(self, picture: Picture) -> np.ndarray:
        """Return the image's values, of other than 8 bits scaled to the window, or else to their own range."""
        values = picture.values
        if values.dtype == np.uint8:
            return values
        # A part at a time, as double precision takes eight times the memory.
        parts = [slice(i, i + step) for step in [max(PART * len(values) // values.size, 1)]
                 for i in range(0, len(values), step)]  # fmt: skip
        ends = np.array([(values[part].min(), values[part].max()) for part in parts], np.float64)
        if not np.isfinite(ends).all():
            strange = values.size - sum(np.count_nonzero(np.isfinite(values[part])) for part in parts)
            raise MtfedError(
                f"Image {self.where} should hold finite numbers, {strange} of its {values.size} values are NaN or "
                "infinite; replace them, as by its lowest."
            )
        low, high = ends.min(), ends.max()
        if values.dtype.itemsize > 1:
            low, high = self._window or picture.window or (low, high)
        eight = np.empty(values.shape, np.uint8)
        for part in parts:
            seen = values[part].astype(np.float64).clip(low, high)
            eight[part] = np.round((seen - low) * (255 / max(high - low, 1e-9)))
        return eight

    def fit(self, array: np.ndarray, what: str, *, nearest: bool) -> np.ndarray:
        """Return an array that lies over the image, in the frame; refuse one of another shape."""
        if array.shape == self.letterbox.shape:
            return self.letterbox.place(array, nearest=nearest)
        expected, found = self.letterbox.shape, array.shape
        if self.dimensions == 2:  # pictures are told by their width first, volumes as arrays have them
            expected, found = expected[::-1], found[::-1]
        raise LabelError(
            f"{what[0].upper()}{what[1:]} of site {self.data.key} should be {_times(expected)} "
            f"{'pixels' if self.dimensions == 2 else 'voxels'}, as its image {self.image} is; it is {_times(found)}: "
            "resample it to the image.",
            "misfit",
        )

    def array(self, name: str, what: str) -> np.ndarray:
        """Return the numbers of a label: of a picture or volume, or of the array called ``what`` in an ``.npz`` file.

        Raises:
            MtfedError: naming the file, if it cannot be read, or lies elsewhere than the image.
        """
        picture = self.read(name, what)
        if name != self.image:
            self._check_place(picture, name, what)
        return picture.values

    def arrays(self, name: str, what: str) -> Mapping[str, np.ndarray]:
        """Return arrays by name, of an ``.npz`` or of a folder, in which each file is one, and its stem its name.

        Each is read when it is first asked for, and the file of one that holds image and labels alike is read once.
        """
        if name not in self._kept:
            if self.container(name) == "archive":
                self._kept[name] = Npz(SourceFile(self.data, name, what))
            else:
                self._kept[name] = Folder(self.data, name, what, self.array)
        return self._kept[name]

    def read(self, name: str, what: str) -> Picture:
        opened = self.arrays(name, what) if self.container(name) == "archive" else None
        return read_picture(self.data, name, what, self.dimensions, opened)

    def _check_place(self, label: Picture, name: str, what: str) -> None:
        """Refuse a label that says that it lies elsewhere than its image; of another shape, it is refused anyway."""
        ours, theirs, shape = self._picture.affine, label.affine, self.letterbox.shape
        if ours is None or theirs is None or label.values.shape != shape:
            return
        unplaced = [(name, of.unplaced) for name, of in ((self.image, self._picture), (name, label)) if of.unplaced]
        if len(unplaced) == 2 and split_slice(self.image)[1] == split_slice(name)[1]:
            return
        sides = (*shape[::-1], 1)[:3]  # x, y, z; of a picture, one plane
        corners = np.array([[*corner, 1.0] for corner in product(*((0, side - 1) for side in sides))])
        away = (theirs - ours) @ corners.T
        voxels = np.linalg.solve(ours, np.vstack([away[:3], np.zeros((1, len(corners)))]))
        if abs(voxels).max() > MAX_AWAY:
            if len(unplaced) == 1:
                ((nowhere, reason),) = unplaced
                raise LabelError(
                    f"Expected {what} {name} of site {self.data.key} to lie over its image {self.image}, but "
                    f"{file_of(nowhere)} does not say how it lies, {reason}; set them so that it lies as "
                    f"{file_of(self.image if nowhere == name else name)} does.",
                    "misfit",
                )
            raise LabelError(
                f"{what[:1].upper()}{what[1:]} {name} of site {self.data.key} lies up to "
                f"{np.linalg.norm(away[:3], axis=0).max():.3g} mm away from its image {self.image}; resample it to the "
                "image, or name the one that belongs to it.",
                "misfit",
            )


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
