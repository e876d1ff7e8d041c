"""What lies in a folder: images, DICOM series, masks, tables, and the rest."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..data.formats import SUFFIXES
from ..data.manifest import MANIFEST
from .names import is_mask
from .sitefile import SITE_FILE

OWN = frozenset({MANIFEST, "manifest.parquet", SITE_FILE, "check.html"})  # files of ours
TABLES = (".csv", ".tsv")
DICOM = (".dcm", ".dicom", ".ima")
NO_IMAGES = frozenset({"RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SR", "SEG", "PR", "KO", "REG", "DOC"})  # modalities
LEAST_SLICES = 4  # of a series that is taken for a volume
VOLUMES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


@dataclass(frozen=True)
class Header:
    """What a DICOM file says of the image it belongs to."""

    patient: str
    series: str
    modality: str


@dataclass
class Lying:
    """The files of a folder by what they are, as paths within it; a series of volumes is its folder."""

    dimensions: int
    images: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    headers: dict[str, Header] = field(default_factory=dict)  # by image
    formats: Counter[str] = field(default_factory=Counter)  # of the images' files, by suffix
    mixed: dict[str, int] = field(default_factory=dict)  # folders with several series, and how many


def scan(folder: Path, dimensions: int | None) -> Lying:
    """Return what lies in a folder; whether images are pictures or volumes is guessed if not told."""
    headers: dict[str, Header] = {}
    found: list[str] = []
    masks: list[str] = []
    tables: list[str] = []
    others: list[str] = []
    for name in walk(folder):
        suffix = suffix_of(name)
        if suffix in TABLES:
            tables.append(name)
        elif suffix in DICOM or (suffix not in SUFFIXES and _begins_dicom(folder / name)):
            header = _header(folder / name)
            if header.modality in NO_IMAGES:
                others.append(name)
            else:
                headers[name] = header
                found.append(name)
        elif suffix not in SUFFIXES:
            others.append(name)
        else:
            (masks if is_mask(name) else found).append(name)
    series: dict[str, Counter[str]] = defaultdict(Counter)
    for name, header in headers.items():
        series[str(PurePosixPath(name).parent)][header.series] += 1
    if dimensions is None:
        stacked = sum(count >= LEAST_SLICES for held in series.values() for count in held.values())
        volumes = sum(suffix_of(name) in VOLUMES for name in found)
        dimensions = 3 if stacked + volumes > len(found) - len(headers) - volumes else 2
    lying = Lying(dimensions, masks=masks, tables=tables, others=others)
    lying.formats = Counter("DICOM" if name in headers else suffix_of(name) for name in found)
    for name in found:
        place = str(PurePosixPath(name).parent)
        if dimensions == 2 or name not in headers or series[place].total() == 1 or place == ".":
            lying.images.append(name)
            lying.headers |= {name: headers[name]} if name in headers else {}
        elif len(series[place]) > 1:
            lying.mixed[place] = len(series[place])
        elif place not in lying.headers:
            lying.images.append(place)
            lying.headers[place] = headers[name]
    if dimensions == 3 and len(series.get(".", {})) and series["."].total() > 1:
        lying.mixed["."] = len(series["."])
        lying.images = [name for name in lying.images if name not in headers or PurePosixPath(name).parent.name]
    return lying


def walk(folder: Path) -> list[str]:
    """Return the paths of a folder's files within it, sorted; hidden ones and our own are left out."""
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        within = Path(place).relative_to(folder)
        names += [(within / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(name for name in names if name not in OWN)


def suffix_of(name: str) -> str:
    """Return a file's suffix in small letters; ".nii.gz" is one."""
    lower = name.lower()
    return ".nii.gz" if lower.endswith(".nii.gz") else PurePosixPath(lower).suffix


def _begins_dicom(path: Path) -> bool:
    """Say whether a file begins as DICOM files do; its name need not say so."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _header(path: Path) -> Header:
    """Return what a DICOM file says; nothing of one that cannot be read, which the check will name."""
    import pydicom

    wanted = ["PatientID", "SeriesInstanceUID", "Modality"]
    try:
        held = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=wanted, force=True)
        told = [str(held.get(name) or "").strip() for name in wanted]
    except Exception:  # which are of as many kinds as there are ways to be broken
        return Header("", "", "")
    return Header(*told)
