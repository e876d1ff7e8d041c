"""The image formats that hospitals have, read into arrays.

A manifest names an image, or a label that lies over one, by a path in the site's folder:

===============================  =======================================================================================
``.png .jpg .tif .bmp .gif`` ...  pictures, of 8 or 16 bits, grey or in colour; pages of a TIFF are a volume's slices
``.dcm``, or no suffix at all     DICOM: one frame or several, compressed or not; rescaled, its window kept
a folder                          the DICOM files right in it, which must be one series
``.nii .nii.gz``                  NIfTI with one volume
``.nrrd``                         NRRD with its values in the same file
``.mha .mhd``                     MetaImage, with ``pip install "mtfed[metaimage]"``
``.npy``                          an array
``.npz``                          arrays: ``image``, ``mask``, and ``spacing``, in mm along the axes
FILE#k                            slice k along z of a volume, from 0, for models of pictures
===============================  =======================================================================================

A volume is an array with the axes z, y, x: z goes to the patient's head, y to the back, x to the left, as DICOM's axes
do (LPS). Formats that say how their axes lie are turned so, without resampling: an oblique volume along the closest
axes. Others (``.npy``, ``.npz``, TIFF) are taken to lie so already; so is what they hold over an image of another
format. A picture is (row, column), or (row, column, colour); a single DICOM image is left as it was taken.

Files come from anywhere: what a header declares is checked before it is unpacked, and whatever cannot be read raises
one :class:`mtfed.errors.MtfedError` that names the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from ...errors import MtfedError
from ..manifest import SiteData
from .arrays import read_npy, read_npz
from .picture import MAX_VALUES, Picture
from .source_file import SourceFile
from .volume_cache import VolumeCache

__all__ = ["MAX_VALUES", "SUFFIXES", "Picture", "files_of", "read_picture", "suffix_of"]
Reader = Callable[[SourceFile, int], Picture]


def _later(module: str, function: str) -> Reader:
    """Return a reader of a library that is imported when it is first needed."""

    def read(file: SourceFile, dimensions: int) -> Picture:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{module}"), function)(file, dimensions)

    return read


_PICTURES, _DICOM = _later("pillow", "read_picture_file"), _later("dicom", "read_dicom")
_METAIMAGE = _later("metaimage", "read_metaimage")
SUFFIXES: dict[str, Reader] = {  # what is taken for an image
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2"), _PICTURES),
    **dict.fromkeys((".pgm", ".ppm", ".pbm", ".pnm"), _PICTURES),
    **dict.fromkeys((".dcm", ".dicom", ".ima"), _DICOM),
    **dict.fromkeys((".nii", ".nii.gz"), _later("nifti", "read_nifti")),
    ".nrrd": _later("nrrd", "read_nrrd"),
    **dict.fromkeys((".mha", ".mhd"), _METAIMAGE),
    ".npy": read_npy,
    ".npz": read_npz,
}


def suffix_of(name: str) -> str:
    """Return the suffix of a name that :data:`SUFFIXES` knows, "" if it has none."""
    parts = name.lower().rsplit("/", 1)[-1].split(".")
    found = (f".{'.'.join(parts[-count:])}" for count in (2, 1) if len(parts) > count)
    return next((suffix for suffix in found if suffix in SUFFIXES), "")


def read_picture(
    data: SiteData, name: str, what: str, dimensions: int, opened: Mapping[str, np.ndarray] | None = None
) -> Picture:
    """Read an image or a label.

    Args:
        data: the site's.
        name: path of a file or folder within the site's, or FILE#k.
        what: "image", or what kind of label; of an ``.npz`` the array of this name is meant.
        dimensions: 2 or 3, of what the model sees.
        opened: the arrays of an ``.npz``, where it is open already.

    Raises:
        MtfedError: naming the file, if there is no such picture in it.
    """
    path, index = split_slice(name)
    file = SourceFile(data, path, what)
    if index is None:
        picture = _read(file, dimensions, opened)
    else:
        volume = _kept_volume(file)
        if dimensions == 3:
            raise MtfedError(f"Expected {what} {name} of site {data.key} to be a volume; leave out #{index}.")
        if volume.values.ndim < 3 or index >= len(volume.values):
            raise file.error(f"it has the slices 0 to {len(volume.values) - 1}, there is no slice {index}")
        picture = volume.slice(index)
    return _checked(picture, name, file, dimensions)


def _read(file: SourceFile, dimensions: int, opened: Mapping[str, np.ndarray] | None = None) -> Picture:
    suffix = suffix_of(file.name)
    if suffix == ".npz":
        return read_npz(file, dimensions, opened)
    if suffix:
        return SUFFIXES[suffix](file, dimensions)
    if names := _inside(file):
        from .dicom import read_series

        return read_series(file, names, dimensions)
    content = file.read()
    from .dicom import is_dicom, read_dicom

    return read_dicom(file, dimensions, content) if is_dicom(content) else _PICTURES(file, dimensions)


def _checked(picture: Picture, name: str, file: SourceFile, dimensions: int) -> Picture:
    """Refuse values that are no numbers or have other axes than they should."""
    values, spacing = picture.values, picture.spacing
    where = f"{file.what[:1].upper()}{file.what[1:]} {name} of site {file.data.key}"
    if values.dtype.kind not in "buif" or not values.size:
        raise MtfedError(
            f"{where} should be an array of numbers; it has type {values.dtype} and shape {list(values.shape)}."
        )
    file.check_size(*values.shape)
    if dimensions == 2 and values.ndim != 2 and (values.ndim != 3 or values.shape[2] != 3):
        raise MtfedError(f"{where} should have the axes (H, W) or (H, W, 3), its shape is {list(values.shape)}.")
    if dimensions == 3 and values.ndim != 3:
        raise MtfedError(f"{where} should have 3 axes, its shape is {list(values.shape)}.")
    known = spacing is not None and bool(np.isfinite(spacing).all())
    return picture if known or spacing is None else replace(picture, spacing=None)


def split_slice(name: str) -> tuple[str, int | None]:
    """Return the path of a name, and the slice that it means, None if it means the whole."""
    found = re.fullmatch(r"(.+)#(\d{1,9})", name)
    return (found[1], int(found[2])) if found else (name, None)


def files_of(data: SiteData, name: str) -> tuple[str, ...]:
    """Return the paths of all files that a name stands for: of a folder, those right in it; FILE#k is of FILE."""
    path, _ = split_slice(name)
    file = SourceFile(data, path, "image")
    if suffix_of(path) == ".mhd":
        from .metaimage import data_file

        beside = data_file(file)
        return (path, beside) if beside else (path,)
    return (path,) if suffix_of(path) else tuple(_inside(file)) or (path,)


def _inside(file: SourceFile) -> list[str]:
    root = file.data.root
    return [name for name in root.list(file.name) if not (root.path / name).is_dir()]


_KEPT = VolumeCache()


def _kept_volume(file: SourceFile) -> Picture:
    try:
        stamps = tuple(file.data.root.stamp(name) for name in files_of(file.data, file.name))
    except (OSError, KeyError):
        return _read(file, 3)  # which says what is wrong
    key = (file.data.root.path, file.name, file.what, stamps)
    return _KEPT.get(key, file.is_label, lambda: _read(file, 3))
