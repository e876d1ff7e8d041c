"""NumPy's own formats: ``.npy``, and ``.npz``, which may contain ``spacing`` (mm along the axes) besides arrays."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from typing import IO

import numpy as np

from ...errors import MtfedError
from .picture import Picture
from .source_file import SourceFile

# Not numpy's own message, which advises to load pickles: these can run code.
BROKEN = "it is broken, or contains something other than arrays of numbers; repair or remove it"
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Npz(Mapping[str, np.ndarray]):
    """The arrays of an ``.npz`` file by name, each read when it is first used."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        content = file.read()
        with file.reading(BROKEN):
            self._zip = zipfile.ZipFile(io.BytesIO(content))
            members = [member for member in self._zip.infolist() if member.filename.endswith(".npy")]
        self._members = {member.filename.removesuffix(".npy"): member for member in members}
        self._arrays: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            member = self._members[name]
            with self._file.reading(BROKEN):
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError("not a compression that numpy uses")
                with self._zip.open(member) as stream:
                    check_header(stream, member.file_size, self._file)
                with self._zip.open(member) as stream:
                    self._arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
        return self._arrays[name]

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


def check_header(stream: IO[bytes], size: int, file: SourceFile) -> None:
    """Refuse an array whose header declares too many values, or more than the ``size`` bytes of the stream contain."""
    shape, _, dtype = HEADERS[np.lib.format.read_magic(stream)](stream)
    if all(shape):  # an empty array is refused later, with an error that names its purpose
        file.check_size(*shape or (1,))
    if dtype.hasobject or math.prod(shape) * dtype.itemsize > size - stream.tell():
        raise ValueError("no numbers, or fewer than declared")


def read_npy(file: SourceFile, dimensions: int) -> Picture:
    """Read an ``.npy`` file."""
    content = file.read()
    with file.reading(BROKEN):
        stream = io.BytesIO(content)
        check_header(stream, len(content), file)
        stream.seek(0)
        return Picture(np.lib.format.read_array(stream, allow_pickle=False))


def read_npz(file: SourceFile, dimensions: int) -> Picture:
    """Read the array of an ``.npz`` file that has the name of what is read: "image" or "mask"."""
    arrays = Npz(file) if file.arrays is None else file.arrays
    if file.what not in arrays:
        names = ", ".join(arrays) or "none"
        raise MtfedError(f"Expected an array {file.what!r} in {file.name} of site {file.site.key}, got {names}.")
    return Picture(arrays[file.what], _spacing(arrays["spacing"], file, dimensions) if "spacing" in arrays else None)


def _spacing(spacing: np.ndarray, file: SourceFile, dimensions: int) -> tuple[float, ...]:
    """Return the spacing along the model's dimensions; for a slice, the first of three values is its thickness."""
    good = spacing.dtype.kind in "uif" and spacing.shape in ((dimensions,), (3,))
    if not good or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise MtfedError(
            f"Spacing in {file.name} of site {file.site.key} should be {'two or ' if dimensions == 2 else ''}three "
            f"numbers above 0, in mm along the axes; it is {spacing.tolist() if spacing.size < 9 else 'many'}."
        )
    return tuple(spacing.astype(np.float64).tolist()[-dimensions:])
