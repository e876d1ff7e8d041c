"""Files of a set by their names without ending, wherever in its folders its owners' archives put them."""

from __future__ import annotations

from pathlib import Path


def by_stem(folder: Path, pattern: str, ending: str) -> dict[str, Path]:
    """Return files by name, without what it ends with.

    Args:
        folder: the set's.
        pattern: a glob pattern of folders in it, such as "HAM10000_images*"; they are searched with all below them.
        ending: of the names, as "_segmentation.png"; the case of letters counts not.
    """
    found = {}
    for place in sorted(folder.glob(pattern)):
        for path in sorted(place.rglob("*")):
            # Archives that were made on a Mac hold a "._NAME" beside every NAME.
            if path.name.lower().endswith(ending.lower()) and not path.name.startswith("."):
                found[path.name[: -len(ending)]] = path
    return found
