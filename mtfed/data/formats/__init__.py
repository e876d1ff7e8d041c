"""Read images and labels in the file formats that hospitals use into arrays.

A manifest names an image, or a label that covers one, by its path in the site's folder:

================================  ======================================================================================
``.png .jpg .tif .bmp .gif`` ...  pictures of 8 or 16 bits, grey or in colour; the pages of a TIFF are a volume's slices
``.dcm``, or no suffix            DICOM with one or several frames, compressed or not; rescaled, with its window
a folder                          the DICOM files directly in it, which must be one series
``.nii .nii.gz``                  NIfTI with one volume
``.nrrd``                         NRRD with header and values in one file
``.mha .mhd``                     MetaImage; needs ``pip install "mtfed[metaimage]"``
``.npy``                          an array
``.npz``                          arrays by name: ``image``, ``mask``, and ``spacing`` in mm along the axes
FILE#k                            slice k along z of a volume, counted from 0, for models of 2D pictures
================================  ======================================================================================

The table of formats is :data:`FORMATS` in :mod:`.registry`. To add a format, add a module and a row there.

A volume is an array with the axes z, y, x. As in DICOM (LPS), z points to the patient's head, y to the back and x to
the left. Formats that store the direction of their axes are flipped and transposed to this order without resampling; an
oblique volume is aligned with the closest axes. Formats that store no direction (``.npy``, ``.npz``, TIFF) are assumed
to be in this order already, even when they label an image in another format. A picture has the axes (row, column) or
(row, column, colour). A single DICOM image keeps the orientation in which it was taken.

Files are not trusted: the sizes that a header declares are checked before anything is unpacked, and every file that
cannot be read raises a :class:`mtfed.errors.MtfedError` that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ...errors import MtfedError
from .picture import MAX_VALUES, Picture, VolumeCache
from .registry import (
    FORMATS,
    Format,
    file_of,
    format_of,
    is_volume_file,
    register_format,
    split_slice,
    stem_of,
    suffix_of,
)
from .source_file import SiteFiles, SourceFile

__all__ = ["FORMATS", "MAX_VALUES", "Format", "Picture", "SiteFiles", "file_of", "files_of", "format_of"]
__all__ += ["is_volume_file", "read_picture", "register_format", "split_slice", "stem_of", "suffix_of"]


def read_picture(
    site: SiteFiles, name: str, what: str, dimensions: int, arrays: Mapping[str, np.ndarray] | None = None
) -> Picture:
    """Read an image or a label.

    Args:
        site: the site whose files are read.
        name: path of a file or folder within the site's folder, or FILE#k.
        what: "image", or the kind of label. From an ``.npz`` file, the array of this name is read.
        dimensions: 2 or 3, the dimensions of the model's input.
        arrays: the arrays of an ``.npz`` file that is open already.

    Raises:
        MtfedError: if the file contains no such picture; the error names the file.
    """
    path, index = split_slice(name)
    file = SourceFile(site, path, what, arrays)
    if index is None:
        return _check(_read(file, dimensions), name, file, dimensions)
    volume = _read_cached_volume(file)
    if dimensions == 3:
        raise MtfedError(f"Expected {what} {name} of site {site.key} to be a volume; leave out #{index}.")
    if volume.values.ndim < 3 or index >= len(volume.values):
        raise file.error(f"it has the slices 0 to {len(volume.values) - 1}, but no slice {index}")
    return _check(volume.slice(index), name, file, dimensions)


def _read(file: SourceFile, dimensions: int) -> Picture:
    if format := format_of(file.name):
        return format.read(file, dimensions)
    if names := _files_in_folder(file):
        from .dicom import read_series

        return read_series(file, names, dimensions)
    content = file.read()
    from .dicom import is_dicom, read_dicom

    if is_dicom(content):
        return read_dicom(file, dimensions, content)
    return FORMATS["picture"].read(file, dimensions)


def _check(picture: Picture, name: str, file: SourceFile, dimensions: int) -> Picture:
    """Return a picture without a spacing that is not finite; refuse values that are not numbers or have wrong axes."""
    values, spacing = picture.values, picture.spacing
    where = f"{file.what[:1].upper()}{file.what[1:]} {name} of site {file.site.key}"
    if values.dtype.kind not in "buif" or not values.size:
        actual = f"type {values.dtype} and shape {list(values.shape)}"
        raise MtfedError(f"{where} should be an array of numbers; it has {actual}.")
    file.check_size(*values.shape)
    if dimensions == 2 and values.ndim != 2 and (values.ndim != 3 or values.shape[2] != 3):
        raise MtfedError(f"{where} should have the axes (H, W) or (H, W, 3), its shape is {list(values.shape)}.")
    if dimensions == 3 and values.ndim != 3:
        raise MtfedError(f"{where} should have 3 axes, its shape is {list(values.shape)}.")
    return picture if spacing is None or np.isfinite(spacing).all() else replace(picture, spacing=None)


def files_of(site: SiteFiles, name: str) -> tuple[str, ...]:
    """Return the paths of all files that a name refers to.

    These are the files directly in a folder, a header file with its companions, or FILE if the name is FILE#k.
    """
    path, _ = split_slice(name)
    file = SourceFile(site, path, "image")
    if format := format_of(path):
        return (path, *format.companions_of(file))
    return tuple(_files_in_folder(file)) or (path,)


def _files_in_folder(file: SourceFile) -> list[str]:
    root = file.site.root
    return [name for name in root.list(file.name) if not (root.path / name).is_dir()]


_VOLUMES = VolumeCache()


def _read_cached_volume(file: SourceFile) -> Picture:
    try:
        stamps = tuple(file.site.root.stamp(name) for name in files_of(file.site, file.name))
    except (OSError, KeyError):
        return _read(file, 3)  # raises an error that names the file
    key = (file.site.root.path, file.name, file.what, stamps)
    return _VOLUMES.get(key, file.is_label, lambda: _read(file, 3))
