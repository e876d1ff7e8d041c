"""HAM10000: dermatoscopic images of pigmented lesions, their diagnoses, and masks of the lesions.

Several images may show the same lesion, so every lesion counts as a separate patient; the set does not state which
patients have several lesions. The images of the ISIC 2018 test set are the test split, if they are present.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ...errors import MtfedError
from .dataset import DataSet, RemoteFile, Sample
from .masks import read_mask, save_mask
from .tables import files_by_stem, read_csv

DIAGNOSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
MASKS = "HAM10000_segmentations_lesion_tschandl"
TEST = "ISIC2018_Task3_Test"
DATAVERSE = "https://dataverse.harvard.edu/api/access/datafile/"


def read(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the images of both tables."""
    images, masks = files_by_stem(folder, "HAM10000_images*", ".jpg"), files_by_stem(folder, MASKS, "_segmentation.png")
    for row, table in _rows(folder, "HAM10000_metadata"):
        name = row["image_id"]
        if name not in masks:
            raise MtfedError(f"{MASKS} lacks {name}_segmentation.png, which {table} names; unpack its archive again.")
        sample = _sample(row, table, images, folder, "")
        outline = save_mask(labels, name, read_mask(masks[name], threshold=127))
        yield replace(sample, labels={**sample.labels, "outline": outline})
    if images := files_by_stem(folder, f"{TEST}_Images", ".jpg"):
        for row, table in _rows(folder, f"{TEST}_GroundTruth"):
            yield _sample(row, table, images, folder, "test")


def _rows(folder: Path, name: str) -> Iterator[tuple[dict[str, str], Path]]:
    """Yield the rows of a table, each with the table's path; the owners provide it as .tab and as .csv."""
    for table in (folder / f"{name}.csv", folder / f"{name}.tab", folder / name):
        if table.is_file():
            columns = ("lesion_id", "image_id", "dx", "age", "sex", "localization")
            for row in read_csv(table, columns, "\t" if table.suffix == ".tab" else ","):
                yield row, table
            return
    raise MtfedError(f"Expected {name}.csv or {name}.tab in {folder}, found neither; get it from the set's owners.")


def _sample(row: dict[str, str], table: Path, images: dict[str, Path], folder: Path, split: str) -> Sample:
    name, diagnosis = row["image_id"], row["dx"].lower()
    if diagnosis not in DIAGNOSES:
        raise MtfedError(f"{table}: image {name} has the diagnosis {row['dx']!r}, expected {', '.join(DIAGNOSES)}.")
    if name not in images:
        raise MtfedError(f"{table} names the image {name}.jpg, which is missing; unpack all archives of images.")
    return Sample(
        images[name].relative_to(folder).as_posix(),
        row["lesion_id"],
        {"diagnosis": diagnosis, "age": row["age"] if row["age"].replace(".", "", 1).isdecimal() else ""},
        split,
        row.get("dataset", ""),  # the source archive of an image, one of four; older tables lack this column
        extra={name: row[name] for name in ("sex", "localization")},
    )


def _archive(name: str, number: int, md5: str = "") -> RemoteFile:
    return RemoteFile(f"{name}.zip", f"{DATAVERSE}{number}", md5=md5, unpack_to=name)


SETS = (DataSet(
    name="ham10000", title="HAM10000 with lesion masks",
    images=11526,  # 10015, and 1511 in the test set
    dimensions=2, channels=3, modality="dermatoscopy", body_part="skin",
    licence="CC BY-NC 4.0", terms="Not for commercial use; name the authors.",
    home="https://doi.org/10.7910/DVN/DBW86T",
    citation="Tschandl P, Rosendahl C, Kittler H. The HAM10000 dataset, a large collection of multi-source "
    "dermatoscopic images of common pigmented skin lesions. Scientific Data 5:180161, 2018. Masks: Tschandl P, Rinner "
    "C, Apalla Z, et al. Human-computer collaboration for skin cancer recognition. Nature Medicine 26:1229-1234, 2020.",
    layout="""
HAM10000_metadata.csv (or .tab)
HAM10000_images_part_1/                  ISIC_0024306.jpg, ... (5000)
HAM10000_images_part_2/                  ISIC_0029306.jpg, ... (5015)
HAM10000_segmentations_lesion_tschandl/  ISIC_0024306_segmentation.png, ... (10015)
ISIC2018_Task3_Test_GroundTruth.csv (or .tab; optional, together with the folder below)
ISIC2018_Task3_Test_Images/              ISIC_0034524.jpg, ... (1511)""",
    required=("HAM10000_metadata*", "HAM10000_images*/**/*.jpg", f"{MASKS}/**/*_segmentation.png"),
    tasks={
        "diagnosis": {"kind": "classification", "classes": ", ".join(DIAGNOSES)},
        "outline": {"kind": "segmentation", "classes": "background, lesion"},
        "age": {"kind": "regression", "classes": "years", "range": "0, 100"},
    },
    read=read,
    files=(
        # The original file: by default the archive serves tables with tabs.
        RemoteFile("HAM10000_metadata.csv", f"{DATAVERSE}4338392?format=original"),
        _archive("HAM10000_images_part_1", 3172585, "4639bfa73ab251610530a97c898e6e46"),
        _archive("HAM10000_images_part_2", 3172584, "da43d6cc50f6613013be07e8986b384b"),
        _archive(MASKS, 3838943, "6e8d252e09cfdb0189199f15985a5b84"),
        RemoteFile(f"{TEST}_GroundTruth.csv", f"{DATAVERSE}6924466?format=original"),
        _archive(f"{TEST}_Images", 3855824),
    ),
    note="Every lesion counts as a separate patient, because the set does not state which patients have several. The "
    "test split is that of ISIC 2018, task 3, and has no masks. The column site contains the source archive of an "
    "image, one of four.",
),)  # fmt: skip
