"""CBIS-DDSM: digitised mammograms with the outlines and the pathology of masses and calcifications."""

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
from .masks import save_mask
from .tables import read_csv

TABLES = {
    f"{kind}_case_description_{split}_set.csv": (kind, split)
    for kind in ("mass", "calc")
    for split in ("train", "test")
}
KINDS = {"mass": "mass", "calc": "calcification"}
COLUMNS = ("patient_id", "left or right breast", "image view", "pathology", "image file path", "ROI mask file path")


def read(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the mammograms, each with the outlines of all its abnormalities as one mask.

    The tables' paths are of an older download; files are found by the first folder of those. The masks of the set may
    be swapped with the cropped images, so the larger file is taken; one of another size than its mammogram, of which
    there are some, is brought to its size.
    """
    films: dict[tuple[str, str], list[dict[str, str]]] = {}
    for name, (kind, split) in TABLES.items():
        for row in read_csv(folder / name, COLUMNS):
            films.setdefault((kind, _first(row["image file path"])), []).append(row | {"kind": kind, "split": split})
    held_out = {row["patient_id"] for rows in films.values() for row in rows if row["split"] == "test"}
    bases = [base for pattern in ("CBIS-DDSM", "manifest-*/CBIS-DDSM") for base in sorted(folder.glob(pattern))]
    for (kind, name), rows in films.items():
        first = rows[0]
        # The split of masses and that of calcifications are apart: some women are in one's training, the other's test.
        if first["split"] == "train" and first["patient_id"] in held_out:
            continue
        image = _largest(_files(name, bases, folder), f"{folder}/CBIS-DDSM/{name}")
        cells = {"pathology": "malignant" if any(row["pathology"] == "MALIGNANT" for row in rows) else "benign"}
        density = first.get("breast_density", "") or first.get("breast density", "")
        if density in ("1", "2", "3", "4"):
            cells["density"] = f"category {density}"
        outline = _outline(image, [_first(row["ROI mask file path"]) for row in rows], bases, folder)
        cells["outline"] = save_mask(labels, name, outline)
        others = {
            "laterality": first["left or right breast"].lower(),
            "view": first["image view"],
            "abnormality": KINDS[kind],
        }
        path = image.relative_to(folder).as_posix()
        yield Sample(path, first["patient_id"], cells, first["split"], others=others)


def _first(path: str) -> str:
    return path.strip().strip('"').replace("\\", "/").split("/")[0]


def _files(name: str, bases: list[Path], folder: Path) -> list[Path]:
    return [path for base in (bases or [folder]) for path in sorted((base / name).rglob("*.dcm"))]


def _largest(paths: list[Path], where: str) -> Path:
    if not paths:
        raise MtfedError(f"Expected DICOM files in {where}, found none; get the images of the set again.")
    sizes = {path: _shape(path) for path in paths} if len(paths) > 1 else {paths[0]: (1, 1)}
    return max(sizes, key=lambda path: sizes[path][0] * sizes[path][1])


def _shape(path: Path) -> tuple[int, int]:
    from ..formats.dicom import read_header

    try:
        with open(path, "rb") as file:
            found = read_header(file)
        return int(found.Rows), int(found.Columns)
    except Exception as error:  # of as many kinds as there are ways to be broken
        raise MtfedError(f"Cannot read {path}: {error}; get it again from the set's owners.") from None


def _outline(image: Path, names: list[str], bases: list[Path], folder: Path) -> np.ndarray:
    """Return where any of the abnormalities is, (H, W) bool of the mammogram's size."""
    shape, data = _shape(image), SiteData("cbis-ddsm", Root(folder), ())
    whole = np.zeros(shape, bool)
    for name in dict.fromkeys(names):
        path = _largest(_files(name, bases, folder), f"{folder}/CBIS-DDSM/{name}")
        mask = read_picture(data, path.relative_to(folder).as_posix(), "mask", 2).values > 0
        if mask.shape != shape:
            resized = Image.fromarray(mask.astype(np.uint8)).resize(shape[::-1], Image.Resampling.NEAREST)
            mask = np.asarray(resized) > 0
        whole |= mask
    return whole


SETS = (
    DataSet(
        name="cbis-ddsm",
        title="CBIS-DDSM: Curated Breast Imaging Subset of DDSM",
        images=3103,
        dimensions=2,
        channels=1,
        modality="mammogram",
        licence="CC BY 3.0",
        terms="May be used, sold and passed on; its authors must be named.",
        home="https://www.cancerimagingarchive.net/collection/cbis-ddsm/",
        citation="Lee RS, Gimenez F, Hoogi A, Miyake KK, Gorovoy M, Rubin DL. A curated mammography data set for use "
        "in computer-aided detection and diagnosis research. Scientific Data 4:170177, 2017. "
        "doi:10.7937/K9/TCIA.2016.7O02S9CY",
        place="""
mass_case_description_train_set.csv, mass_case_description_test_set.csv
calc_case_description_train_set.csv, calc_case_description_test_set.csv
CBIS-DDSM/
  Mass-Training_P_00001_LEFT_CC/...    the mammogram, in folders as the archive names them
  Mass-Training_P_00001_LEFT_CC_1/...  outline and cut-out of its first abnormality
""",
        needs=(*TABLES, "CBIS-DDSM/*_P_*|manifest-*/CBIS-DDSM/*_P_*|Mass-Training_P_*"),
        tasks={
            "pathology": {"kind": "classification", "classes": "benign, malignant"},
            "density": {"kind": "ordinal", "classes": "category 1, category 2, category 3, category 4"},
            "outline": {"kind": "segmentation", "classes": "background, lesion"},
        },
        read=read,
        access="The 164 GB of images come by the NBIA Data Retriever, a program of the archive: open the .tcia file of "
        "the set's home page with it. The four tables are on the same page.",
        note="The official split is kept; of the women who are in one table's training and in another's test, the "
        "images of training are left out.",
    ),
)
