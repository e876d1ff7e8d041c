"""Find the files of a data set in the folders of its unpacked archives."""

from __future__ import annotations

from pathlib import Path


def files_by_stem(folder: Path, pattern: str, ending: str) -> dict[str, Path]:
    """Return files by their names without the ending.

    Args:
        folder: the set's folder.
        pattern: a glob pattern of folders in it, such as "HAM10000_images*"; they are searched recursively.
        ending: end of the file names, such as "_segmentation.png", in upper or lower case.
    """
    files = {}
    for subfolder in sorted(folder.glob(pattern)):
        for path in sorted(subfolder.rglob("*")):
            # Archives that were made on a Mac contain a "._NAME" beside every NAME.
            if path.name.lower().endswith(ending.lower()) and not path.name.startswith("."):
                files[path.name[: -len(ending)]] = path
    return files
