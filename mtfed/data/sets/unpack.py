"""Archives from outside, unpacked so that nothing lands beside the folder they are unpacked into.

What is in an archive is first written into a folder of its own and then moved to its place: who stops halfway finds the
archive still there, and no half a file.
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

MAX_FILES = 2_000_000
MAX_TIMES = 200  # an archive's unpacked size in times of its own; images and masks do not pack that well
MIN_LIMIT = 64 * 2**20  # bytes that may be unpacked however small the archive is
BLOCK = 2**20  # bytes
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
Member = tuple[str, int, Callable[[], IO[bytes]]]  # name, size, and what opens it


def unpack(archive: Path, folder: Path, tell: Callable[[int, int], None] = lambda done, of: None) -> int:
    """Unpack a zip or tar into a folder and return how many files it held.

    Args:
        archive: the file.
        folder: is made where it is not there; files that are there are replaced.
        tell: is told how many bytes have been unpacked, of how many.

    Raises:
        MtfedError: it is broken, names files outside of the folder, holds links, or unpacks to far too much.
    """
    work = folder / f".unpacking-{archive.name}"
    shutil.rmtree(work, ignore_errors=True)
    try:
        return _unpack(archive, folder, work, tell)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        raise MtfedError(f"{archive} is no archive that can be read: {error}; remove it and get it again.") from None
    except RuntimeError as error:  # of a zip with a password
        raise MtfedError(f"{archive} cannot be unpacked: {error}; unpack it by hand.") from None
    except OSError as error:
        raise MtfedError(f"Cannot unpack {archive}: {error.strerror or error}; mend that and try again.") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _unpack(archive: Path, folder: Path, work: Path, tell: Callable[[int, int], None]) -> int:
    is_zip = archive.name.lower().endswith(".zip")
    # A tar must be read from front to back: its list of members would have to be unpacked to be known.
    limit = max(MAX_TIMES * archive.stat().st_size, MIN_LIMIT)
    limit = min(limit, shutil.disk_usage(_first_that_is(folder)).free)
    names: list[str] = []
    done = 0
    for name, size, open_member in _of_zip(archive) if is_zip else _of_tar(archive):
        _check_name(name, archive)
        if done + size > limit or len(names) >= MAX_FILES:
            raise _too_much(archive, limit)
        target = work / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_member() as source, open(target, "wb") as file:
            while block := source.read(BLOCK):
                done += len(block)
                if done > limit:  # whatever the size that was declared
                    raise _too_much(archive, limit)
                file.write(block)
        names.append(name)
        tell(done, max(done, archive.stat().st_size))
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (work / name).exists():  # a name may be there twice, the last counts
            os.replace(work / name, target)
    return len(set(names))


def _of_zip(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            if member.external_attr >> 16 & 0o170000 == 0o120000:
                raise _link(member.filename, archive)
            if not member.is_dir():
                yield member.filename, member.file_size, lambda member=member: file.open(member)  # type: ignore[misc]


def _of_tar(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive, "r|*") as file:
        for member in file:
            if member.issym() or member.islnk():
                raise _link(member.name, archive)
            if not (member.isreg() or member.isdir()):
                raise MtfedError(f"{archive} holds {member.name!r}, which is no ordinary file; it is not unpacked.")
            if member.isreg():
                opened = file.extractfile(member)
                assert opened is not None  # of an ordinary file it is there
                yield member.name, member.size, lambda opened=opened: opened  # type: ignore[misc]


def _check_name(name: str, archive: Path) -> None:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in name:
        raise MtfedError(f"{archive} holds {name!r}, which would be written outside its folder; it is not unpacked.")


def _link(name: str, archive: Path) -> MtfedError:
    return MtfedError(f"{archive} holds the link {name!r}, which could lead outside its folder; it is not unpacked.")


def _too_much(archive: Path, limit: int) -> MtfedError:
    return MtfedError(
        f"{archive} unpacks to more than {limit / 2**30:.2f} GiB or {MAX_FILES} files, too much for its size or for "
        "this disk; it is not unpacked."
    )


def _first_that_is(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
