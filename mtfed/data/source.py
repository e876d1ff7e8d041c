"""Read an image of a site and its labels, placed in the square or cube that the model sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Literal

import numpy as np
from PIL import Image

from ..errors import LabelError, MtfedError
from .formats import Picture, file_of, format_of, read_picture, split_slice
from .formats.arrays import Npz
from .formats.folder import Folder
from .formats.source_file import SourceFile
from .letterbox import Letterbox
from .manifest import SiteData

MIN_SIDE = 4  # voxels that the model must see along every axis of a volume, if the volume has more
CHUNK = 2**22  # values that are scaled at a time
MAX_DISTANCE = 0.1  # voxels by which a label may be displaced from its image
Proportions = Literal["millimetres", "pixels"]


@dataclass(eq=False)
class Source:
    """An image of a site, through which its labels are read so that they match it."""

    data: SiteData
    image: str  # path within the site's folder, or another name as described in :mod:`.formats`
    size: int  # side of the square or cube that the model sees
    dimensions: int = 2
    # The lowest and highest value to be seen, for images of more than 8 bits. By default the window that the file
    # contains, else the image's own range.
    window: tuple[float, float] | None = None
    proportions: Proportions = "millimetres"  # unit of the kept proportions; pixels without a spacing
    _arrays: dict[str, Mapping[str, np.ndarray]] = field(default_factory=dict, init=False)

    @property
    def site(self) -> str:
        """Return the site's key."""
        return self.data.key

    @property
    def where(self) -> str:
        """Return the image and its site, for errors."""
        return f"{self.image} of site {self.site}"

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Return millimetres along the image's axes, if its file contains them."""
        return self._picture.spacing

    @cached_property
    def letterbox(self) -> Letterbox:
        """Return the placement of the image in what the model sees."""
        spacing = self.spacing if self.proportions == "millimetres" else None
        letterbox = Letterbox(self._picture.values.shape[: self.dimensions], self.size, spacing)
        sides = zip(letterbox.inner, letterbox.shape, strict=True)
        if self.dimensions == 3 and any(inner < MIN_SIDE < side for inner, side in sides):
            advice = "crop it, or raise image-size" if spacing else "resample it to even voxels first"
            if not self.spacing and self.container(self.image) == "archive":
                advice += ", or add an array 'spacing' with the size of its voxels in mm"
            raise MtfedError(
                f"Image {self.where} has {_times(letterbox.shape)} voxels, of which the model would see only "
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
        """Return the image with 8 bits per value."""
        picture = self.read(self.image, "image")
        return replace(picture, values=np.ascontiguousarray(self._eight_bit(picture)))

    def _eight_bit(self, picture: Picture) -> np.ndarray:
        """Return the image's values with 8 bits, scaled by the window, or by their own range, if they have more."""
        values = picture.values
        if values.dtype == np.uint8:
            return values
        # In chunks, because double precision takes eight times the memory.
        chunks = [slice(i, i + step) for step in [max(CHUNK * len(values) // values.size, 1)]
                  for i in range(0, len(values), step)]  # fmt: skip
        ends = np.array([(values[chunk].min(), values[chunk].max()) for chunk in chunks], np.float64)
        if not np.isfinite(ends).all():
            count = values.size - sum(np.count_nonzero(np.isfinite(values[chunk])) for chunk in chunks)
            raise MtfedError(
                f"Image {self.where} should contain finite numbers, {count} of its {values.size} values are NaN or "
                "infinite; replace them, for example by its lowest value."
            )
        low, high = ends.min(), ends.max()
        if values.dtype.itemsize > 1:
            low, high = self.window or picture.window or (low, high)
        scaled = np.empty(values.shape, np.uint8)
        for chunk in chunks:
            clipped = values[chunk].astype(np.float64).clip(low, high)
            scaled[chunk] = np.round((clipped - low) * (255 / max(high - low, 1e-9)))
        return scaled

    def fit(self, array: np.ndarray, what: str, *, nearest: bool) -> np.ndarray:
        """Return an array over the image, placed as the image is; refuse an array of another shape."""
        if array.shape == self.letterbox.shape:
            return self.letterbox.place(array, nearest=nearest)
        expected, actual = self.letterbox.shape, array.shape
        if self.dimensions == 2:  # people write the width of a picture first, but the axes of a volume in order
            expected, actual = expected[::-1], actual[::-1]
        raise LabelError(
            f"{what[0].upper()}{what[1:]} of site {self.site} should be {_times(expected)} "
            f"{'pixels' if self.dimensions == 2 else 'voxels'}, as its image {self.image} is; it is {_times(actual)}: "
            "resample it to the image.",
            "misfit",
        )

    @staticmethod
    def container(name: str) -> Literal["archive", "folder", ""]:
        """Return whether a label's path names an archive of arrays (``.npz``) or a folder, "" if a single file."""
        format = format_of(name)
        return "folder" if format is None else "archive" if format.is_archive else ""

    def array(self, name: str, what: str) -> np.ndarray:
        """Return the values of a label: of a picture or volume, or of the array named ``what`` in an ``.npz`` file.

        Raises:
            MtfedError: if the file cannot be read, or its position differs from the image's; the error names the file.
        """
        picture = self.read(name, what)
        if name != self.image:
            self._check_position(picture, name, what)
        return picture.values

    def arrays(self, name: str, what: str) -> Mapping[str, np.ndarray]:
        """Return the arrays of an ``.npz`` file by name, or of a folder with a file for each, by the files' stems.

        An array is read when it is first used. A file that contains both the image and labels is opened once.
        """
        if name not in self._arrays:
            is_archive = self.container(name) == "archive"
            file = SourceFile(self.data, name, what)
            self._arrays[name] = Npz(file) if is_archive else Folder(file, self.array)
        return self._arrays[name]

    def read(self, name: str, what: str) -> Picture:
        """Return the picture or volume in a file as it is stored there."""
        arrays = self.arrays(name, what) if self.container(name) == "archive" else None
        return read_picture(self.data, name, what, self.dimensions, arrays)

    def _check_position(self, label: Picture, name: str, what: str) -> None:
        """Refuse a label whose file gives another position in space than the image's."""
        image_affine, label_affine, shape = self._picture.affine, label.affine, self.letterbox.shape
        if image_affine is None or label_affine is None or label.values.shape != shape:  # a misfit is refused later
            return
        unplaced = [(file, of.unplaced) for file, of in ((self.image, self._picture), (name, label)) if of.unplaced]
        if len(unplaced) == 2 and split_slice(self.image)[1] == split_slice(name)[1]:
            return
        sides = (*shape[::-1], 1)[:3]  # x, y, z; a picture has one plane
        corners = np.array([[*corner, 1.0] for corner in product(*((0, side - 1) for side in sides))])
        offsets = (label_affine - image_affine) @ corners.T
        voxels = np.linalg.solve(image_affine, np.vstack([offsets[:3], np.zeros((1, len(corners)))]))
        if abs(voxels).max() > MAX_DISTANCE:
            if len(unplaced) == 1:
                ((file, reason),) = unplaced
                raise LabelError(
                    f"Expected {what} {name} of site {self.site} to cover its image {self.image}, but "
                    f"{file_of(file)} does not define its position, {reason}; set them so that it is placed as "
                    f"{file_of(self.image if file == name else name)} is.",
                    "misfit",
                )
            raise LabelError(
                f"{what[:1].upper()}{what[1:]} {name} of site {self.site} is up to "
                f"{np.linalg.norm(offsets[:3], axis=0).max():.3g} mm away from its image {self.image}; resample it to "
                "the image, or name the one that belongs to it.",
                "misfit",
            )


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
