"""NIfTI, ``.nii`` and ``.nii.gz``, by nibabel."""

from __future__ import annotations

import gzip
import io
import math
from dataclasses import replace
from typing import IO, Any

import numpy as np

from .picture import Picture
from .source_file import SourceFile
from .volume import TO_LPS, lay_out

BROKEN = "it is broken, or not a NIfTI file; repair or remove it"
UNITS = {"meter": 1000.0, "micron": 0.001}  # units in mm; all others are taken for mm
MAX_EXTENSIONS = 2**24  # bytes between header and values
MAX_RATIO = 1032  # bytes that gzip can pack into one


def read_nifti(file: SourceFile, dimensions: int) -> Picture:
    """Read a volume; its values are scaled by the factors in its header."""
    content = file.read()
    from nibabel.imageglobals import LoggingOutputSuppressor

    with LoggingOutputSuppressor(), file.reading(BROKEN):  # nibabel prints what it finds odd in headers
        stream: IO[bytes] = io.BytesIO(content)
        if content[:2] == b"\x1f\x8b":
            with gzip.open(stream) as unpacked:
                return _read(unpacked, len(content) * MAX_RATIO, file, dimensions)  # type: ignore[arg-type]
        return _read(stream, len(content), file, dimensions)


def _read(stream: IO[bytes], max_bytes: int, file: SourceFile, dimensions: int) -> Picture:
    from nibabel.nifti1 import Nifti1Header, Nifti1Image
    from nibabel.nifti2 import Nifti2Header, Nifti2Image

    start = stream.read(Nifti2Header.sizeof_hdr)  # the longer of both headers
    is_nifti2 = start[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")
    header = Nifti2Header(start) if is_nifti2 else Nifti1Header(start[: Nifti1Header.sizeof_hdr])
    if not bytes(header["magic"]).startswith(b"n+"):
        raise file.error("its values are in another file; save header and values as one .nii.gz")
    shape = tuple(map(int, header.get_data_shape()))
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    file.check_size(*shape)
    if len(shape) > 3 or header.get_data_dtype().kind not in "buif":
        raise file.error(
            f"it should be one volume of numbers, it has the axes {' x '.join(map(str, shape))} and type "
            f"{header.get_data_dtype()}; save each volume as a file"
        )
    offset = header.get_data_offset()
    if not header.sizeof_hdr <= offset <= MAX_EXTENSIONS:
        raise file.error(BROKEN)
    size = offset + math.prod(shape) * header.get_data_dtype().itemsize
    if size > max_bytes:
        raise file.error(f"it is too short for the {size} bytes that it declares; copy it again")
    whole = start + stream.read(max(size - len(start), 0))  # nothing that follows is unpacked
    if len(whole) < size:
        raise file.error(f"it ends after {len(whole)} of the {size} bytes that it declares; copy it again")
    image = (Nifti2Image if is_nifti2 else Nifti1Image).from_bytes(whole)
    values = _scaled(image).reshape((*shape, 1, 1)[:3], order="F")
    affine = TO_LPS @ image.affine
    affine[:3] *= UNITS.get(header.get_xyzt_units()[0], 1.0)
    low, high = float(header["cal_min"]), float(header["cal_max"])
    picture = lay_out(values, file, dimensions, affine, window=(low, high) if low < high < math.inf else None)
    # Without both codes, the affine is one that nibabel assumes; other programs assume others.
    unplaced = not int(header["qform_code"]) and not int(header["sform_code"])
    return replace(picture, unplaced="its qform_code and sform_code are 0") if unplaced else picture


def _scaled(image: Any) -> np.ndarray:
    proxy = image.dataobj
    if proxy.slope == 1 and proxy.inter == 0:
        return np.asarray(proxy.get_unscaled())
    return np.asarray(image.get_fdata(caching="unchanged", dtype=np.float32))
