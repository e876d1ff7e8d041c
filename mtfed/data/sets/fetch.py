"""A data set's files brought into its folder: placed archives unpacked, the others downloaded where that is allowed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from ...errors import MtfedError
from .dataset import DataSet, RemoteFile, wrong_layout
from .download import check_placed, download
from .unpack import unpack

# (what is being done, its unit) -> what shows how far it is.
Show = Callable[[str, str], AbstractContextManager[Callable[[int, int], None]]]


def to_fetch(dataset: DataSet, folder: Path) -> list[RemoteFile]:
    """Return the files that are to be downloaded: none where the set lies there, or may not be fetched."""
    if not dataset.fetched or not _lacks(dataset, folder):
        return []
    return [file for file in dataset.files if not (folder / file.name).exists()]


def fetch(dataset: DataSet, folder: Path, show: Show) -> None:
    """Bring a set's files into its folder, and unpack archives; an archive is removed once it is unpacked.

    Raises:
        MtfedError: a file cannot be fetched, or is not the owners'; it tells what to place where instead.
    """
    files = to_fetch(dataset, folder)
    for file in files:
        try:
            with show(file.name, "bytes") as tell:
                download(file, folder, tell)
        except MtfedError as error:
            raise MtfedError(
                f"{error}\nWhat has come so far is kept; run the command again to go on, or get the set from "
                f"{dataset.home} and place it so:\n{dataset.tree(folder)}"
            ) from None
    for file in dataset.files:
        path = folder / file.name
        if file.unpack is not None and path.exists():
            if file not in files:  # somebody placed it
                check_placed(file, path)
            with show(f"unpack {file.name}", "bytes") as tell:
                unpack(path, folder / file.unpack, tell)
            path.unlink()
    if (missing := dataset.missing(folder)) and not dataset.fetched:
        raise wrong_layout(dataset, folder, [f"{need.replace('|', ' or ')} was not found" for need in missing])


def _lacks(dataset: DataSet, folder: Path) -> bool:
    # An archive that is still there was not unpacked to its end.
    return bool(dataset.missing(folder)) or any(
        file.unpack is not None and (folder / file.name).exists() for file in dataset.files
    )
