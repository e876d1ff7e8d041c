"""Sort the files of a folder into images, DICOM series, masks, tables and other files."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ...data.formats import format_of, is_volume_file, suffix_of
from ...data.manifest_table import MANIFEST
from ...data.site_file import SITE_FILE
from .names import is_mask

OWN_FILES = frozenset({MANIFEST, "manifest.parquet", SITE_FILE, "check.html"})  # written by mtfed
TABLE_SUFFIXES = (".csv", ".tsv")
# Modalities of DICOM objects that are not images, and of images whose series consist of views, not of slices.
NON_IMAGE_MODALITIES = frozenset({"RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SR", "SEG", "PR", "KO", "REG", "DOC"})
PROJECTION_MODALITIES = frozenset({"MG", "CR", "DX", "US", "XC", "OP", "ES"})
MIN_SLICES = 4  # slices in a series that is taken for a volume


@dataclass(frozen=True)
class DicomHeader:
    """The attributes of a DICOM file that drafting uses."""

    patient: str
    series: str
    modality: str
    body_part: str = ""
    frames: int = 1
    has_position: bool = False  # whether the file gives its position in the patient

    @property
    def is_slice(self) -> bool:
        """Return whether the file can be one slice of a volume that other files complete."""
        return self.has_position and self.frames == 1 and self.modality not in PROJECTION_MODALITIES


@dataclass
class FolderScan:
    """The files of a folder by type, as paths within it. The image of a DICOM series is the series' folder."""

    dimensions: int
    images: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    headers: dict[str, DicomHeader] = field(default_factory=dict)  # image -> header
    formats: Counter[str] = field(default_factory=Counter)  # suffix or "DICOM" -> number of image files
    mixed: dict[str, int] = field(default_factory=dict)  # folder that is not one volume -> number of its series


def scan_folder(folder: Path, dimensions: int | None) -> FolderScan:
    """Sort the files of a folder by type; by default, it has the dimensions of most of its images."""
    scan = FolderScan(dimensions or 2)
    files: list[str] = []  # image files
    headers: dict[str, DicomHeader] = {}
    for name in list_files(folder):
        format = format_of(name)
        if name.lower().endswith(TABLE_SUFFIXES):
            scan.tables.append(name)
        elif format.is_dicom if format else _has_dicom_preamble(folder / name):
            header = _read_header(folder / name)
            if header.modality in NON_IMAGE_MODALITIES:
                scan.others.append(name)
            else:
                headers[name] = header
                files.append(name)
        elif format is None:
            scan.others.append(name)
        else:
            (scan.masks if is_mask(name) else files).append(name)
    scan.formats = Counter("DICOM" if name in headers else suffix_of(name) for name in files)
    if dimensions is None and _are_volumes(files, headers):
        scan.dimensions = 3
    _add_images(scan, files, headers)
    return scan


def _are_volumes(files: list[str], headers: dict[str, DicomHeader]) -> bool:
    """Return whether a folder has more volumes than pictures."""
    slices = Counter((folder_of(name), header.series) for name, header in headers.items() if header.is_slice)
    volume_files = sum(map(is_volume_file, files))
    volumes = volume_files + sum(count >= MIN_SLICES for count in slices.values())
    volumes += sum(header.frames > 1 for header in headers.values())
    pictures = len(files) - len(headers) - volume_files
    pictures += sum(header.frames == 1 and header.modality in PROJECTION_MODALITIES for header in headers.values())
    return volumes > pictures


def _add_images(scan: FolderScan, files: list[str], headers: dict[str, DicomHeader]) -> None:
    """Add the images: each file is one, except that in 3D the slices of a series are one, named by their folder."""
    series: dict[str, set[str]] = defaultdict(set)  # by folder
    slices = Counter[str]()  # by folder
    for name, header in headers.items():
        series[folder_of(name)].add(header.series)
        slices[folder_of(name)] += header.is_slice
    for name in files:
        folder = folder_of(name)
        if scan.dimensions == 2 or name not in headers or slices[folder] < 2:
            scan.images.append(name)
            if name in headers:
                scan.headers[name] = headers[name]
        elif len(series[folder]) > 1 or folder == ".":
            scan.mixed[folder] = len(series[folder])
        elif folder not in scan.headers:
            scan.images.append(folder)
            scan.headers[folder] = headers[name]


def folder_of(name: str) -> str:
    """Return the folder that contains a file, "." for the scanned folder itself."""
    return str(PurePosixPath(name).parent)


def list_files(folder: Path) -> list[str]:
    """Return the paths of all files in a folder, sorted, without hidden files and without the files mtfed writes."""
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        within = Path(place).relative_to(folder)
        names += [(within / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(name for name in names if name not in OWN_FILES)


def _has_dicom_preamble(path: Path) -> bool:
    """Return whether a file starts like a DICOM file, whatever its name."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _read_header(path: Path) -> DicomHeader:
    """Return the header of a DICOM file; an empty one if it cannot be read, because the check reports such files."""
    from ...data.formats.dicom import read_header

    keywords = [
        "PatientID", "SeriesInstanceUID", "Modality", "BodyPartExamined", "ImagePositionPatient", "NumberOfFrames"
    ]  # fmt: skip
    try:
        with open(path, "rb") as file:
            header = read_header(file, keywords)
        values = (str(header.get(keyword) or "").strip() for keyword in keywords)
        patient, series, modality, body_part, position, frames = values
        return DicomHeader(patient, series, modality, body_part.lower(), int(frames or 1), bool(position))
    except Exception:  # a broken file can raise any error
        return DicomHeader("", "", "")
