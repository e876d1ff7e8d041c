"""RSNA Pneumonia Detection Challenge: chest X-rays with boxes around lung opacities."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ...errors import MtfedError
from .dataset import DataSet, RemoteFile, Sample
from .tables import read_csv

BOXES, CLASSES = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
NAMES = {"Normal": "normal", "No Lung Opacity / Not Normal": "other abnormality", "Lung Opacity": "lung opacity"}
SIDES = ("x", "y", "width", "height")


def read(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the images of the challenge's training; those of its test have no labels."""
    kinds = {row["patientId"]: row["class"] for row in read_csv(folder / CLASSES, ("patientId", "class"))}
    boxes: dict[str, list[str]] = {}
    for row in read_csv(folder / BOXES, ("patientId", *SIDES, "Target")):
        found = boxes.setdefault(row["patientId"], [])
        if row["Target"] == "1":
            found.append(",".join(row[side].removesuffix(".0") for side in SIDES))
    patients = _patients(folder / MAPPING)
    for name, found in boxes.items():
        if kinds.get(name) not in NAMES:
            raise MtfedError(f"{folder / CLASSES} says of {name}: {kinds.get(name)!r}; get the table again.")
        cells = {"finding": NAMES[kinds[name]], "opacities": "; ".join(found) or "none"}
        yield Sample(f"stage_2_train_images/{name}.dcm", patients.get(name, name), cells)


def _patients(path: Path) -> dict[str, str]:
    """Return the patient of each image, where the file that tells of it is there: what NIH's names begin with."""
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {row["subset_img_id"]: row["img_id"].split("_")[0] for row in rows}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise MtfedError(f"{path} is not the file that RSNA gives: {error}; get it again or remove it.") from None


SETS = (
    DataSet(
        name="rsna-pneumonia",
        title="RSNA Pneumonia Detection Challenge (2018)",
        images=26684,
        dimensions=2,
        channels=1,
        modality="chest X-ray",
        licence="RSNA terms of use",
        terms="May be used for research, teaching and commercial purposes with the attribution that RSNA asks for; "
        "read the terms on its page, and Kaggle's rules where it is got there.",
        home="https://www.rsna.org/education/ai-resources-and-training/ai-image-challenge/"
        "rsna-pneumonia-detection-challenge-2018",
        citation="Shih G et al. Augmenting the National Institutes of Health chest radiograph dataset with expert "
        "annotations of possible pneumonia. Radiology: Artificial Intelligence 1(1):e180041, 2019. Wang X et al. "
        "ChestX-ray8. CVPR 2017.",
        place=f"""
stage_2_train_labels.csv
stage_2_detailed_class_info.csv
stage_2_train_images/  0004cfab-14fd-4e49-80ba-63a80b6bddd6.dcm, ...
{MAPPING}  if you have it: it tells which images are of one patient
""",
        needs=(BOXES, CLASSES, "stage_2_train_images/*.dcm"),
        tasks={
            "finding": {"kind": "classification", "classes": ", ".join(NAMES.values())},
            "opacities": {"kind": "detection", "classes": "opacity"},
        },
        read=read,
        files=(RemoteFile("rsna-pneumonia-detection-challenge.zip", unpack=""),),
        access="Accept the rules at https://www.kaggle.com/c/rsna-pneumonia-detection-challenge and download the set; "
        "rsna-pneumonia-detection-challenge.zip may be placed as it is, and is unpacked. The mapping is on RSNA's "
        "page.",
        note="What the tables call patientId is one image, while a patient may have several: put the mapping to NIH's "
        "names beside the tables, or images of a patient come to lie in training and in validation.",
    ),
)
