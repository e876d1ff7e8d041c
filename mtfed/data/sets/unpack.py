"""Unpack archives from outside so that nothing is written outside their folder.

The contents are first written into a temporary folder and then moved to their place. If unpacking is interrupted, the
archive is still there, and no file is incomplete.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from ...errors import MtfedError
from .meter import OnProgress, ignore_progress

MAX_FILES = 2_000_000
MAX_EXPANSION = 200  # unpacked size over the archive's own; images and masks do not compress better than that
MIN_LIMIT = 64 * 2**20  # bytes that may be unpacked from even the smallest archive
BLOCK = 2**20  # bytes
Member = tuple[str, int, Callable[[], IO[bytes]]]  # name, size, and a function that opens it


def unpack(archive: Path, folder: Path, on_progress: OnProgress = ignore_progress) -> int:
    """Unpack a zip or tar file into a folder and return the number of its files.

    Args:
        archive: the file.
        folder: created if it does not exist; existing files are replaced.
        on_progress: called with the number of bytes unpacked and the estimated total.

    Raises:
        MtfedError: the archive is broken, names files outside the folder, contains links, or unpacks to far too much.
    """
    work = folder / f".unpacking-{archive.name}"
    shutil.rmtree(work, ignore_errors=True)
    try:
        return _unpack(archive, folder, work, on_progress)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        raise MtfedError(f"{archive} is not a readable archive: {error}; remove it and get it again.") from None
    except RuntimeError as error:  # a zip file with a password
        raise MtfedError(f"{archive} cannot be unpacked: {error}; unpack it by hand.") from None
    except OSError as error:
        raise MtfedError(f"Cannot unpack {archive}: {error.strerror or error}; fix that and try again.") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _unpack(archive: Path, folder: Path, work: Path, on_progress: OnProgress) -> int:
    is_zip = archive.name.lower().endswith(".zip")
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    limit = min(max(MAX_EXPANSION * archive.stat().st_size, MIN_LIMIT), shutil.disk_usage(existing).free)
    names: list[str] = []
    done = 0
    # Members are read in order, because listing the members of a compressed tar first would unpack it twice.
    for name, size, open_member in _zip_members(archive) if is_zip else _tar_members(archive):
        _check_name(name, archive)
        if done + size > limit or len(names) >= MAX_FILES:
            raise _size_error(archive, limit)
        target = work / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_member() as source, open(target, "wb") as file:
            while block := source.read(BLOCK):
                done += len(block)
                if done > limit:  # the declared size may be wrong
                    raise _size_error(archive, limit)
                file.write(block)
        names.append(name)
        on_progress(done, max(done, archive.stat().st_size))
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (work / name).exists():  # if members have the same name, the last is taken
            os.replace(work / name, target)
    return len(set(names))


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            if member.external_attr >> 16 & 0o170000 == 0o120000:
                raise _link_error(member.filename, archive)
            if not member.is_dir():
                yield member.filename, member.file_size, lambda member=member: file.open(member)  # type: ignore[misc]


def _tar_members(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive, "r|*") as file:
        for member in file:
            if member.issym() or member.islnk():
                raise _link_error(member.name, archive)
            if member.isreg():
                opened = file.extractfile(member)
                assert opened is not None  # only None for members that are not regular files
                yield member.name, member.size, lambda opened=opened: opened  # type: ignore[misc]
            elif not member.isdir():
                raise MtfedError(f"{archive} has {member.name!r}, which is not a regular file; it is not unpacked.")


def _check_name(name: str, archive: Path) -> None:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in name:
        raise MtfedError(f"{archive} contains {name!r}, which would be written outside its folder; it is not unpacked.")


def _link_error(name: str, archive: Path) -> MtfedError:
    return MtfedError(f"{archive} contains the link {name!r}, which could lead outside its folder; it is not unpacked.")


def _size_error(archive: Path, limit: int) -> MtfedError:
    return MtfedError(
        f"{archive} unpacks to more than {limit / 2**30:.2f} GiB or {MAX_FILES} files, too much for its size or for "
        "this disk; it is not unpacked."
    )
