"""Pictures, by Pillow, as viewers show them; the pages of a TIFF or GIF are a volume's slices."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .picture import Picture
from .source_file import SourceFile
from .volume import only_slice

PHOTOMETRIC = 262  # tag of a TIFF; if its value is 0, zero is white
# Not all formats of Pillow: some of the others start programs.
PILLOW_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM", "WEBP", "JPEG2000")


def read_picture_file(file: SourceFile, dimensions: int) -> Picture:
    """Read a picture, or all its pages.

    An image with a palette or transparency is converted to colours; a label keeps the indices into the palette.
    """
    content = file.read()
    # The warnings are about sizes, which are checked below, and about odd tags.
    with warnings.catch_warnings(action="ignore"), file.reading("it is broken; repair or remove it"):
        try:
            image = Image.open(io.BytesIO(content), formats=PILLOW_FORMATS)
        except UnidentifiedImageError:
            raise file.error(_reason(content)) from None
        except Image.DecompressionBombError:
            raise file.error("it declares more pixels than a picture may have; crop or resample it") from None
        pages = getattr(image, "n_frames", 1) if image.format in ("TIFF", "GIF") else 1
        file.check_size(pages, image.height, image.width, len(image.getbands()))
        if pages == 1:
            picture = Picture(_values(image, file))
            if dimensions == 3:
                raise file.error(
                    "it is a picture, and the model sees volumes; name a DICOM folder, a NIfTI, NRRD or TIFF stack, or "
                    f"save the array with numpy.savez({file.what}=...)"
                )
            return picture
        stack = Picture(_stack(image, pages, file))
    return stack if dimensions == 3 else only_slice(stack, file)


def _stack(image: Image.Image, pages: int, file: SourceFile) -> np.ndarray:
    first = _values(image, file)
    stack = np.empty((pages, *first.shape), first.dtype)
    for page in range(pages):
        image.seek(page)
        if (image.height, image.width) != first.shape[:2]:  # before the page is unpacked
            raise file.error("its pages have several sizes; keep those that are its slices")
        values = _values(image, file)
        if values.shape != first.shape or values.dtype != first.dtype:
            raise file.error("its pages have several types of pixels; save all with the same type")
        stack[page] = values
    return stack


def _values(image: Image.Image, file: SourceFile) -> np.ndarray:
    """Return the current page of an image as (H, W) or (H, W, 3)."""
    try:
        image.load()
    except Exception as error:
        raise file.error(f"{str(error).rstrip('.') or 'it is broken'}; repair or remove it") from error
    zero_is_white = image.format == "TIFF" and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0  # per page
    if image.format not in ("TIFF", "GIF") or getattr(image, "n_frames", 1) == 1:
        with suppress(Exception):  # a broken EXIF block is ignored
            ImageOps.exif_transpose(image, in_place=True)  # viewers show it so, and boxes are drawn in it
    if zero_is_white:
        return _invert_white_zero(np.asarray(image), file)
    # Pillow's conversion would cut off values of 16 or more bits at 255.
    if file.is_label or image.mode[0] in "IF" or image.mode in ("L", "RGB"):
        return np.asarray(image)
    return np.asarray(image.convert("L" if image.mode in ("1", "LA", "La") else "RGB"))


def _invert_white_zero(values: np.ndarray, file: SourceFile) -> np.ndarray:
    """Return the values of a TIFF whose zero is white: the stored values for a label, the displayed ones for an image.

    Pillow inverts values of up to 8 bits and leaves others as they are stored.
    """
    if values.dtype == np.uint16:
        return values if file.is_label else 65535 - values
    if values.dtype == bool:
        return ~values if file.is_label else values * np.uint8(255)
    return 255 - values if file.is_label and values.dtype == np.uint8 else values


def _reason(content: bytes) -> str:
    if content[128:132] == b"DICM":
        return "it is a DICOM file under a picture's name; give it a name in .dcm"
    return "it cannot be read as a picture; repair it, or save it as .png or .npz"
