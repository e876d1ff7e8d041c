"""BUSI: breast ultrasound images with the outlines of lesions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...errors import MtfedError
from .dataset import DataSet, RemoteFile, Sample
from .masks import read_mask, save_mask
from .tables import root_of

CLASSES = ("normal", "benign", "malignant")
FOLDER = "Dataset_BUSI_with_GT"


def read(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the images; the masks of several lesions in an image are merged."""
    root = root_of(folder, FOLDER)
    for lesion in CLASSES:
        for image in sorted((root / lesion).glob(f"{lesion} (*).png"), key=_image_number):
            if "_mask" in image.name:
                continue
            masks = sorted(root.glob(f"{lesion}/{image.stem}_mask*.png"))
            if not masks:
                raise MtfedError(f"{image} has no {image.stem}_mask.png next to it; get the set again.")
            outlines = [read_mask(path, threshold=127) for path in masks]
            if len({outline.shape for outline in outlines}) > 1:
                raise MtfedError(f"The masks of {image} differ in size; get the set again.")
            cell = save_mask(labels, image.stem.replace(" ", ""), np.logical_or.reduce(outlines))
            # The set does not identify patients, so each image counts as one.
            yield Sample(image.relative_to(folder).as_posix(), image.stem, {"lesion": lesion, "outline": cell})


def _image_number(path: Path) -> int:
    digits = path.stem.partition("(")[2].partition(")")[0]
    return int(digits) if digits.isdecimal() else 0


SETS = (DataSet(
    name="busi", title="Breast Ultrasound Images (BUSI)",
    images=780, dimensions=2, channels=1, modality="breast ultrasound", body_part="breast",
    licence="not stated",
    terms="Public for research; its owners state no licence. The article that describes it is CC BY 4.0.",
    home="https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
    citation="Al-Dhabyani W, Gomaa M, Khaled H, Fahmy A. Dataset of breast ultrasound images. Data in Brief 28:104863, "
    "2020.",
    layout="""
Dataset_BUSI_with_GT/
  normal/     normal (1).png, normal (1)_mask.png, ...
  benign/     benign (1).png, benign (1)_mask.png, sometimes benign (4)_mask_1.png, ...
  malignant/  malignant (1).png, malignant (1)_mask.png, ...""",
    required=tuple(f"{FOLDER}/{lesion}/*.png|{lesion}/*.png" for lesion in CLASSES),
    tasks={
        "lesion": {"kind": "classification", "classes": ", ".join(CLASSES)},
        "outline": {"kind": "segmentation", "classes": "background, lesion"},
    },
    read=read,
    files=(RemoteFile("Dataset_BUSI.zip", "https://scholar.cu.edu.eg/Dataset_BUSI.zip", unpack_to=""),),  # no checksum
    note="The set does not identify its 600 patients (780 images), so every image counts as a separate patient. It "
    "contains near-duplicates, some of them labelled both benign and malignant (Pawlowska et al., Data in Brief "
    "48:109247, 2023), so scores on it are too high.",
),)  # fmt: skip
