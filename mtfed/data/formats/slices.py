"""FILE#k, the name of slice k of a volume."""

from __future__ import annotations

import re

_SLICE = re.compile(r"(.+)#(\d{1,9})", re.DOTALL)


def split_slice(name: str) -> tuple[str, int | None]:
    """Return the path in a manifest's name and the index of the slice, ``None`` if the name means the whole file.

    >>> split_slice("ct.nii.gz#12"), split_slice("ct.nii.gz")
    (('ct.nii.gz', 12), ('ct.nii.gz', None))
    """
    match = _SLICE.fullmatch(name) if "#" in name else None
    return (match[1], int(match[2])) if match else (name, None)


def file_of(name: str) -> str:
    """Return the file or folder that a name in a manifest refers to, without the index of a slice."""
    return split_slice(name)[0]
