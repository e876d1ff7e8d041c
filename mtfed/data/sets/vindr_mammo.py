"""VinDr-Mammo: full-field digital mammograms of two hospitals with BI-RADS, density and boxes around findings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from ...errors import MtfedError
from .dataset import DataSet, Sample
from .tables import read_csv

FINDINGS = (
    "Mass",
    "Suspicious Calcification",
    "Asymmetry",
    "Focal Asymmetry",
    "Global Asymmetry",
    "Architectural Distortion",
    "Skin Thickening",
    "Skin Retraction",
    "Nipple Retraction",
    "Suspicious Lymph Node",
)
BREASTS, BOXES = "breast-level_annotations.csv", "finding_annotations.csv"
SPLITS = {"training": "train", "test": "test"}
CORNERS = ("xmin", "ymin", "xmax", "ymax")
COLUMNS = ("study_id", "image_id", "laterality", "view_position", "breast_birads", "breast_density", "split")


def read(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the mammograms; a finding of several kinds becomes a box of each."""
    boxes: dict[str, list[str]] = {}
    for row in read_csv(folder / BOXES, ("image_id", "finding_categories", *CORNERS)):
        boxes.setdefault(row["image_id"], []).extend(_boxes(row, folder / BOXES))
    for row in read_csv(folder / BREASTS, COLUMNS):
        cells = {
            "birads": row["breast_birads"],
            "density": row["breast_density"].removeprefix("DENSITY "),
            "findings": "; ".join(boxes.get(row["image_id"], ())) or "none",
        }
        others = {"laterality": {"L": "left", "R": "right"}.get(row["laterality"], ""), "view": row["view_position"]}
        split = SPLITS.get(row["split"].lower())
        if split is None:
            raise MtfedError(f"{folder / BREASTS}: split should be training or test, it is {row['split']!r}.")
        # A study is one visit of one woman, who has but one in the set.
        path = f"images/{row['study_id']}/{row['image_id']}.dicom"
        yield Sample(path, row["study_id"], cells, split, others=others)


def _boxes(row: dict[str, str], path: Path) -> list[str]:
    """Return the boxes of a finding: one for each kind that it is of, none where nothing was found."""
    try:
        kinds = [kind for kind in ast.literal_eval(row["finding_categories"]) if kind != "No Finding"]
        left, top, right, bottom = (float(row[corner]) if kinds else 0.0 for corner in CORNERS)
    except (ValueError, SyntaxError) as error:
        raise MtfedError(f"{path}: image {row['image_id']}: {error}; get the table again.") from None
    if strange := set(kinds) - set(FINDINGS):
        raise MtfedError(f"{path}: image {row['image_id']} has an unknown finding {strange.pop()!r}.")
    return [f"{left:g},{top:g},{right - left:g},{bottom - top:g},{kind}" for kind in kinds]


SETS = (
    DataSet(
        name="vindr-mammo",
        title="VinDr-Mammo",
        images=20000,
        dimensions=2,
        channels=1,
        modality="mammogram",
        licence="PhysioNet restricted",
        terms="For research, by PhysioNet's data use agreement, which each user signs; not to be passed on.",
        home="https://physionet.org/content/vindr-mammo/1.0.0/",
        citation="Nguyen HT, Nguyen HQ, Pham HH, Lam K, Le LT, Dao M, Vu V. VinDr-Mammo: a large-scale benchmark "
        "dataset for computer-aided diagnosis in full-field digital mammography. Scientific Data 10:277, 2023. "
        "doi:10.13026/br2v-7517",
        place="""
breast-level_annotations.csv
finding_annotations.csv
images/
  48575a27b7c992427041a82fa750d3fa/  a study
    4e3a578fe535ea4f5258d3f7f4419db8.dicom, ...
""",
        needs=(BREASTS, BOXES, "images/*"),
        tasks={
            "birads": {"kind": "ordinal", "classes": ", ".join(f"BI-RADS {i}" for i in range(1, 6))},
            "density": {"kind": "ordinal", "classes": "A, B, C, D"},
            "findings": {"kind": "detection", "classes": ", ".join(FINDINGS)},
        },
        read=read,
        access="Register at PhysioNet, sign the agreement on the set's page, and download it as the page says.",
    ),
)
