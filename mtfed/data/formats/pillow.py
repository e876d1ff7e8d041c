"""Pictures that Pillow reads: as viewers show them, of 8 bits or more; pages of a TIFF or GIF are a volume's slices."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .picture import Picture
from .source_file import SourceFile
from .volume import only_slice

PHOTOMETRIC = 262  # the tag of a TIFF that says what its zero is: white, if it is 0
# Not all that Pillow knows: some of the others start programs.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM", "WEBP", "JPEG2000")


def read_picture_file(file: SourceFile, dimensions: int) -> Picture:
    """Read a picture, or all pages of one.

    Of a palette or of transparency an image shows the colours; a label's numbers are the palette's places.
    """
    content = file.read()
    with warnings.catch_warnings(), file.reading("it is broken; mend or remove it"):
        warnings.simplefilter("ignore")  # of sizes, which are checked here, and of odd tags
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        except UnidentifiedImageError:
            raise file.error(_other(content)) from None
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
        if (image.height, image.width) != first.shape[:2]:  # before it is unpacked
            raise file.error("its pages have several sizes; keep those that are its slices")
        values = _values(image, file)
        if values.shape != first.shape or values.dtype != first.dtype:
            raise file.error("its pages have several kinds of pixels; save them alike")
        stack[page] = values
    return stack


def _values(image: Image.Image, file: SourceFile) -> np.ndarray:
    """Return (H, W) or (H, W, 3) of the page that an image stands at."""
    try:
        image.load()
    except Exception as error:
        raise file.error(f"{str(error).rstrip('.') or 'it is broken'}; mend or remove it") from error
    white = image.format == "TIFF" and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0  # of this page
    if image.format not in ("TIFF", "GIF") or getattr(image, "n_frames", 1) == 1:
        with suppress(Exception):  # a broken EXIF block turns nothing
            ImageOps.exif_transpose(image, in_place=True)  # as viewers show it, and boxes are drawn
    if white:
        return _of_white_zero(np.asarray(image), file)
    # Of 16 or more bits, which Pillow's conversion would cut off at 255.
    if file.is_label or image.mode[0] in "IF" or image.mode in ("L", "RGB"):
        return np.asarray(image)
    return np.asarray(image.convert("L" if image.mode in ("1", "LA", "La") else "RGB"))


def _of_white_zero(values: np.ndarray, file: SourceFile) -> np.ndarray:
    """Return the values of a TIFF whose zero is white: a label's as they are stored, an image's as they are shown.

    Pillow has inverted those of up to 8 bits, and left others as they are stored.
    """
    if values.dtype == np.uint16:
        return values if file.is_label else 65535 - values
    if values.dtype == bool:
        return ~values if file.is_label else values * np.uint8(255)
    return 255 - values if file.is_label and values.dtype == np.uint8 else values


def _other(content: bytes) -> str:
    if content[128:132] == b"DICM":
        return "it is a DICOM file under a picture's name; give it a name in .dcm"
    return "it is no picture that can be read; mend it, or save it as .png or .npz"
