"""MetaImage, ``.mha`` and ``.mhd``, by SimpleITK.

SimpleITK follows a header to any other file. It is therefore given a copy whose header contains known fields only.
"""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import numpy as np

from ...errors import MtfedError
from .inflate import inflate
from .picture import Picture
from .source_file import SourceFile
from .volume import lay_out

BROKEN = "it is broken, or not a MetaImage; repair or remove it"
WIDTHS = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
MAX_LENGTH_HEADER = 2**16  # bytes
# Values and their positions depend on these. Any other may be a file name in disguise, as "ElementDataFile : =".
FIELDS = (
    "ObjectType", "NDims", "DimSize", "BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "ElementType",
    "ElementNumberOfChannels", "ElementSpacing", "ElementSize", "Offset", "Position", "Origin", "TransformMatrix",
    "Orientation", "Rotation", "CenterOfRotation", "AnatomicalOrientation",
)  # fmt: skip
VALUE = re.compile(r"[\w+. \t-]*", re.ASCII)  # no path without a slash, no second field without = or :


def read_metaimage(file: SourceFile, dimensions: int) -> Picture:
    """Read a volume."""
    try:
        import SimpleITK as sitk
    except ImportError:
        raise MtfedError(
            f"{file.what.capitalize()} {file.name} of site {file.site.key} is a MetaImage, which SimpleITK reads; "
            'install it with: pip install "mtfed[metaimage]".'
        ) from None
    content = file.read()
    with file.reading(BROKEN):
        fields, rest = _header(content)
        data_file = fields["ElementDataFile"]
        if data_file.upper() != "LOCAL":
            rest = file.other(_data_path(file, data_file)).read()
        sizes = [int(size) for size in fields["DimSize"].split()]
        file.check_size(*sizes)
        if int(fields.get("ElementNumberOfChannels", "1")) != 1 or len(sizes) not in (2, 3):
            raise file.error(f"it should be one volume of numbers, it has {len(sizes)} axes; save each as a file")
        size = math.prod(sizes) * WIDTHS[fields["ElementType"].removeprefix("MET_").removeprefix("U")]
        if fields.get("CompressedData", "False").lower() == "true":
            rest = inflate(rest, size, zlib.MAX_WBITS | 32)
        plain = fields.get("BinaryData", "True").lower() == "true" and not int(fields.get("HeaderSize", "0"))
        if not plain or len(rest) < size:
            raise ValueError("not as many bytes as declared")
        known = {key: value for key, value in fields.items() if key in FIELDS}
        if not all(map(VALUE.fullmatch, known.values())):
            raise ValueError("neither numbers nor a word")
        known["ElementDataFile"] = "LOCAL"  # the last field of a header
        with TemporaryDirectory() as folder:
            copy = Path(folder, "image.mha")
            with open(copy, "wb") as target:
                target.write("".join(f"{key} = {value}\n" for key, value in known.items()).encode())
                target.write(memoryview(rest)[:size])
            image = sitk.ReadImage(str(copy), imageIO="MetaImageIO")
        values = sitk.GetArrayFromImage(image).transpose()
        if len(sizes) == 2:
            return lay_out(values[..., None], file, dimensions, spacing=(*image.GetSpacing(), math.nan))
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        return lay_out(values, file, dimensions, affine)


def data_files(file: SourceFile) -> tuple[str, ...]:
    """Return the path of the file that contains the values of a header file; none if the header contains them."""
    with file.reading(BROKEN):
        name = _header(file.read())[0]["ElementDataFile"]
        return () if name.upper() == "LOCAL" else (_data_path(file, name),)


def _header(content: bytes) -> tuple[dict[str, str], bytes]:
    """Return the fields of a header, and the bytes after it."""
    end = re.search(rb"^ElementDataFile\s*=[^\n]*\n?", content[:MAX_LENGTH_HEADER], re.MULTILINE)
    if not end:
        raise ValueError("no end of the header")
    lines = content[: end.end()].decode("ascii").splitlines()
    pairs = (line.split("=", 1) for line in lines if line.strip())
    return {key.strip(): value.strip() for key, value in pairs}, content[end.end() :]


def _data_path(file: SourceFile, name: str) -> str:
    """Return the path of the data file that a header names; it must be in the header's folder."""
    if not re.fullmatch(r"[\w][\w .()-]*", name) or name.upper().startswith("LIST"):
        raise file.error(f"its values should be in one file next to it, not in {name!r}; save both as one .mha")
    return str(PurePosixPath(file.name).with_name(name))
