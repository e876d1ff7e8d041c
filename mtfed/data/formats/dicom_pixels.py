"""The pixels of a DICOM file: checks before they are decoded, and their values or colours."""

from __future__ import annotations

import numpy as np
from pydicom import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut, apply_modality_lut, get_decoder
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGBaseline8Bit, JPEGExtended12Bit, RLELossless

from .codec import DECODER
from .source_file import SourceFile

# The plugins of pydicom that are safe in this process. GDCM crashes its process on some broken files.
PLUGINS = dict.fromkeys((JPEGBaseline8Bit, JPEGExtended12Bit, JPEG2000Lossless, JPEG2000), "pillow")
PLUGINS[RLELossless] = "pydicom"
MAX_LENGTH_RLE = 2**22  # bytes that are unpacked in this process: broken data can unpack to 64 times as many
SLACK = 1024  # bytes of a frame for its header and padding
MAX_FRAMES = 2**14  # frames of one file; looking up the attributes of each takes time
MIN_ITEM = 8  # bytes of a compressed frame: its tag and its length


def check_pixels(dataset: Dataset, file: SourceFile) -> None:
    """Refuse a file without pixels, or with more than an image may have."""
    if "PixelData" not in dataset:
        sop_class = dataset.file_meta.get("MediaStorageSOPClassUID")
        # Without a known name, the UID is arbitrary text from the file.
        name = f" ({sop_class.name})" if sop_class and sop_class.name != sop_class else ""
        raise file.error(f"it holds no picture{name}; name a file that does")
    frames, *rest = shape = (
        int(dataset.get("NumberOfFrames") or 1), dataset.Rows, dataset.Columns, int(dataset.get("SamplesPerPixel", 1))
    )  # fmt: skip
    file.check_size(*shape)
    is_compressed = dataset.file_meta.TransferSyntaxUID.is_compressed
    if len(dataset.PixelData) < (MIN_ITEM * frames if is_compressed else get_expected_length(dataset)):
        sides = " x ".join(map(str, rest))
        declared = f"{frames} frames of {sides}" if frames > 1 else sides
        raise file.error(f"it declares {declared} values, and holds fewer; copy it again")
    if frames > MAX_FRAMES:
        raise file.error(
            f"it declares {frames} frames, more than the {MAX_FRAMES} that a volume may have; save it as NIfTI or NRRD"
        )


def stored_range(dataset: Dataset) -> tuple[int, int]:
    """Return the lowest and highest value that can be stored, after the modality lookup table if there is one."""
    if table := dataset.get("ModalityLUTSequence"):
        return 0, 2 ** int(table[0].LUTDescriptor[2]) - 1
    bits = int(dataset.BitsStored)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0, 2**bits - 1)


def stored_values(dataset: Dataset, content: bytes, file: SourceFile) -> np.ndarray:
    """Return the stored values, (F, H, W), or colours, (F, H, W, 3) uint8.

    Args:
        dataset: the file, whose pixels have been checked.
        content: the bytes that it was read from.
        file: the file that error messages name; if it is a label, the indices of a palette are not looked up.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    frames = int(dataset.get("NumberOfFrames") or 1)
    compression = f", compressed as {syntax.name}," if syntax.is_compressed and syntax.name != syntax else ""
    with file.reading(f"its pixels{compression} cannot be decoded; repair it, or save it uncompressed"):
        needs_gdcm = syntax.is_compressed and syntax not in PLUGINS
        if syntax == RLELossless:
            _check_rle(dataset, frames)
        if needs_gdcm or (syntax == RLELossless and len(dataset.PixelData) > MAX_LENGTH_RLE):
            values = DECODER.decode(content)
        else:
            values, _ = get_decoder(syntax).as_array(dataset, decoding_plugin=PLUGINS.get(syntax, ""))
        samples = int(dataset.get("SamplesPerPixel", 1))
        values = values.reshape(frames, dataset.Rows, dataset.Columns, *(samples,) * (samples > 1))
        if "ModalityLUTSequence" in dataset:
            values = apply_modality_lut(values, dataset)
        if dataset.PhotometricInterpretation == "PALETTE COLOR" and not file.is_label:
            values = apply_color_lut(values, dataset)
            if values.dtype == np.uint16:
                values = (values >> 8).astype(np.uint8)
        if values.ndim == 4 or "ModalityLUTSequence" in dataset:
            return values
        return np.clip(values, *stored_range(dataset))  # bits beyond BitsStored are not part of the values


def _check_rle(dataset: Dataset, frames: int) -> None:
    """Refuse frames of more bytes than the worst compression needs, because pydicom would unpack all of them."""
    size = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated // 8
    for frame in generate_frames(dataset.PixelData, number_of_frames=frames):
        if len(frame) > 2 * size + SLACK:
            raise ValueError("too many bytes")
