"""RSNA Pneumonia Detection Challenge: chest X-rays with boxes around lung opacities."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ...errors import MtfedError
from .dataset import DataSet, RemoteFile, Sample
from .tables import read_csv

BOX_TABLE, CLASS_TABLE = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
CLASS_NAMES = {"Normal": "normal", "No Lung Opacity / Not Normal": "other abnormality", "Lung Opacity": "lung opacity"}
BOX_COLUMNS = ("x", "y", "width", "height")


def read(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the challenge's training images; its test images have no labels."""
    classes = {row["patientId"]: row["class"] for row in read_csv(folder / CLASS_TABLE, ("patientId", "class"))}
    boxes: dict[str, list[str]] = {}
    for row in read_csv(folder / BOX_TABLE, ("patientId", *BOX_COLUMNS, "Target")):
        image_boxes = boxes.setdefault(row["patientId"], [])
        if row["Target"] == "1":
            image_boxes.append(",".join(row[column].removesuffix(".0") for column in BOX_COLUMNS))
    patients = _patients(folder / MAPPING)
    for name, image_boxes in boxes.items():
        label = classes.get(name)
        if label not in CLASS_NAMES:
            raise MtfedError(f"{folder / CLASS_TABLE} has the class {label!r} for {name}; get the table again.")
        cells = {"finding": CLASS_NAMES[label], "opacities": "; ".join(image_boxes) or "none"}
        yield Sample(f"stage_2_train_images/{name}.dcm", patients.get(name, name), cells)


def _patients(path: Path) -> dict[str, str]:
    """Return the patient of each image, with which NIH's file names begin; empty if the mapping is absent."""
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {row["subset_img_id"]: row["img_id"].split("_")[0] for row in rows}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise MtfedError(f"{path} is not the file that RSNA provides: {error}; get it again or remove it.") from None


SETS = (DataSet(
    name="rsna-pneumonia", title="RSNA Pneumonia Detection Challenge (2018)",
    images=26684, dimensions=2, channels=1, modality="chest X-ray", body_part="chest",
    licence="RSNA terms of use",
    terms="May be used for research, teaching and commercial purposes with the attribution that RSNA asks for; read "
    "the terms on its page, and Kaggle's rules if you get it there.",
    home="https://www.rsna.org/education/ai-resources-and-training/ai-image-challenge/"
    "rsna-pneumonia-detection-challenge-2018",
    citation="Shih G et al. Augmenting the National Institutes of Health chest radiograph dataset with expert "
    "annotations of possible pneumonia. Radiology: Artificial Intelligence 1(1):e180041, 2019. Wang X et al. "
    "ChestX-ray8. CVPR 2017.",
    layout=f"""
stage_2_train_labels.csv
stage_2_detailed_class_info.csv
stage_2_train_images/  0004cfab-14fd-4e49-80ba-63a80b6bddd6.dcm, ...
{MAPPING}  optional: which images are of the same patient""",
    required=(BOX_TABLE, CLASS_TABLE, "stage_2_train_images/*.dcm"),
    tasks={
        "finding": {"kind": "classification", "classes": ", ".join(CLASS_NAMES.values())},
        "opacities": {"kind": "detection", "classes": "opacity"},
    },
    read=read,
    files=(RemoteFile("rsna-pneumonia-detection-challenge.zip", unpack_to=""),),
    access="Accept the rules at https://www.kaggle.com/c/rsna-pneumonia-detection-challenge and download the set; a "
    "placed rsna-pneumonia-detection-challenge.zip is unpacked. The mapping is on RSNA's page.",
    note="The column patientId of the tables identifies an image, while a patient may have several. Without the "
    "mapping to NIH's names next to the tables, images of one patient may be in training and in validation.",
),)  # fmt: skip
