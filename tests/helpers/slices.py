"""A DICOM slice as scanners write it, small and drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def dicom(path: Path, series: str = "", place: float = 0.0, **tags: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    held = Dataset()
    held.file_meta = FileMetaDataset()
    held.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    held.SOPClassUID = held.file_meta.MediaStorageSOPClassUID = CTImageStorage
    held.SOPInstanceUID = held.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    held.SeriesInstanceUID, held.Modality = series or generate_uid(), "CT"
    held.Rows = held.Columns = 16
    held.SamplesPerPixel, held.PhotometricInterpretation = 1, "MONOCHROME2"
    held.BitsAllocated, held.BitsStored, held.HighBit, held.PixelRepresentation = 16, 16, 15, 0
    held.PixelSpacing, held.ImageOrientationPatient = [1, 1], [1, 0, 0, 0, 1, 0]
    held.ImagePositionPatient, held.SliceThickness = [0, 0, place], 2
    rng = np.random.default_rng([*str(path).encode()])
    held.PixelData = rng.integers(0, 2000, (16, 16), dtype=np.uint16).tobytes()
    for name, value in tags.items():
        setattr(held, name, value)
    pydicom.dcmwrite(path, held, enforce_file_format=True)
    return path
