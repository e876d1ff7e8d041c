"""INbreast: full-field digital mammograms with contours of masses and calcifications."""

from __future__ import annotations

import plistlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import numpy as np
from PIL import Image, ImageDraw

from ...errors import MtfedError
from .dataset import LATERALITY, DataSet, Sample
from .masks import dicom_shape, save_arrays
from .tables import read_csv, root_of

RELEASE = "INbreast Release 1.0"
BIRADS = ("1", "2", "3", "4a", "4b", "4c", "5", "6")
# Names of contours as spelt in the annotations, by structure.
STRUCTURES = {"mass": ("mass",), "calcification": ("calcification", "calcifications", "cluster")}
POINT = re.compile(r"\(?\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*\)?")
Contour = tuple[str, list[tuple[float, float]]]  # name and points (x, y)
COLUMNS = ("Laterality", "View", "File Name", "ACR", "Bi-Rads")


def read(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the mammograms; contours become masks, and the contours of masses also boxes."""
    root = root_of(folder, RELEASE)
    files = {path.name.split("_")[0]: path for path in sorted(root.glob("AllDICOMs/*.dcm"))}
    for row in read_csv(root / "INbreast.csv", COLUMNS, ";"):
        number = row["File Name"].removesuffix(".dcm")
        if not number.isdecimal():  # the last lines of the table are remarks
            continue
        if number not in files:
            raise MtfedError(f"{root / 'INbreast.csv'} names {number}, but there is no AllDICOMs/{number}_*.dcm.")
        path = files[number]
        annotation = root / "AllXML" / f"{number}.xml"
        contours = _contours(annotation) if annotation.exists() else []
        masks = _draw_masks(contours, dicom_shape(path))
        cells = {
            "birads": row["Bi-Rads"].lower() if row["Bi-Rads"].lower() in BIRADS else "",
            "density": f"ACR {row['ACR']}" if row["ACR"] in ("1", "2", "3", "4") else "",
            "findings": save_arrays(labels, number, masks),
            "masses": "; ".join(_box(points) for name, points in contours if name in STRUCTURES["mass"]) or "none",
        }
        # 20586908_6c613a14b80a8591_MG_R_CC_ANON.dcm: the second part is the same for all images of a woman.
        patient = path.name.split("_")[1]
        extra = {"laterality": LATERALITY.get(row["Laterality"], ""), "view": row["View"]}
        yield Sample(path.relative_to(folder).as_posix(), patient, cells, extra=extra)


def _contours(path: Path) -> list[Contour]:
    """Return the contours of an annotation that have points."""
    try:
        with open(path, "rb") as file:
            images: list[dict[str, Any]] = plistlib.load(file)["Images"]
        contours = []
        for roi in (roi for image in images for roi in image["ROIs"]):
            points = [POINT.fullmatch(point.strip()) for point in roi["Point_px"]]
            numbers = [(float(point[1]), float(point[2])) for point in points if point]
            contours.append((str(roi.get("Name", "")).strip().lower(), numbers))
        return [(name, points) for name, points in contours if points]
    except (OSError, ExpatError, plistlib.InvalidFileException, KeyError, TypeError, ValueError) as error:
        raise MtfedError(f"{path} is not an annotation of INbreast: {error}; get it again.") from None


def _draw_masks(contours: list[Contour], shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return a mask (H, W) for each structure; a contour of one or two points marks only these."""
    masks = {}
    for structure, names in STRUCTURES.items():
        image = Image.new("L", shape[::-1])
        draw = ImageDraw.Draw(image)
        for name, points in contours:
            if name in names and len(points) > 2:
                draw.polygon(points, fill=1)
            elif name in names:
                draw.point([(round(x), round(y)) for x, y in points], fill=1)
        masks[structure] = np.asarray(image)
    return masks


def _box(points: list[tuple[float, float]]) -> str:
    (left, top), (right, bottom) = np.min(points, axis=0), np.max(points, axis=0)
    return f"{left:.1f},{top:.1f},{max(right - left, 1):.1f},{max(bottom - top, 1):.1f}"


SETS = (DataSet(
    name="inbreast", title="INbreast",
    images=410, dimensions=2, channels=1, modality="mammogram", body_part="breast",
    licence="by agreement", terms="For research, by agreement with its owners; may not be redistributed.",
    home="https://doi.org/10.1016/j.acra.2011.09.014",
    citation="Moreira IC, Amaral I, Domingues I, Cardoso A, Cardoso MJ, Cardoso JS. INbreast: toward a full-field "
    "digital mammographic database. Academic Radiology 19(2):236-248, 2012.",
    layout="""
INbreast Release 1.0/
  INbreast.csv
  AllDICOMs/  20586908_6c613a14b80a8591_MG_R_CC_ANON.dcm, ...
  AllXML/     20586908.xml, ...""",
    required=tuple(f"{RELEASE}/{path}|{path}" for path in ("INbreast.csv", "AllDICOMs/*.dcm", "AllXML/*.xml")),
    tasks={
        "birads": {"kind": "ordinal", "classes": ", ".join(BIRADS)},
        "density": {"kind": "ordinal", "classes": "ACR 1, ACR 2, ACR 3, ACR 4"},
        "findings": {"kind": "multi-label-segmentation", "classes": ", ".join(STRUCTURES)},
        "masses": {"kind": "detection", "classes": "mass"},
    },
    read=read,
    access="Ask its owners (the article's authors) for the set, and place the release there unchanged. If it contains "
    "only INbreast.xls, save that as INbreast.csv, with semicolons between the cells.",
),)  # fmt: skip
