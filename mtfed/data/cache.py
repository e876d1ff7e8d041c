"""Where decoded images are kept, so that no process decodes what another has decoded.

A site's folder keeps them in ``.mtfed-cache``, open to its owner alone; what is read from a zip goes to the user's own
cache (``$XDG_CACHE_HOME`` or ``~/.cache``, in ``mtfed``). The environment variable ``MTFED_CACHE`` names another folder
for all, or is ``off``. Where a cache cannot be written, images are decoded into memory.

A cache holds a folder a store, named by what it was decoded from: settings, files (by size and times of change, or
CRC), cells. Patients and splits are no part of that. All of it can be deleted at any time: who has a store open keeps
it, who comes later decodes again. Once a store is complete, older ones of the same settings, whose files or cells have
changed since, are removed, and so are those of other settings that nobody has opened for :data:`DAYS` days.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from ..config import Config
from ..errors import MtfedError
from ..startup import garbage_collection_paused
from ..tasks.specs import KIND_SPECS
from .formats import files_of
from .manifest import Row, SiteData
from .root import Root, stamp_of
from .store import Store, decode, decode_row, write

VARIABLE = "MTFED_CACHE"
FOLDER = ".mtfed-cache"
READERS = ("root.py", "source.py", "store.py")  # beside the packages formats and kinds
DAYS = 30
UNFINISHED = "unfinished-"
PART, LOOKERS = 4096, 4  # names that a thread looks at, and threads
OPEN = 8  # stores that a process remembers
Stamp = tuple[object, ...] | None  # size and times of change, or CRC; of a name that is several files, theirs

log = logging.getLogger("mtfed.data")
_open: dict[tuple[str, str], tuple[tuple[Row, ...], Store, Tensor]] = {}
_told: set[str] = set()  # caches that this process could not write


def open_store(data: SiteData, config: Config, rows: Sequence[Row]) -> tuple[Store, Tensor]:
    """Return a store that holds some labelled rows of a site, and where in it (M,).

    It is the cached one of the whole pool, of which the rows are a part, made now if there is none; or, where nothing
    can be kept, one of these rows alone.
    """
    if data.pool and rows and (folder := cache_of(data.root)) is not None:
        try:
            store, positions = _of_pool(folder, data, config)
            return store, positions[torch.tensor([row.number for row in rows])]
        except OSError as error:
            if str(folder) not in _told:
                _told.add(str(folder))
                log.warning(
                    "Cannot keep decoded images in %s (%s): every process decodes them again, into memory; make room "
                    "there, or name another folder in %s.",
                    folder,
                    error.strerror or error,
                    VARIABLE,
                )
    return decode(data, rows, config), torch.arange(len(rows))


def cache_of(root: Root) -> Path | None:
    """Return the folder of a root's stores, ``None`` if there is to be none."""
    told = os.environ.get(VARIABLE, "")
    if told == "off":
        return None
    if not told and root.path.is_dir():
        return root.path / FOLDER
    path, users = root.path.resolve(), os.environ.get("XDG_CACHE_HOME", "")
    try:
        home = Path(told or Path(users if os.path.isabs(users) else "~/.cache", "mtfed")).expanduser()
    except RuntimeError:  # a user without a home
        return None
    return home / f"{path.name}-{_digest(str(path)).hex()[:16]}"


def _of_pool(folder: Path, data: SiteData, config: Config) -> tuple[Store, Tensor]:
    """Return the store of a pool's labelled rows, and where a row of the pool is in it, by its number; or -1.

    A process looks at the files of one pool once.
    """
    place, settings = str(folder), settings_of(config)
    if (place, settings) in _open and _open[place, settings][0] is data.pool:
        return _open[place, settings][1:]
    rows = [row for row in data.pool if row.labels]
    with garbage_collection_paused():  # a manifest makes many objects, none of them garbage
        sources = sources_of(data, rows, config)
    target = folder / f"{settings}-{_digest(chr(10).join(sources)).hex()}"
    store = Store.read(target)
    if store is None or _mended(store, data, rows, config):
        store = _make(target, settings, data, rows, sources, config)
    with suppress(OSError):
        os.utime(target)
    positions = torch.full((len(data.pool),), -1)
    positions[torch.tensor([row.number for row in rows])] = torch.arange(len(rows))
    _open.pop((place, settings), None)
    while len(_open) >= OPEN:
        del _open[next(iter(_open))]
    _open[place, settings] = data.pool, store, positions
    return store, positions


def _make(target: Path, settings: str, data: SiteData, rows: list[Row], sources: list[str], config: Config) -> Store:
    """Decode a store beside its place and rename it; or wait for another process that is at it, and take what it made.

    Rows that the last store of these settings holds too are taken from there.
    """
    folder = target.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(folder) as alone:
        there = Store.read(target)
        if there is not None and not _mended(there, data, rows, config):
            return there
        for left in folder.glob(f"{UNFINISHED}*"):  # of processes that were killed
            if alone or _age(left) > 1:
                shutil.rmtree(left, ignore_errors=True)
        before = [path for path in folder.glob(f"{settings}-*") if path != target]
        old = there or (Store.read(max(before, key=_age_key)) if before else None)
        digests = np.frombuffer(b"".join(map(_digest, sources)), np.uint8).reshape(-1, 16)
        unfinished = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder))  # 0700
        try:
            write(unfinished, data, rows, config, digests, old)
            if there is not None or Store.read(target) is None:
                shutil.rmtree(target, ignore_errors=True)  # one with faults, or a broken one
            with suppress(OSError):  # where nothing can be locked, another may have been faster
                unfinished.rename(target)
            if (store := Store.read(target)) is None:
                raise OSError("it was deleted meanwhile")
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        for other in folder.glob("*-*"):
            if other != target and (other in before or _age(other) > DAYS):
                shutil.rmtree(other, ignore_errors=True)
        return store


def _mended(store: Store, data: SiteData, rows: list[Row], config: Config) -> bool:
    """Say whether an image that could not be read can be now, though its file is what it was.

    The fault was the machine's then: a disk that failed, a library or a right to read that was missing.
    """
    return any(not isinstance(decode_row(data, rows[i], config), str) for i in store.faults)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Be alone in making stores in a folder, if this machine and the folder's disk know locks; yield whether so.

    The system takes a lock back from a process that ends in whatever way.
    """
    try:
        import fcntl
    except ImportError:
        yield False
        return
    with open(folder / "lock", "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # as on some network disks
            yield False
        else:
            yield True


def _age(path: Path) -> float:
    """Return how many days ago a folder was opened last."""
    try:
        return (time.time() - path.stat().st_mtime) / 86400
    except OSError:
        return 0.0


def _age_key(path: Path) -> float:
    return -_age(path)


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


@lru_cache(maxsize=64)
def settings_of(config: Config) -> str:
    """Return a digest of what decoding goes by beside files and cells, our own code included."""
    tasks = [(task.name, task.kind, task.classes, task.range) for task in config.tasks.values()]
    image = (config.image_size, config.dimensions, config.channels, config.window, config.proportions)
    return _digest(repr((_code(), PIL.__version__, torch.__version__, image, tasks))).hex()[:16]


@lru_cache(maxsize=1)
def _code() -> bytes:
    """Return a digest of the modules that read, so that no store outlives a change of how."""
    home = Path(__file__).parent
    files = [home / name for name in READERS]
    files += [*(home / "formats").glob("*.py"), *(home.parent / "tasks").glob("*.py")]
    return b"".join(_digest(path.read_text("utf-8")) for path in sorted(files))


def sources_of(data: SiteData, rows: Sequence[Row], config: Config) -> list[str]:
    """Return for each row all that its image and labels are read from: names, stamps, cells."""
    stamps = Stamps(data)
    in_files = [name for name, task in config.tasks.items() if KIND_SPECS[task.kind].in_files]
    stamps.look([row.image for row in rows])
    found = [f"{row.image!r} {stamps[row.image]} {row.labels}" for row in rows]
    if not in_files:
        return found
    stamps.look([row.labels[name] for name in in_files for row in rows if name in row.labels])
    return [
        f"{source} {[stamps[row.labels[name]] for name in in_files if name in row.labels]}"
        for source, row in zip(found, rows, strict=True)
    ]


class Stamps(dict[str, Stamp]):
    """The stamps of a site's files by what manifests call them, ``None`` of what is not there; each is asked once.

    A name may stand for several files, as the folder of a DICOM series, or for a slice of one: :mod:`.formats`.
    """

    def __init__(self, data: SiteData) -> None:
        self.data = data
        self.start = f"{data.root.path}{os.sep}" if data.root.path.is_dir() else ""

    def look(self, names: Sequence[str]) -> None:
        """Ask for the plain files of a folder at once: one call of the system a file, of which many wait together."""
        if self.start:
            parts = [names[i : i + PART] for i in range(0, len(names), PART)]
            with ThreadPoolExecutor(LOOKERS) as pool:
                for found in pool.map(self._plain, parts):
                    self.update(found)

    def _plain(self, names: Sequence[str]) -> dict[str, Stamp]:
        found: dict[str, Stamp] = {}
        for name in names:  # one that leads out of the folder is refused when it is read
            try:
                told = os.stat(self.start + name)
            except (OSError, ValueError):
                continue
            if stat.S_ISREG(told.st_mode) and name[-4:].lower() != ".mhd":  # which has another file beside it
                found[name] = stamp_of(told)
        return found

    def __missing__(self, name: str) -> Stamp:
        self[name] = found = self._of(name)
        return found

    def _of(self, name: str) -> Stamp:
        if not self.start and name[-4:].lower() != ".mhd":
            with suppress(KeyError, ValueError, MtfedError):
                return self.data.root.stamp(name)
        try:
            files = files_of(self.data, name)
            stamps = [self.data.root.stamp(file) for file in files]
        except (OSError, KeyError, ValueError, MtfedError):
            return None
        return stamps[0] if files == (name,) else tuple((file, *of) for file, of in zip(files, stamps, strict=True))
