"""A folder in which each file is an array by name, as segmentations are often kept: ``liver.nii.gz`` and so on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from ...errors import MtfedError
from . import files_of
from .registry import stem_of, suffix_of
from .source_file import SiteFiles


class Folder(Mapping[str, np.ndarray]):
    """The arrays of a folder's files by their stems, each read when it is first asked for.

    Args:
        site: the site.
        name: the folder.
        what: what it is, for errors.
        read: returns the array of a file, by its path and its stem.
    """

    def __init__(self, site: SiteFiles, name: str, what: str, read: Callable[[str, str], np.ndarray]) -> None:
        self._read = read
        self._paths: dict[str, str] = {}
        self._kept: dict[str, np.ndarray] = {}
        for path in files_of(site, name):
            stem = stem_of(path)
            if not suffix_of(path) or stem.startswith("."):
                continue
            if stem in self._paths:
                raise MtfedError(
                    f"Folder {name} of site {site.key} should hold one file called {stem}, it holds "
                    f"{self._paths[stem]} and {path}; remove one."
                )
            self._paths[stem] = path
        if not self._paths:
            raise MtfedError(
                f"Cannot read {what} {name} of site {site.key}: it is neither an .npz file nor a folder with a file "
                "for each structure; add it, or mend the manifest."
            )

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._kept:
            self._kept[name] = self._read(self._paths[name], name)
        return self._kept[name]

    def __contains__(self, name: object) -> bool:
        return name in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)
