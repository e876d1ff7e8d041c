"""VinDr-Mammo: full-field digital mammograms of two hospitals with BI-RADS, density and boxes around findings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from ...errors import MtfedError
from .dataset import LATERALITY, DataSet, Sample
from .tables import decode, read_csv

FINDINGS = (
    "Mass", "Suspicious Calcification", "Asymmetry", "Focal Asymmetry", "Global Asymmetry", "Architectural Distortion",
    "Skin Thickening", "Skin Retraction", "Nipple Retraction", "Suspicious Lymph Node",
)  # fmt: skip
BREAST_TABLE, FINDING_TABLE = "breast-level_annotations.csv", "finding_annotations.csv"
SPLITS = {"training": "train", "test": "test"}
CORNERS = ("xmin", "ymin", "xmax", "ymax")
COLUMNS = ("study_id", "image_id", "laterality", "view_position", "breast_birads", "breast_density", "split")


def read(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the mammograms; a finding of several categories becomes one box per category."""
    boxes: dict[str, list[str]] = {}
    for row in read_csv(folder / FINDING_TABLE, ("image_id", "finding_categories", *CORNERS)):
        boxes.setdefault(row["image_id"], []).extend(_boxes(row, folder / FINDING_TABLE))
    for row in read_csv(folder / BREAST_TABLE, COLUMNS):
        cells = {
            "birads": row["breast_birads"],
            "density": row["breast_density"].removeprefix("DENSITY "),
            "findings": "; ".join(boxes.get(row["image_id"], ())) or "none",
        }
        extra = {"laterality": LATERALITY.get(row["laterality"], ""), "view": row["view_position"]}
        split = decode(row, "split", SPLITS, folder / BREAST_TABLE)
        # A study is one visit of one woman, and no woman has two in the set.
        path = f"images/{row['study_id']}/{row['image_id']}.dicom"
        yield Sample(path, row["study_id"], cells, split, extra=extra)


def _boxes(row: dict[str, str], path: Path) -> list[str]:
    """Return the boxes of a finding, one per category; none for the category "No Finding"."""
    try:
        categories = [name for name in ast.literal_eval(row["finding_categories"]) if name != "No Finding"]
        left, top, right, bottom = (float(row[corner]) if categories else 0.0 for corner in CORNERS)
    except (ValueError, SyntaxError) as error:
        raise MtfedError(f"{path}: image {row['image_id']}: {error}; get the table again.") from None
    if unknown := set(categories) - set(FINDINGS):
        image = row["image_id"]
        raise MtfedError(f"{path}: image {image} has an unknown finding {unknown.pop()!r}; get the table again.")
    return [f"{left:g},{top:g},{right - left:g},{bottom - top:g},{name}" for name in categories]


SETS = (DataSet(
    name="vindr-mammo", title="VinDr-Mammo",
    images=20000, dimensions=2, channels=1, modality="mammogram", body_part="breast",
    licence="PhysioNet restricted",
    terms="For research, under PhysioNet's data use agreement, which each user signs; may not be redistributed.",
    home="https://physionet.org/content/vindr-mammo/1.0.0/",
    citation="Nguyen HT, Nguyen HQ, Pham HH, Lam K, Le LT, Dao M, Vu V. VinDr-Mammo: a large-scale benchmark dataset "
    "for computer-aided diagnosis in full-field digital mammography. Scientific Data 10:277, 2023. "
    "doi:10.13026/br2v-7517",
    layout="""
breast-level_annotations.csv
finding_annotations.csv
images/
  48575a27b7c992427041a82fa750d3fa/  a study
    4e3a578fe535ea4f5258d3f7f4419db8.dicom, ...""",
    required=(BREAST_TABLE, FINDING_TABLE, "images/*"),
    tasks={
        "birads": {"kind": "ordinal", "classes": ", ".join(f"BI-RADS {i}" for i in range(1, 6))},
        "density": {"kind": "ordinal", "classes": "A, B, C, D"},
        "findings": {"kind": "detection", "classes": ", ".join(FINDINGS)},
    },
    read=read,
    access="Register at PhysioNet, sign the agreement on the set's page, and download the set as described there.",
),)  # fmt: skip
