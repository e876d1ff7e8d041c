"""What lies in a folder: images, DICOM series, masks, tables, and the rest."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ...data.formats import format_of, is_volume_file, suffix_of
from ...data.manifest import MANIFEST
from ..site_file import SITE_FILE
from .names import is_mask

OWN = frozenset({MANIFEST, "manifest.parquet", SITE_FILE, "check.html"})  # files of ours
TABLES = (".csv", ".tsv")
NO_IMAGES = frozenset({"RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SR", "SEG", "PR", "KO", "REG", "DOC"})  # modalities
FLAT = frozenset({"MG", "CR", "DX", "US", "XC", "OP", "ES"})  # whose series are views, and no slices of a volume
MIN_SLICES = 4  # of a series that is taken for a volume


@dataclass(frozen=True)
class Header:
    """What a DICOM file says of the image it belongs to."""

    patient: str
    series: str
    modality: str
    frames: int = 1
    placed: bool = False  # whether it says where it lies in the patient

    @property
    def is_slice(self) -> bool:
        """Say whether the file can be one slice of a volume, of which others are the rest."""
        return self.placed and self.frames == 1 and self.modality not in FLAT


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
        format = format_of(name)
        if name.lower().endswith(TABLES):
            tables.append(name)
        elif format.is_dicom if format else _begins_dicom(folder / name):
            header = _header(folder / name)
            if header.modality in NO_IMAGES:
                others.append(name)
            else:
                headers[name] = header
                found.append(name)
        elif format is None:
            others.append(name)
        else:
            (masks if is_mask(name) else found).append(name)
    series: dict[str, set[str]] = defaultdict(set)  # by folder
    slices: dict[str, Counter[str]] = defaultdict(Counter)  # by folder, of each series
    for name, header in headers.items():
        series[place_of(name)].add(header.series)
        slices[place_of(name)][header.series] += header.is_slice
    if dimensions is None:
        stacked = sum(count >= MIN_SLICES for held in slices.values() for count in held.values())
        stacked += sum(header.frames > 1 for header in headers.values())
        volumes = sum(map(is_volume_file, found))
        pictures = len(found) - len(headers) - volumes
        pictures += sum(header.frames == 1 and header.modality in FLAT for header in headers.values())
        dimensions = 3 if stacked + volumes > pictures else 2
    lying = Lying(dimensions, masks=masks, tables=tables, others=others)
    lying.formats = Counter("DICOM" if name in headers else suffix_of(name) for name in found)
    for name in found:
        place = place_of(name)
        if dimensions == 2 or name not in headers or slices[place].total() < 2:
            lying.images.append(name)
            lying.headers |= {name: headers[name]} if name in headers else {}
        elif len(series[place]) > 1 or place == ".":
            lying.mixed[place] = len(series[place])
        elif place not in lying.headers:
            lying.images.append(place)
            lying.headers[place] = headers[name]
    return lying


def place_of(name: str) -> str:
    """Return the folder that a file lies in, "." for the whole."""
    return str(PurePosixPath(name).parent)


def walk(folder: Path) -> list[str]:
    """Return the paths of a folder's files within it, sorted; hidden ones and our own are left out."""
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        within = Path(place).relative_to(folder)
        names += [(within / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(name for name in names if name not in OWN)


def _begins_dicom(path: Path) -> bool:
    """Say whether a file begins as DICOM files do; its name need not say so."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _header(path: Path) -> Header:
    """Return what a DICOM file says; nothing of one that cannot be read, which the check will name."""
    from ...data.formats.dicom import read_header

    wanted = ["PatientID", "SeriesInstanceUID", "Modality", "ImagePositionPatient", "NumberOfFrames"]
    try:
        with open(path, "rb") as file:
            held = read_header(file, wanted)
        who, series, modality, position, frames = (str(held.get(name) or "").strip() for name in wanted)
        return Header(who, series, modality, int(frames or 1), bool(position))
    except Exception:  # which are of as many kinds as there are ways to be broken
        return Header("", "", "")
