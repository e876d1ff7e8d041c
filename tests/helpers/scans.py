"""Small synthetic files like those that scanners and archives write."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from mtfed.data.formats import Picture, read_picture
from mtfed.data.manifest import SiteData
from mtfed.data.root import Root

SHARED = Path(__file__).parents[3] / "shared" / "data" / "formats3d"
RNG = np.random.default_rng(0)
AFFINE = np.array([[0.8, 0, 0, 10], [0, 0.8, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1.0]])  # affine of write_series


def site(root: Path) -> SiteData:
    """Return the data of a site in a folder."""
    return SiteData("north", Root(root), ())


def read(folder: Path, name: str, dimensions: int = 2, what: str = "image") -> Picture:
    """Read a file of a folder."""
    return read_picture(site(folder), name, what, dimensions)


def read_content(
    folder: Path, content: bytes, dimensions: int = 2, name: str = "a.dcm", what: str = "image"
) -> Picture:
    """Write a file and read it."""
    (folder / name).write_bytes(content)
    return read(folder, name, dimensions, what)


def ramp(*shape: int, dtype: Any = np.uint16) -> np.ndarray:
    """Return an array whose values identify their position."""
    return (np.arange(np.prod(shape)).reshape(shape) * 3 % 3600).astype(dtype)


def dicom(values: np.ndarray, **fields: Any) -> Dataset:
    """Return a DICOM image (H, W), (F, H, W), or with colours (..., 3) if ``SamplesPerPixel`` is 3."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = "1.2.3"
    axes = values.shape[:-1] if fields.get("SamplesPerPixel") == 3 else values.shape
    dataset.Rows, dataset.Columns = axes[-2:]
    if len(axes) == 3:
        dataset.NumberOfFrames = axes[0]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = values.dtype.itemsize * 8
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    if fields.get("SamplesPerPixel") == 3:
        dataset.PlanarConfiguration = 0
    for name, value in fields.items():
        setattr(dataset, name, value)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    return dataset


def as_bytes(dataset: Dataset) -> bytes:
    """Return a DICOM file."""
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def group(**fields: Any) -> Dataset:
    """Return a functional group: SEQUENCE={KEYWORD: value, ...}."""
    groups = Dataset()
    for sequence, items in fields.items():
        item = Dataset()
        for name, value in items.items():
            setattr(item, name, value)
        setattr(groups, sequence, Sequence([item]))
    return groups


def write_series(
    folder: Path,
    volume: np.ndarray,
    corner: tuple[float, float, float] = (10, 20, 30),
    along: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    spacing: tuple[float, float, float] = (3, 0.8, 0.8),
    **fields: Any,
) -> np.ndarray:
    """Write a volume (K, J, I) as a series with shuffled file names; return its affine, from i, j, k to LPS."""
    folder.mkdir()
    normal = np.cross(along[:3], along[3:])
    for k, name in enumerate(RNG.permutation(len(volume))):
        fields_of_slice = {
            "ImagePositionPatient": (np.array(corner) + normal * spacing[0] * k).tolist(),
            "ImageOrientationPatient": list(along),
            "PixelSpacing": list(spacing[1:]),
            "SliceThickness": 99,
            "InstanceNumber": int(name) + 1,
        }
        (folder / f"IM{name:03}").write_bytes(as_bytes(dicom(volume[k], **fields_of_slice | fields)))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = np.multiply(along[:3], spacing[2]), np.multiply(along[3:], spacing[1])
    affine[:3, 2], affine[:3, 3] = normal * spacing[0], corner
    return affine


def nifti(values: np.ndarray, affine: np.ndarray, **header: Any) -> bytes:
    """Return a NIfTI file with values (I, J, K) and their affine to LPS."""
    image = nibabel.Nifti1Image(values, np.diag([-1, -1, 1, 1]) @ affine)
    for name, value in header.items():
        image.header[name] = value
    return image.to_bytes()


def write_nrrd(path: Path, values: np.ndarray, **header: Any) -> None:
    """Write an NRRD of values (I, J, K)."""
    nrrd.write(str(path), values, {name.replace("_", " "): value for name, value in header.items()})


def compress(content: bytes, syntax: str, folder: Path) -> bytes:
    """Return a DICOM file compressed by GDCM."""
    gdcm = pytest.importorskip("gdcm")
    (folder / "plain").write_bytes(content)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(folder / "plain"))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(folder / "packed"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return (folder / "packed").read_bytes()
