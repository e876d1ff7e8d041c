"""A folder with one array per file, as segmentations are often stored: ``liver.nii.gz`` and so on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from ...errors import MtfedError
from . import files_of
from .registry import stem_of, suffix_of
from .source_file import SourceFile


class Folder(Mapping[str, np.ndarray]):
    """The arrays of a folder's files by the files' stems, each read when it is first used.

    Args:
        folder: the folder.
        read: returns the array of a file, from its path and its stem.
    """

    def __init__(self, folder: SourceFile, read: Callable[[str, str], np.ndarray]) -> None:
        self._read = read
        self._paths: dict[str, str] = {}
        self._arrays: dict[str, np.ndarray] = {}
        for path in files_of(folder.site, folder.name):
            stem = stem_of(path)
            if not suffix_of(path) or stem.startswith("."):
                continue
            if stem in self._paths:
                raise MtfedError(
                    f"Folder {folder.name} of site {folder.site.key} should have one file called {stem}, it has "
                    f"{self._paths[stem]} and {path}; remove one."
                )
            self._paths[stem] = path
        if not self._paths:
            problem = "it is neither an .npz file nor a folder with a file for each structure"
            raise folder.error(f"{problem}; add it, or correct the manifest")

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            self._arrays[name] = self._read(self._paths[name], name)
        return self._arrays[name]

    def __contains__(self, name: object) -> bool:
        return name in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)
