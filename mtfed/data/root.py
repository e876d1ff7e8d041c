"""The folder or zip that contains a site's files. Paths cannot lead out of it."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path, PurePosixPath

from ..errors import MtfedError

MAX_BYTES = 4 * 2**30  # bytes of one file, or of an unpacked member of a zip


class Root:
    """A folder or a zip, whose files are named by their paths within it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip: tuple[int, zipfile.ZipFile] | None = None  # process and archive

    def read(self, name: str) -> bytes:
        """Return a file's bytes; raise ``OSError`` or ``KeyError`` if it does not exist or is far too large."""
        if (size := self.stamp(name)[0]) > MAX_BYTES:
            raise OSError(f"it has {size / 2**30:.1f} GiB, more than {MAX_BYTES / 2**30:.0f}")
        if self.path.is_dir():
            return (self.path / name).read_bytes()
        return self._archive.read(name)

    def stamp(self, name: str) -> tuple[int, ...]:
        """Return a file's size in bytes, and what changes with its content: times of change, or CRC."""
        _refuse_outside(name, self.path)
        if self._zip is None and self.path.is_dir():
            return stat_stamp(os.stat(self.path / name))
        member = self._archive.getinfo(name)
        return member.file_size, member.CRC

    def list(self, name: str) -> list[str]:
        """Return the paths of the files directly in a folder, sorted; none if it is not a folder."""
        _refuse_outside(name, self.path)
        if self.path.is_dir():
            folder = self.path / name
            return sorted(f"{name}/{path.name}" for path in folder.iterdir()) if folder.is_dir() else []
        start = name.rstrip("/") + "/"
        return sorted(
            member
            for member in self._archive.namelist()
            if member.startswith(start) and "/" not in member[len(start) :] and member != start
        )

    @property
    def _archive(self) -> zipfile.ZipFile:
        if self._zip is None or self._zip[0] != os.getpid():  # a forked process must not share a file position
            self._zip = os.getpid(), zipfile.ZipFile(self.path)
        return self._zip[1]

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_zip": None}


def stat_stamp(result: os.stat_result) -> tuple[int, int, int]:
    """Return a file's size and times of change: of its content, and of its name, because files may be exchanged."""
    return result.st_size, result.st_mtime_ns, result.st_ctime_ns


def _refuse_outside(name: str, path: Path) -> None:
    # Links within the folder may lead anywhere: the site has made them.
    if name[:1] != "/" and ".." not in name:  # the common case, fast, because a site has many files
        return
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise MtfedError(f"Expected a path inside {path}, got {name!r}; a manifest names files of its own folder.")
