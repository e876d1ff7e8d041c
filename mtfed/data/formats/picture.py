"""What a reader returns: the values of an image, and their position in the patient. And a cache of volumes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from threading import local

import numpy as np

MAX_VALUES = 2**28  # values of an image, 512 x 512 x 1024; a file that declares more is refused before it is unpacked
MAX_BYTES = 2**31  # bytes of a thread's cached volumes, if there are more than an image and one label


@dataclass(frozen=True)
class Picture:
    """An image, or a label that covers one."""

    values: np.ndarray  # numbers, (H, W), (H, W, 3) or (D, H, W)
    spacing: tuple[float, ...] | None = None  # mm along the spatial axes of the values, in their order; None if unknown
    affine: np.ndarray | None = None  # (4, 4) from voxel x, y, z to mm in LPS; None if unknown. For a slice, z is 0.
    window: tuple[float, float] | None = None  # the lowest and highest value to display, if the file contains them
    unplaced: str = ""  # why the affine is only assumed, such as missing fields; empty if the file contains it

    def slice(self, index: int) -> Picture:
        """Return a copy of one slice along z of a volume."""
        affine = self.affine
        if affine is not None:
            affine = affine.copy()
            affine[:, 3] += index * affine[:, 2]
        spacing = self.spacing and self.spacing[1:]
        return replace(self, values=np.array(self.values[index]), spacing=spacing, affine=affine)


class VolumeCache(local):
    """The current image of each thread and its labels, whose slices are usually read one after the other.

    They are freed with the thread. There is no limit over all threads: with less than the threads need, each slice
    would read its volume again, which takes as much memory.
    """

    def __init__(self) -> None:
        self._volumes: dict[Hashable, Picture] = {}  # the last one used is last

    def get(self, key: Hashable, is_label: bool, read: Callable[[], Picture]) -> Picture:
        """Return the volume that is cached under a key, or read it; a new image evicts the last one and its labels."""
        volumes = self._volumes
        volume = volumes.pop(key, None)
        if volume is None:
            if not is_label:
                volumes.clear()  # first, so that both images are never in memory at once
            volume = read()
        volumes[key] = volume
        while len(volumes) > 2 and sum(picture.values.nbytes for picture in volumes.values()) > MAX_BYTES:
            del volumes[next(iter(volumes))]
        return volume
