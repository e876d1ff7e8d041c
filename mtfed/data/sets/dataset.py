"""The description of a public data set: its terms, files and tasks, and the function that reads its official form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import MtfedError

Setting = bool | int | float | str
LATERALITY = {"L": "left", "R": "right"}


@dataclass(frozen=True)
class RemoteFile:
    """A file of a data set as its owners provide it.

    A file with ``unpack_to`` is an archive. It is unpacked into that folder within the set's folder ("" is the set's
    folder itself) and then removed. A file without a ``url`` cannot be downloaded, but is unpacked if a user has placed
    it in the folder.
    """

    name: str  # within the set's folder
    url: str = ""
    size: int = 0  # bytes; 0: unknown
    md5: str = ""
    sha256: str = ""
    unpack_to: str | None = None


@dataclass(frozen=True)
class Sample:
    """One row of the manifest.

    Paths are relative to the set's folder. Labels are cells in the form that ``mtfed config`` describes.
    """

    image: str
    patient: str
    labels: Mapping[str, str] = field(default_factory=dict)  # labels by task; absent or empty: no label
    split: str = ""  # train, val or test, if the set's owners define it
    site: str = ""  # hospital or scanner, if known
    modality: str = ""  # empty: that of the set
    body_part: str = ""  # empty: that of the set
    extra: Mapping[str, str] = field(default_factory=dict)  # columns that are not tasks, such as laterality and view


# (the set's folder, the folder for converted labels) -> samples. Converted labels are written to the second folder, and
# named by their path within the first: "labels/...".
SampleReader = Callable[[Path, Path], Iterable[Sample]]


@dataclass(frozen=True)
class DataSet:
    """A public data set in its official form."""

    name: str
    title: str
    images: int
    dimensions: int  # 2: images, 3: volumes
    channels: int  # 1: grey, 3: RGB
    modality: str  # in words that mtfed.data.vocabulary knows
    body_part: str
    licence: str  # its short name, such as "CC BY 4.0"
    terms: str  # sentences: which use, sale and redistribution the licence allows, as far as known
    home: str
    citation: str
    layout: str  # the official layout as a tree, without the line that names the set's folder
    required: tuple[str, ...]  # glob patterns that must match before the set can be read; "a|b": either of them
    tasks: Mapping[str, Mapping[str, str]]  # tasks as in a run config: kind, classes, range, ...
    read: SampleReader
    files: tuple[RemoteFile, ...] = ()
    access: str = ""  # sentences: how to get the files by hand, if a program may not download them
    settings: Mapping[str, Setting] = field(default_factory=dict)  # further settings of the app
    note: str = ""  # sentences: what to know before trusting results, and how the set is treated here
    # If the owners provide the images in several sizes: by pixels per side, the set with the files of that size. The
    # first is the one to download by default. Without that, ``required`` of this set is met by the files of any size.
    versions: Mapping[int, DataSet] = field(default_factory=dict)

    @property
    def is_downloadable(self) -> bool:
        """Whether a program may and can download the set."""
        return not self.access and bool(self.files) and all(file.url for file in self.files)

    def layout_tree(self, folder: Path) -> str:
        """Return the expected layout as a tree below a folder."""
        return f"{folder}/\n" + "\n".join(f"  {line}" for line in self.layout.strip("\n").splitlines())

    def version(self, size: int) -> DataSet:
        """Return the set with images of a size.

        Raises:
            MtfedError: its owners do not provide this size.
        """
        if size in self.versions:
            return self.versions[size]
        sizes = ", ".join(map(str, self.versions))
        raise MtfedError(
            f"{self.title} has no version with {size} pixels per side; "
            + (f"choose one of {sizes}." if sizes else "its images have one size, leave out --size.")
        )

    def version_in(self, folder: Path) -> DataSet:
        """Return the largest version whose files are in a folder; the set itself if it has no versions."""
        complete = [version for version in self.versions.values() if not version.missing(folder)]
        return complete[-1] if complete else self

    def missing(self, folder: Path) -> list[str]:
        """Return a message for each required pattern that matches nothing in a folder."""
        return [
            f"{patterns.replace('|', ' or ')} was not found"
            for patterns in self.required
            if not any(_has_match(folder, pattern) for pattern in patterns.split("|"))
        ]


def _has_match(folder: Path, pattern: str) -> bool:
    return next(iter(folder.glob(pattern)), None) is not None


def layout_error(dataset: DataSet, folder: Path, faults: list[str]) -> MtfedError:
    """Return the error for a folder that does not contain a set, with the faults and the expected tree."""
    hint = f"\n{dataset.access}" if dataset.access else ""
    return MtfedError(
        f"{folder} does not contain {dataset.title} in its official form: {'; '.join(faults)}. Expected:\n"
        f"{dataset.layout_tree(folder)}{hint}"
    )
