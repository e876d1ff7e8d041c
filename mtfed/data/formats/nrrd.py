"""NRRD, by pynrrd. Header and values must be in one file, because a header that names other files could name any."""

from __future__ import annotations

import io
import math
import zlib
from dataclasses import replace
from typing import Any

import numpy as np

from .inflate import inflate, unpack_bz2
from .picture import Picture
from .source_file import SourceFile
from .volume import lay_out

BROKEN = "it is broken, or not an NRRD file; repair or remove it"
SPACES = {  # signs that turn x, y, z to LPS; other spaces do not define the patient's position
    "left-posterior-superior": (1, 1, 1), "right-anterior-superior": (-1, -1, 1), "left-anterior-superior": (1, -1, 1),
    "lps": (1, 1, 1), "ras": (-1, -1, 1), "las": (1, -1, 1),
}  # fmt: skip
UNITS = {"m": 1000.0, "cm": 10.0, "um": 0.001, "µm": 0.001}
TYPES = {  # the format's names for NumPy's types
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",), "f8": ("double",),
}  # fmt: skip
WIDTHS = {name: int(code[1]) for code, names in TYPES.items() for name in names}
MAX_TEXT = 64  # characters of a value in a text file


def read_nrrd(file: SourceFile, dimensions: int) -> Picture:
    """Read a volume."""
    content = file.read()
    with file.reading(BROKEN):
        import nrrd

        stream = io.BytesIO(content)
        header = nrrd.read_header(stream)
        fields = {key.replace(" ", "").lower() for key in header}
        if fields & {"datafile", "lineskip", "byteskip"}:
            raise file.error("its header names another file or place for its values; save both as one .nrrd")
        sizes = tuple(map(int, header["sizes"]))
        file.check_size(*sizes)
        size = math.prod(sizes) * WIDTHS[header["type"]]
        rest, encoding = content[stream.tell() :], header["encoding"].lower()
        if encoding in ("gzip", "gz"):
            rest, encoding = inflate(rest, size, zlib.MAX_WBITS | 16), "raw"
        elif encoding in ("bzip2", "bz2"):
            rest, encoding = unpack_bz2(rest, size), "raw"
        if len(rest) > MAX_TEXT * size or (encoding == "raw" and len(rest) < size):
            raise ValueError("not as many bytes as declared")
        values = nrrd.read_data(header | {"encoding": encoding}, io.BytesIO(rest))
        return _lay_out(values, header, file, dimensions)


def _lay_out(values: np.ndarray, header: dict[str, Any], file: SourceFile, dimensions: int) -> Picture:
    rows = np.asarray(header.get("space directions", np.empty((0, 3))), np.float64)
    # An axis that is not spatial must have one value, such as one channel or point in time.
    has_directions = len(rows) == values.ndim
    spatial = np.array([not has_directions or bool(np.isfinite(rows[axis]).all()) for axis in range(values.ndim)])
    if spatial.sum() > 3:
        spatial[[axis for axis, size in enumerate(values.shape) if size == 1][: spatial.sum() - 3]] = False
    others = [size for size, is_spatial in zip(values.shape, spatial, strict=True) if not is_spatial]
    if any(size > 1 for size in others) or spatial.sum() > 3:
        axes = " x ".join(map(str, values.shape))
        raise file.error(f"it should be one volume, it has the axes {axes}; save each as a file")
    values = values.squeeze(tuple(np.flatnonzero(~spatial).tolist()))
    missing = 3 - values.ndim
    values = values.reshape(*values.shape, *(1,) * missing)
    units = [UNITS.get(str(unit).lower(), 1.0) for unit in header.get("space units", [])] or [1.0]
    if has_directions and spatial.sum() == 3 and rows.shape[1] == 3:
        if signs := SPACES.get(str(header.get("space", "")).lower()):
            affine = np.eye(4)
            affine[:3, :3] = rows[spatial].T
            affine[:3, 3] = header.get("space origin", np.zeros(3))
            affine[:3] *= np.multiply(signs, units[0])[:, None]
            picture = lay_out(values, file, dimensions, affine)
            return picture if "space origin" in header else replace(picture, affine=None)
        spacing = tuple((np.linalg.norm(rows[spatial], axis=1) * units[0]).tolist())
        return lay_out(values, file, dimensions, spacing=spacing)
    if "spacings" in header:
        steps = np.asarray(header["spacings"], np.float64)[spatial].tolist() + [math.nan] * missing
        return lay_out(values, file, dimensions, spacing=tuple(steps))
    return lay_out(values, file, dimensions)
