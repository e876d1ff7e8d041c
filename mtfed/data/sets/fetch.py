"""Bring a data set's files into its folder: download them if that is allowed, and unpack archives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from ...errors import MtfedError
from .dataset import DataSet, RemoteFile, layout_error
from .download import check_placed, download
from .meter import OnProgress
from .unpack import unpack

ProgressContext = Callable[[str, str], AbstractContextManager[OnProgress]]  # (action, unit) -> see Meter


def files_to_download(dataset: DataSet, folder: Path) -> list[RemoteFile]:
    """Return the files to download: none if the set is already complete, or may not be downloaded."""
    if not dataset.is_downloadable or not _is_incomplete(dataset, folder):
        return []
    return [file for file in dataset.files if not (folder / file.name).exists()]


def fetch(dataset: DataSet, folder: Path, progress: ProgressContext) -> None:
    """Bring a set's files into its folder and unpack archives; each archive is removed once it is unpacked.

    Raises:
        MtfedError: a file cannot be downloaded, or is not the owners' file; the message shows what to place where
            instead.
    """
    downloads = files_to_download(dataset, folder)
    for file in downloads:
        try:
            with progress(file.name, "bytes") as on_progress:
                download(file, folder, on_progress)
        except MtfedError as error:
            raise MtfedError(
                f"{error}\nThe part that has arrived is kept; run the command again to resume, or get the set from "
                f"{dataset.home} and place it so:\n{dataset.layout_tree(folder)}"
            ) from None
    for file in dataset.files:
        path = folder / file.name
        if file.unpack_to is not None and path.exists():
            if file not in downloads:  # placed by the user
                check_placed(file, path)
            with progress(f"unpack {file.name}", "bytes") as on_progress:
                unpack(path, folder / file.unpack_to, on_progress)
            path.unlink()
    if (missing := dataset.missing(folder)) and not dataset.is_downloadable:
        raise layout_error(dataset, folder, missing)


def _is_incomplete(dataset: DataSet, folder: Path) -> bool:
    # An archive that is still there was not unpacked completely.
    return bool(dataset.missing(folder)) or any(
        file.unpack_to is not None and (folder / file.name).exists() for file in dataset.files
    )
