"""CBIS-DDSM: digitised mammograms with outlines and pathology of masses and calcifications."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import MtfedError
from ..formats import read_picture
from ..manifest import SiteData
from ..root import Root
from .dataset import DataSet, Sample
from .masks import dicom_shape, save_mask
from .tables import read_csv

TABLES = {
    f"{kind}_case_description_{split}_set.csv": {"kind": kind, "split": split}
    for kind in ("mass", "calc") for split in ("train", "test")
}  # fmt: skip
ABNORMALITIES = {"mass": "mass", "calc": "calcification"}
COLUMNS = ("patient_id", "left or right breast", "image view", "pathology", "image file path", "ROI mask file path")


def read(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the mammograms, each with the outlines of all its abnormalities as one mask.

    The paths in the tables are those of an older download, so files are found by the first folder of a path. Masks and
    cropped images may be swapped in the set, so the larger file is taken as the mask. Some masks differ in size from
    their mammogram; they are resized to it.
    """
    films: dict[tuple[str, str], list[dict[str, str]]] = {}
    for name, cells in TABLES.items():
        for row in read_csv(folder / name, COLUMNS):
            films.setdefault((cells["kind"], _first_folder(row["image file path"])), []).append(row | cells)
    held_out = {row["patient_id"] for rows in films.values() for row in rows if row["split"] == "test"}
    roots = [root for pattern in ("CBIS-DDSM", "manifest-*/CBIS-DDSM") for root in sorted(folder.glob(pattern))]
    for (kind, name), rows in films.items():
        first = rows[0]
        # Masses and calcifications were split separately: some women are in the training set of one and the test set
        # of the other.
        if first["split"] == "train" and first["patient_id"] in held_out:
            continue
        image = _largest_file(name, roots, folder)
        cells = {"pathology": "malignant" if any(row["pathology"] == "MALIGNANT" for row in rows) else "benign"}
        density = first.get("breast_density", "") or first.get("breast density", "")
        if density in ("1", "2", "3", "4"):
            cells["density"] = f"category {density}"
        outline = _outline(image, [_first_folder(row["ROI mask file path"]) for row in rows], roots, folder)
        cells["outline"] = save_mask(labels, name, outline)
        extra = {"laterality": first["left or right breast"].lower(), "view": first["image view"]}
        extra["abnormality"] = ABNORMALITIES[kind]
        yield Sample(image.relative_to(folder).as_posix(), first["patient_id"], cells, first["split"], extra=extra)


def _first_folder(path: str) -> str:
    return path.strip().strip('"').replace("\\", "/").split("/")[0]


def _largest_file(name: str, roots: list[Path], folder: Path) -> Path:
    paths = [path for root in (roots or [folder]) for path in sorted((root / name).rglob("*.dcm"))]
    if not paths:
        raise MtfedError(f"Expected DICOM files in {folder}/CBIS-DDSM/{name}, found none; get the set's images again.")
    sizes = {path: dicom_shape(path) for path in paths} if len(paths) > 1 else {paths[0]: (1, 1)}
    return max(sizes, key=lambda path: sizes[path][0] * sizes[path][1])


def _outline(image: Path, names: list[str], roots: list[Path], folder: Path) -> np.ndarray:
    """Return where any abnormality is, (H, W) bool of the mammogram's size."""
    shape, data = dicom_shape(image), SiteData("cbis-ddsm", Root(folder), ())
    outline = np.zeros(shape, bool)
    for name in dict.fromkeys(names):
        path = _largest_file(name, roots, folder)
        mask = read_picture(data, path.relative_to(folder).as_posix(), "mask", 2).values > 0
        if mask.shape != shape:
            resized = Image.fromarray(mask.astype(np.uint8)).resize(shape[::-1], Image.Resampling.NEAREST)
            mask = np.asarray(resized) > 0
        outline |= mask
    return outline


SETS = (DataSet(
    name="cbis-ddsm", title="CBIS-DDSM: Curated Breast Imaging Subset of DDSM",
    images=3103, dimensions=2, channels=1, modality="mammogram", body_part="breast",
    licence="CC BY 3.0", terms="May be used, sold and redistributed; its authors must be named.",
    home="https://www.cancerimagingarchive.net/collection/cbis-ddsm/",
    citation="Lee RS, Gimenez F, Hoogi A, Miyake KK, Gorovoy M, Rubin DL. A curated mammography data set for use in "
    "computer-aided detection and diagnosis research. Scientific Data 4:170177, 2017. "
    "doi:10.7937/K9/TCIA.2016.7O02S9CY",
    layout="""
mass_case_description_train_set.csv, mass_case_description_test_set.csv
calc_case_description_train_set.csv, calc_case_description_test_set.csv
CBIS-DDSM/
  Mass-Training_P_00001_LEFT_CC/...    the mammogram, in the folders of the archive
  Mass-Training_P_00001_LEFT_CC_1/...  outline and crop of its first abnormality""",
    required=(*TABLES, "CBIS-DDSM/*_P_*|manifest-*/CBIS-DDSM/*_P_*|Mass-Training_P_*"),
    tasks={
        "pathology": {"kind": "classification", "classes": "benign, malignant"},
        "density": {"kind": "ordinal", "classes": "category 1, category 2, category 3, category 4"},
        "outline": {"kind": "segmentation", "classes": "background, lesion"},
    },
    read=read,
    access="The 164 GB of images are downloaded with the NBIA Data Retriever, a program of the archive: open the .tcia "
    "file from the set's home page with it. The four tables are on the same page.",
    note="The official split is kept. Some women are in the training set of one table and in the test set of another; "
    "their training images are excluded.",
),)  # fmt: skip
