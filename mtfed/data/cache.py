"""The cache of decoded images, so that no process decodes again what another has decoded.

A site's folder contains its cache in ``.mtfed-cache``, which only its owner can read; images from a zip are cached in
the user's own cache (``$XDG_CACHE_HOME`` or ``~/.cache``, in ``mtfed``). The environment variable ``MTFED_CACHE`` names
another folder for all caches, or is ``off``. If a cache cannot be written, images are decoded into memory.

A cache contains one folder per store, named by what the store was decoded from: settings, decoders and code
(:mod:`.fingerprint`), files and cells (:mod:`.stamps`). Patients and splits do not count. Any of it can be deleted at
any time: processes that have a store open keep it, later ones decode again. When a store is complete, older stores with
the same settings, whose files or cells have changed since, are removed, and so are stores with other settings that have
not been opened for :data:`MAX_DAYS` days.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..startup import garbage_collection_paused
from .decoding import decode_row, decode_store, write_store
from .every_image import decoded_rows, without_pretext
from .fingerprint import digest, settings_digest
from .manifest import Row, SiteData
from .root import Root
from .stamps import row_sources
from .store import Store

VARIABLE = "MTFED_CACHE"
FOLDER = ".mtfed-cache"
MAX_DAYS = 30
MAX_OPEN = 8  # stores that a process remembers
UNFINISHED = "unfinished-"

log = logging.getLogger("mtfed.data")
_open: dict[tuple[str, str], tuple[tuple[Row, ...], Store, Tensor]] = {}  # by cache folder and settings
_unwritable: set[str] = set()  # caches about which this process has warned


def open_store(data: SiteData, config: Config, rows: Sequence[Row]) -> tuple[Store, Tensor]:
    """Return a store that contains some labelled rows of a site, and their positions in it (M,).

    It is the cached store of the whole pool, which is made now if there is none; or a store of only these rows in
    memory, if nothing can be cached.
    """
    if data.pool and rows and (folder := cache_folder(data.root)) is not None:
        try:
            store, positions = _open_pool(folder, data, config)
            return store, positions[torch.tensor([row.number for row in rows])]
        except OSError as error:
            if str(folder) not in _unwritable:
                _unwritable.add(str(folder))
                log.warning(
                    "Cannot keep decoded images in %s (%s): every process decodes them again, into memory; make room "
                    "there, or name another folder in %s.",
                    folder,
                    error.strerror or error,
                    VARIABLE,
                )
    return decode_store(data, without_pretext(rows, config), config), torch.arange(len(rows))


def cache_folder(root: Root) -> Path | None:
    """Return the folder for the stores of a site's folder or zip, ``None`` if the cache is off."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen == "off":
        return None
    if not chosen and root.path.is_dir():
        return root.path / FOLDER
    path, user_cache = root.path.resolve(), os.environ.get("XDG_CACHE_HOME", "")
    try:
        default = Path(user_cache if os.path.isabs(user_cache) else "~/.cache", "mtfed")
        folder = Path(chosen or default).expanduser()
    except RuntimeError:  # a user without a home
        return None
    return folder / f"{path.name}-{digest(str(path)).hex()[:16]}"


def _open_pool(folder: Path, data: SiteData, config: Config) -> tuple[Store, Tensor]:
    """Return the store of a pool's rows that the config's tasks need, and each row's position in it, or -1.

    A process looks at the files of a pool only once.
    """
    key, settings = str(folder), settings_digest(config) + ("-every" if config.pretext_tasks else "")
    if (key, settings) in _open and _open[key, settings][0] is data.pool:
        return _open[key, settings][1:]
    rows = decoded_rows(data, config)
    with garbage_collection_paused():  # a manifest makes many objects, none of them garbage
        sources = row_sources(data, rows, config)
    # With unlabelled images, stores have a name of their own, so that runs with and without them do not replace them.
    prefix = settings_digest(config) + ("every" if any(not row.labels for row in rows) else "")
    target = folder / f"{prefix}-{digest(chr(10).join(sources)).hex()}"
    store = Store.read(target)
    if store is None or _has_recovered(store, data, rows, config):
        store = _make(target, prefix, data, rows, sources, config)
    with suppress(OSError):
        os.utime(target)
    positions = torch.full((len(data.pool),), -1)
    positions[torch.tensor([row.number for row in rows])] = torch.arange(len(rows))
    _open.pop((key, settings), None)
    while len(_open) >= MAX_OPEN:
        del _open[next(iter(_open))]
    _open[key, settings] = data.pool, store, positions
    return store, positions


def _make(target: Path, settings: str, data: SiteData, rows: list[Row], sources: list[str], config: Config) -> Store:
    """Decode a store into a temporary folder and rename it; or wait for another process that makes the same store.

    Rows that the last store with these settings contains are copied from there.
    """
    folder = target.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with lock(folder) as locked:
        present = Store.read(target)
        if present is not None and not _has_recovered(present, data, rows, config):
            return present
        for unfinished in folder.glob(f"{UNFINISHED}*"):  # left by processes that were killed
            if locked or _age(unfinished) > 1:
                shutil.rmtree(unfinished, ignore_errors=True)
        outdated = [path for path in folder.glob(f"{settings}-*") if path != target]
        old = present or (Store.read(min(outdated, key=_age)) if outdated else None)
        digests = np.frombuffer(b"".join(map(digest, sources)), np.uint8).reshape(-1, 16)
        temporary = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder))  # mode 0700
        try:
            write_store(temporary, data, rows, config, digests, old)
            if present is not None or Store.read(target) is None:
                shutil.rmtree(target, ignore_errors=True)  # it has faults, or is broken
            with suppress(OSError):  # without locks, another process may have been faster
                temporary.rename(target)
            if (store := Store.read(target)) is None:
                raise OSError("it was deleted meanwhile")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for other in folder.glob("*-*"):
            if other != target and (other in outdated or _age(other) > MAX_DAYS):
                shutil.rmtree(other, ignore_errors=True)
        return store


def _has_recovered(store: Store, data: SiteData, rows: list[Row], config: Config) -> bool:
    """Return whether an image that could not be read can be read now, although its file has not changed.

    The machine was at fault then: a disk that failed, a missing library, or a missing permission.
    """
    return any(not isinstance(decode_row(data, rows[i], config), str) for i in store.faults)


@contextmanager
def lock(folder: Path) -> Iterator[bool]:
    """Lock a folder for making stores; yield whether the machine and the disk support locks.

    The system releases the lock of a process that ends in any way.
    """
    try:
        import fcntl
    except ImportError:
        yield False
        return
    with open(folder / "lock", "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # some network disks do not support it
            yield False
        else:
            yield True


def _age(path: Path) -> float:
    """Return how many days ago a folder was opened last."""
    try:
        return (time.time() - path.stat().st_mtime) / 86400
    except OSError:
        return 0.0
