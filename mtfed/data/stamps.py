"""What the rows of a manifest are read from: file names, the files' sizes and times of change (or CRC), and cells."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from ..config import Config
from ..errors import MtfedError
from .formats import FORMATS, files_of
from .manifest import Row, SiteData
from .root import stat_stamp

CHUNK, THREADS = 4096, 4  # names that a thread looks up at a time, and threads
# Size and times of change, or size and CRC; of a name that refers to several files, their names and stamps.
Stamp = tuple[object, ...] | None


def row_sources(data: SiteData, rows: Sequence[Row], config: Config) -> list[str]:
    """Return for each row everything that its image and labels are read from, as text."""
    stamps = Stamps(data)
    in_files = [name for name, task in config.tasks.items() if task.spec.in_files]
    stamps.look_up([row.image for row in rows])
    sources = [f"{row.image!r} {stamps[row.image]} {row.labels}" for row in rows]
    if not in_files:
        return sources
    stamps.look_up([row.labels[name] for name in in_files for row in rows if name in row.labels])
    return [
        f"{source} {[stamps[row.labels[name]] for name in in_files if name in row.labels]}"
        for source, row in zip(sources, rows, strict=True)
    ]


class Stamps(dict[str, Stamp]):
    """The stamps of a site's files by their names in manifests, ``None`` for missing files; each is looked up once.

    A name may refer to several files, such as the folder of a DICOM series, or to a slice of a file: see
    :mod:`.formats`.
    """

    def __init__(self, data: SiteData) -> None:
        self._data = data
        self._prefix = f"{data.root.path}{os.sep}" if data.root.path.is_dir() else ""
        # Files with companions, whose stamps count too.
        self._headers = tuple(suffix for format in FORMATS.values() if format.companions for suffix in format.suffixes)

    def look_up(self, names: Sequence[str]) -> None:
        """Look up plain files in threads: one system call per file, most of which only waits."""
        if self._prefix:
            chunks = [names[i : i + CHUNK] for i in range(0, len(names), CHUNK)]
            with ThreadPoolExecutor(THREADS) as pool:
                for stamps in pool.map(self._plain_files, chunks):
                    self.update(stamps)

    def _plain_files(self, names: Sequence[str]) -> dict[str, Stamp]:
        stamps: dict[str, Stamp] = {}
        for name in names:  # a path that leads out of the folder is refused when the file is read
            try:
                result = os.stat(self._prefix + name)
            except (OSError, ValueError):
                continue
            if stat.S_ISREG(result.st_mode) and not name.lower().endswith(self._headers):
                stamps[name] = stat_stamp(result)
        return stamps

    def __missing__(self, name: str) -> Stamp:
        self[name] = stamp = self._stamp(name)
        return stamp

    def _stamp(self, name: str) -> Stamp:
        root = self._data.root
        if not self._prefix and not name.lower().endswith(self._headers):
            with suppress(KeyError, ValueError, MtfedError):
                return root.stamp(name)
        try:
            files = files_of(self._data, name)
            stamps = [root.stamp(file) for file in files]
        except (OSError, KeyError, ValueError, MtfedError):
            return None
        if files == (name,):
            return stamps[0]
        return tuple((file, *stamp) for file, stamp in zip(files, stamps, strict=True))
