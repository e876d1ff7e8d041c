"""Files with drawn contents: images of noise, masks of discs, tables, DICOM and NIfTI files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32

RNG = np.random.default_rng(0)

VOLUME_SHAPE = (6, 10, 12)  # (z, y, x)


def draw_noise(path: Path, shape: tuple[int, ...] = (SIDE, SIDE), dtype: type = np.uint8) -> Path:
    """Write an image of noise, (H, W) or (H, W, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, shape).astype(dtype)).save(path)
    return path


def draw_disc(path: Path, shape: tuple[int, int] = (SIDE, SIDE), value: int = 255, radius: float = 0.3) -> Path:
    """Write a mask with a disc in the middle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((ball(shape, radius) * value).astype(np.uint8)).save(path)
    return path


def ball(shape: tuple[int, ...], radius: float = 0.3) -> np.ndarray:
    """Return the mask of a ball in the middle, bool; its radius is a fraction of the sides."""
    axes = np.meshgrid(*((np.arange(n) + 0.5) / n - 0.5 for n in shape), indexing="ij")
    return sum(axis**2 for axis in axes) < radius**2  # type: ignore[return-value]


def write_text(path: Path, content: str) -> Path:
    """Write a text file and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def write_dicom(path: Path, values: np.ndarray, modality: str = "MG") -> Path:
    """Write a DICOM file of one frame, of 8 or 16 bits."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = SecondaryCaptureImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = generate_uid()
    file.SeriesInstanceUID, file.StudyInstanceUID, file.Modality = generate_uid(), generate_uid(), modality
    file.Rows, file.Columns = values.shape
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PixelRepresentation = 1, "MONOCHROME2", 0
    file.BitsAllocated = file.BitsStored = values.dtype.itemsize * 8
    file.HighBit = file.BitsStored - 1
    file.PixelData = values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)
    return path


def write_film(path: Path, shape: tuple[int, int] = (40, SIDE)) -> Path:
    """Write a DICOM file of noise, of 16 bits."""
    return write_dicom(path, RNG.integers(0, 4000, shape).astype(np.uint16))


def write_nifti(path: Path, values: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 2.0)) -> None:
    """Write an array with the axes x, y, z (and channels)."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([*spacing, 1.0])), path)
