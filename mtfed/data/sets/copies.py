"""Re-encoded copies of public sets, small enough to try models on; their form is that of :mod:`.reencoded`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

import numpy as np

from ...errors import MtfedError
from .dataset import DataSet
from .reencoded import Copy, Row, mask_of, read_index, volumes

# The structures in the order of OpenKBP's bit field; those from PTV56 on are targets.
STRUCTURES = (
    "Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Esophagus", "Larynx", "Mandible", "PTV56", "PTV63",
    "PTV70",
)  # fmt: skip
CELLS = ("RBC", "WBC", "Platelets")


def lung_boxes(row: Row) -> str:
    """Return the boxes of both lungs."""
    sides = {"rl": "right lung", "ll": "left lung"}
    boxes = [[*(row[f"{side}_{edge}"] for edge in "xywh"), name] for side, name in sides.items() if row[f"{side}_x"]]
    return "; ".join(",".join(box) for box in boxes)


def lesion_boxes(row: Row) -> str:
    """Return the boxes of a mammogram's lesions; one with a finding but no place is not labelled."""
    boxes = [",".join(box.split()) for box in row["boxes_xywh"].split(";") if box.strip()]
    return "; ".join(boxes) or ("none" if row["severity"] == "0" else "")


def sixth(row: Row) -> str:
    """Return a split that validates on every sixth patient; the given one has a single image without COVID-19 there."""
    if row["split"] == "test":
        return "test"
    return "train" if crc32(row["patient"].encode()) % 6 else "val"


def severity(row: Row) -> str:
    """Return how far the disease reaches and how dense it is, both as the raters scored."""
    return f"{row['geographic_extent']}; {row['opacity']}" if row["geographic_extent"] else ""


def read_cells(source: Path) -> list[Row]:
    """Return the rows of the blood smears, each with its boxes, which are in a file of their own."""
    path = source / "boxes.json"
    try:
        boxes = json.loads(path.read_text(encoding="utf-8"))["boxes"]
        cells = {
            name: "; ".join(f"{x},{y},{w},{h},{CELLS[c]}" for c, x, y, w, h in held) for name, held in boxes.items()
        }
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise MtfedError(
            f"{path} is not a table of boxes [class, x, y, w, h] by image: {error}; get it again."
        ) from None
    return [row | {"boxes": cells.get(row["id"], "none")} for row in read_index(source)]


def planned(row: Row, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return image, dose in Gy, where it can be, voxel spacing in mm, and the structures that a patient has."""
    fields = {name: (given["structures"] >> bit) & 1 > 0 for bit, name in enumerate(STRUCTURES)}
    return {
        "image": given["ct"],
        "dose": (given["dose"] / 20).astype(np.float32),
        "possible": given["possible_dose"],
        "spacing": np.asarray([float(side) for side in row["spacing_mm"].split("x")]),
        **{name: mask for name, mask in fields.items() if mask.any()},
    }


def hippocampus(row: Row, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return image and mask with z first, and the voxel spacing in mm."""
    spacing = np.asarray([float(side) for side in row["spacing"].split("x")][::-1])
    return {"image": given["image"].T, "mask": given["label"].T, "spacing": spacing}


COVID_CXR = Copy(
    {
        # Of 609 only 13 are without a finding, which is too few for a class of their own.
        "covid": lambda row: "" if row["label"] == "-1" else "yes" if row["label"] == "1" else "no",
        "lungs": mask_of,
        "sides": lung_boxes,
        "severity": severity,
    },
    site=lambda row: row["client"].lower().replace(" ", "-"),
    patient="patient",
    split=sixth,
)
BUSI = Copy({"lesion": lambda row: row["label"], "outline": mask_of}, patient="group")
ISIC2017 = Copy({"melanoma": lambda row: row["label"], "age": lambda row: row["age"]}, patient="group")
MIAS = Copy(
    {"density": lambda row: row["density"], "severity": lambda row: row["severity"], "lesions": lesion_boxes},
    patient="patient",
)
BCCD = Copy(
    {
        "cells": lambda row: row["boxes"],
        "counts": lambda row: "; ".join(row[f"n_{name}"] for name in ("rbc", "wbc", "platelets")),
    },
    rows=read_cells,
)
DRIVE = Copy({"vessels": mask_of}, patient="patient")
HIPPOCAMPUS3D = Copy(
    {
        "hippocampus": lambda row: f"{row['id']}.npz",
        "volumes": lambda row: f"{row['vol_anterior_mm3']}; {row['vol_posterior_mm3']}",
    },
    files=volumes(hippocampus),
)
OPENKBP3D = Copy(
    {"structures": lambda row: f"{row['id']}.npz", "dose": lambda row: f"{row['id']}.npz"}, files=volumes(planned)
)


PICTURES = {
    "index.csv": "one row an image",
    "images.zip": "what its column file names",
}
MASKS = PICTURES | {"masks.zip": "ID.png: 1 where the structure is"}
VOLUMES = {"index.csv": "one row a volume", "volumes/": "ID.npz"}


def _set(
    name: str,
    copy: Copy,
    title: str,
    images: int,
    modality: str,
    licence: str,
    terms: str,
    home: str,
    citation: str,
    form: Mapping[str, str],
    tasks: Mapping[str, Mapping[str, str]],
    channels: int = 1,
    note: str = "",
) -> DataSet:
    """Return a copy as a data set: its form says what lies in its folder, and what that is."""
    return DataSet(
        name=f"{name}-copy",
        title=f"{title}, re-encoded copy",
        images=images,
        dimensions=3 if form is VOLUMES else 2,
        channels=channels,
        modality=modality,
        licence=licence,
        terms=terms,
        home=home,
        citation=citation,
        place="\n".join(f"{file:12}{what}" for file, what in form.items()),
        needs=tuple(f"{file}*" if file.endswith("/") else file for file in form),
        tasks=tasks,
        read=copy.reader(tasks),
        access="Such a copy is not offered for download; place what you were given, or take the set in its official "
        "form.",
        note=note,
    )


SETS = (
    _set(
        "covid-cxr",
        COVID_CXR,
        "COVID-19 Image Data Collection with lung masks, lung boxes and severity",
        609,
        "chest X-ray",
        "per image",
        "Each image has a licence of its own (column license of the index), some of which forbid commercial use.",
        "https://github.com/ieee8023/covid-chestxray-dataset",
        "Cohen JP, Morrison P, Dao L, et al. COVID-19 Image Data Collection: Prospective Predictions Are the Future. "
        "arXiv:2006.11988, 2020.",
        MASKS,
        {
            "covid": {"kind": "classification", "classes": "no, yes"},
            "lungs": {"kind": "segmentation", "classes": "background, lung"},
            "sides": {"kind": "detection", "classes": "right lung, left lung"},
            "severity": {"kind": "regression", "classes": "extent, opacity", "range": "0, 8"},
        },
        note="Every sixth patient of those given for training or validation validates here: the given validation split "
        "holds a single image without COVID-19.",
    ),
    _set(
        "busi",
        BUSI,
        "Breast Ultrasound Images (BUSI) with groups of near-duplicates",
        780,
        "breast ultrasound",
        "not stated",
        "Public research data without a licence of its own; a copy of it on Kaggle says CC0. Cite the article.",
        "https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
        "Al-Dhabyani W, Gomaa M, Khaled H, Fahmy A. Dataset of breast ultrasound images. Data in Brief 28:104863, "
        "2020.",
        MASKS,
        {
            "lesion": {"kind": "classification", "classes": "normal, benign, malignant"},
            "outline": {"kind": "segmentation", "classes": "background, lesion"},
        },
        note="Images that are nearly alike (column group) stand for one patient.",
    ),
    _set(
        "isic2017",
        ISIC2017,
        "ISIC 2017, melanoma and age",
        2150,
        "dermatoscopy",
        "CC0 1.0",
        "Free for any use.",
        "https://challenge.isic-archive.com/data/#2017",
        "Codella NCF, Gutman D, Celebi ME, et al. Skin Lesion Analysis Toward Melanoma Detection: A Challenge at the "
        "2017 ISBI, Hosted by the ISIC. arXiv:1710.05006, 2017.",
        PICTURES,
        {
            "melanoma": {"kind": "classification", "classes": "other, melanoma"},
            "age": {"kind": "regression", "classes": "years", "range": "0, 100"},
        },
        channels=3,
    ),
    _set(
        "mias",
        MIAS,
        "mini-MIAS mammograms",
        242,
        "mammogram",
        "research only",
        "Research only; may not be rented, leased or sold.",
        "https://www.repository.cam.ac.uk/handle/1810/250394",
        "Suckling J, et al. The Mammographic Image Analysis Society Digital Mammogram Database. Excerpta Medica, "
        "International Congress Series 1069:375-378, 1994.",
        PICTURES,
        {
            "density": {"kind": "ordinal", "classes": "fatty, glandular, dense"},
            "severity": {"kind": "classification", "classes": "normal, benign, malignant"},
            "lesions": {"kind": "detection", "classes": "lesion"},
        },
    ),
    _set(
        "bccd",
        BCCD,
        "BCCD blood cells",
        364,
        "blood smear",
        "MIT",
        "Free for any use with its licence; boxes of red cells are incomplete in places.",
        "https://github.com/Shenggan/BCCD_Dataset",
        "Shenggan. BCCD Dataset, https://github.com/Shenggan/BCCD_Dataset.",
        PICTURES | {"boxes.json": "[class, x, y, w, h] by image"},
        {
            "cells": {"kind": "detection", "classes": ", ".join(CELLS)},
            "counts": {"kind": "regression", "classes": ", ".join(CELLS), "range": "0, 40"},
        },
        channels=3,
    ),
    _set(
        "drive",
        DRIVE,
        "DRIVE retinal vessels",
        40,
        "fundus photograph",
        "research and education",
        "For research and education; its owners ask that it is not passed on.",
        "https://drive.grand-challenge.org",
        "Staal J, Abramoff MD, Niemeijer M, Viergever MA, van Ginneken B. Ridge-Based Vessel Segmentation in Color "
        "Images of the Retina. IEEE TMI 23(4):501-509, 2004.",
        MASKS,
        {"vessels": {"kind": "segmentation", "classes": "background, vessel"}},
        channels=3,
    ),
    _set(
        "hippocampus3d",
        HIPPOCAMPUS3D,
        "Medical Segmentation Decathlon, hippocampus, with volumes",
        200,
        "brain MRI",
        "CC BY-SA 4.0",
        "Free for any use with attribution; what is made of it must be passed on under the same licence.",
        "http://medicaldecathlon.com",
        "Antonelli M, Reinke A, Bakas S, et al. The Medical Segmentation Decathlon. Nature Communications 13:4128, "
        "2022.",
        VOLUMES,
        {
            "hippocampus": {"kind": "segmentation", "classes": "background, anterior, posterior"},
            "volumes": {"kind": "regression", "classes": "anterior, posterior", "range": "0, 4000"},
        },
    ),
    _set(
        "openkbp3d",
        OPENKBP3D,
        "OpenKBP at 64^3",
        120,
        "planning CT",
        "MIT",
        "The repository is under the MIT licence; the patients' scans are from The Cancer Imaging Archive.",
        "https://github.com/ababier/open-kbp",
        "Babier A, Zhang B, Mahmood R, et al. OpenKBP: The open-access knowledge-based planning grand challenge and "
        "dataset. Medical Physics 48(9):5549-5561, 2021.",
        VOLUMES,
        {
            "structures": {"kind": "multi-label-segmentation", "classes": ", ".join(STRUCTURES)},
            "dose": {"kind": "dose", "classes": ", ".join(STRUCTURES), "range": "0, 80"},
        },
    ),
)
