"""The table of file formats, and the names of files and slices.

To add a format, write a module with its reader and add one row to :data:`FORMATS`. Code outside this package adds its
own with :func:`register_format`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import PurePosixPath
from typing import Any

from ...errors import MtfedError
from .picture import Picture
from .source_file import SourceFile

Reader = Callable[[SourceFile, int], Picture]  # a file and the model's dimensions (2 or 3) -> its picture
Companions = Callable[[SourceFile], tuple[str, ...]]  # a file -> paths of the other files that its image consists of
MAX_DOTS = 2  # dots in a suffix such as .nii.gz
_SLICE = re.compile(r"(.+)#(\d{1,9})", re.DOTALL)  # FILE#k, the name of slice k of a volume


@dataclass(frozen=True)
class Format:
    """One file format. A function may be given as "module:function", which is imported when it is first needed."""

    name: str  # the name that people use
    suffixes: tuple[str, ...]  # suffixes in lower case, each with its dot
    reader: Reader | str  # reads a file
    companions: Companions | str | None = None  # names the files that belong to a header file
    is_volume: bool = False  # whether a file always holds a volume
    is_dicom: bool = False
    is_archive: bool = False  # whether a file holds several arrays by name, as .npz does
    packages: tuple[str, ...] = ()  # distributions whose version can change the values; the image cache depends on them

    def read(self, file: SourceFile, dimensions: int) -> Picture:
        """Return the picture in a file."""
        return _load(self.reader)(file, dimensions)

    def companions_of(self, file: SourceFile) -> tuple[str, ...]:
        """Return the paths of the other files that an image consists of."""
        return _load(self.companions)(file) if self.companions else ()


@cache
def _load(function: Any) -> Any:
    """Return a function that may be given as "module:function"; a leading dot means this package."""
    if not isinstance(function, str):
        return function
    module, name = function.split(":")
    return getattr(import_module(module, __package__), name)


FORMATS: dict[str, Format] = {}  # formats by name
_BY_SUFFIX: dict[str, Format] = {}


def register_format(format: Format) -> None:
    """Add a format.

    Raises:
        MtfedError: if a format of this name or with one of its suffixes is registered, or if a suffix is malformed.
    """
    if format.name in FORMATS:
        raise MtfedError(f"Expected a new format, got {format.name}, which is registered; choose another name.")
    for suffix in format.suffixes:
        if suffix in _BY_SUFFIX:
            raise MtfedError(
                f"Expected a suffix that no other format has, got {suffix} for {format.name}, which belongs to "
                f"{_BY_SUFFIX[suffix].name}; choose another suffix."
            )
        if suffix != suffix.lower() or not suffix.startswith(".") or suffix.count(".") > MAX_DOTS:
            raise MtfedError(f"Expected a suffix in lower case, such as .nii.gz, got {suffix!r} for {format.name}.")
    FORMATS[format.name] = format
    _BY_SUFFIX.update(dict.fromkeys(format.suffixes, format))


def split_slice(name: str) -> tuple[str, int | None]:
    """Return the path in a manifest's name and the index of the slice, ``None`` if the name means the whole file.

    >>> split_slice("ct.nii.gz#12"), split_slice("ct.nii.gz")
    (('ct.nii.gz', 12), ('ct.nii.gz', None))
    """
    match = _SLICE.fullmatch(name) if "#" in name else None
    return (match[1], int(match[2])) if match else (name, None)


def file_of(name: str) -> str:
    """Return the file or folder that a name in a manifest refers to, without the index of a slice."""
    return split_slice(name)[0]


def suffix_of(name: str) -> str:
    """Return the suffix of a file name if it belongs to a format, else ""."""
    parts = name.lower().rsplit("/", 1)[-1].split(".")
    suffixes = (f".{'.'.join(parts[-count:])}" for count in (2, 1) if len(parts) > count)
    return next((suffix for suffix in suffixes if suffix in _BY_SUFFIX), "")


def stem_of(name: str) -> str:
    """Return a file's name without its folder and its suffix, such as "liver" for "scans/liver.nii.gz"."""
    last = name.rsplit("/", 1)[-1]
    suffix = suffix_of(last)
    return last[: -len(suffix)] if suffix else PurePosixPath(last).stem


def format_of(name: str) -> Format | None:
    """Return the format that a file's suffix stands for, ``None`` if it stands for none."""
    return _BY_SUFFIX.get(suffix_of(name))


def is_volume_file(name: str) -> bool:
    """Return whether a file's suffix stands for a format that only holds volumes."""
    format = format_of(name)
    return format is not None and format.is_volume


_PILLOW = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2", ".pgm", ".ppm", ".pbm", ".pnm")
# nibabel turns the axes of every volume. The last five decode compressed DICOM where they are installed.
_DICOM = ("pydicom", "nibabel", "pillow", "python-gdcm", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg",
          "pylibjpeg-rle", "pyjpegls")  # fmt: skip
_METAIMAGE, _SITK = ".metaimage:read_metaimage", ("SimpleITK", "nibabel")
for _format in (
    Format("picture", _PILLOW, ".pillow:read_picture_file", packages=("pillow",)),
    Format("DICOM", (".dcm", ".dicom", ".ima"), ".dicom:read_dicom", is_dicom=True, packages=_DICOM),
    Format("NIfTI", (".nii", ".nii.gz"), ".nifti:read_nifti", is_volume=True, packages=("nibabel",)),
    Format("NRRD", (".nrrd",), ".nrrd:read_nrrd", is_volume=True, packages=("pynrrd", "nibabel")),
    Format("MetaImage", (".mha",), _METAIMAGE, is_volume=True, packages=_SITK),
    Format("MetaImage header", (".mhd",), _METAIMAGE, ".metaimage:data_files", is_volume=True, packages=_SITK),
    Format("NumPy array", (".npy",), ".arrays:read_npy", packages=("numpy",)),
    Format("NumPy archive", (".npz",), ".arrays:read_npz", is_archive=True, packages=("numpy",)),
):
    register_format(_format)
