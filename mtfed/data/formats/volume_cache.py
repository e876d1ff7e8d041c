"""Volumes that are kept for their next slice: slices are asked for one after the other, of an image and its labels."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import local

from .picture import Picture

MAX_BYTES = 2**31  # of a thread's volumes, where they are more than an image and one label


class VolumeCache(local):
    """The image that a thread is at, and its labels; they go with the thread.

    There is no limit over all threads: below what they need in turn, each slice would have a volume read again, which
    takes as much memory.
    """

    def __init__(self) -> None:
        self._held: dict[Hashable, Picture] = {}  # the one asked for last comes last

    def get(self, key: Hashable, is_label: bool, read: Callable[[], Picture]) -> Picture:
        """Return the volume that is kept under a key, or else is read; with a new image, those of the last one go."""
        held = self._held
        found = held.pop(key, None)
        if found is None:
            if not is_label:
                held.clear()  # first, so that both need not be there at once
            found = read()
        held[key] = found
        while len(held) > 2 and sum(volume.values.nbytes for volume in held.values()) > MAX_BYTES:
            del held[next(iter(held))]
        return found
