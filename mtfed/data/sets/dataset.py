"""What a public data set is: its terms, its files, its tasks, and what reads its official form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import MtfedError

Setting = bool | int | float | str


@dataclass(frozen=True)
class RemoteFile:
    """A file of a set as its owners give it.

    With ``unpack`` it is an archive that is unpacked into that folder within the set's ("" is the set's folder itself)
    and then removed. Without a ``url`` it cannot be fetched, but is unpacked where somebody has placed it.
    """

    name: str  # within the set's folder
    url: str = ""
    size: int = 0  # bytes; 0: not known
    md5: str = ""
    sha256: str = ""
    unpack: str | None = None


@dataclass(frozen=True)
class Sample:
    """One row of the manifest: paths are within the set's folder, labels are cells as ``mtfed config`` says."""

    image: str
    patient: str
    labels: Mapping[str, str] = field(default_factory=dict)  # by task; one that is absent or empty is no label
    split: str = ""  # train, val or test, where the set's owners say so
    site: str = ""  # hospital or scanner, where known
    modality: str = ""  # empty: the set's
    others: Mapping[str, str] = field(default_factory=dict)  # columns that are no task, as laterality and view


# (the set's folder, the folder for converted labels) -> rows. Converted labels are written below the second, and named
# by their path within the first: "labels/...".
Reader = Callable[[Path, Path], Iterable[Sample]]


@dataclass(frozen=True)
class DataSet:
    """A public data set in its official form."""

    name: str
    title: str
    images: int
    dimensions: int  # 2: pictures, 3: volumes
    channels: int  # 1: grey, 3: RGB
    modality: str
    licence: str  # its short name, as "CC BY 4.0"
    terms: str  # sentences: what use, sale and passing on it allows, as far as known
    home: str
    citation: str
    place: str  # the official layout as a tree, below the line that names the set's folder
    needs: tuple[str, ...]  # what must be there before it can be read: glob patterns within the folder; "a|b": either
    tasks: Mapping[str, Mapping[str, str]]  # as in a run config: kind, classes, range, ...
    read: Reader
    files: tuple[RemoteFile, ...] = ()
    access: str = ""  # sentences: what to do by hand, where files may not be fetched by a program
    settings: Mapping[str, Setting] = field(default_factory=dict)  # of the app, beside those that follow from the above
    note: str = ""  # sentences: what to know of it before trusting figures, and what is done with it here

    @property
    def fetched(self) -> bool:
        """Say whether a program may and can fetch it."""
        return not self.access and bool(self.files) and all(file.url for file in self.files)

    def tree(self, folder: Path) -> str:
        """Return the layout that is expected in a folder."""
        return f"{folder}/\n" + "\n".join(f"  {line}" for line in self.place.strip("\n").splitlines())

    def missing(self, folder: Path) -> list[str]:
        """Return which of its needs a folder does not hold."""
        return [need for need in self.needs if not any(_there(folder, pattern) for pattern in need.split("|"))]


def _there(folder: Path, pattern: str) -> bool:
    return next(iter(folder.glob(pattern)), None) is not None


def wrong_layout(dataset: DataSet, folder: Path, faults: list[str]) -> MtfedError:
    """Return the error for a folder that does not hold a set: what is wrong, and the tree that was expected."""
    hint = f"\n{dataset.access}" if dataset.access else ""
    return MtfedError(
        f"{folder} does not hold {dataset.title} in its official form: {'; '.join(faults)}. Expected:\n"
        f"{dataset.tree(folder)}{hint}"
    )
