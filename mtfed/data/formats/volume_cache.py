"""A cache of volumes, because the slices of an image and its labels are usually read one after the other."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import local

from .picture import Picture

MAX_BYTES = 2**31  # of the volumes of a thread, if there are more than an image and one label


class VolumeCache(local):
    """The current image of each thread and its labels; they are freed with the thread.

    There is no limit over all threads: with less than the threads need, each slice would read its volume again, which
    takes as much memory.
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
