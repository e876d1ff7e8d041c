"""The ISIC challenges of 2017 and 2018: dermatoscopic images with outlines, dermoscopic attributes and diagnoses.

The splits are those of the challenges. Only the training images of the third task of 2018 come with information
about which of them show the same lesion; every other image counts as a separate patient. Part 2 of 2017 (features by
superpixels) is not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import MtfedError
from .dataset import DataSet, RemoteFile, Sample
from .masks import read_mask, save_arrays, save_mask
from .tables import YES_NO, decode, files_by_stem, read_csv

SERVER = "https://isic-challenge-data.s3.amazonaws.com"
SPLITS_2017 = {"Training": "train", "Validation": "val", "Test_v2": "test"}
SPLITS_2018 = {"Training": "train", "Validation": "val", "Test": "test"}
ATTRIBUTES = ("globules", "milia_like_cyst", "negative_network", "pigment_network", "streaks")
DIAGNOSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
CITATION_2018 = (
    "Codella N, Rotemberg V, Tschandl P, et al. Skin Lesion Analysis Toward Melanoma Detection 2018: A Challenge "
    "Hosted by the International Skin Imaging Collaboration (ISIC). arXiv:1902.03368, 2019."
)


def read_2017(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the images of the splits that are present: outline, melanoma, keratosis and age."""
    for part, split in SPLITS_2017.items():
        images = files_by_stem(folder, f"ISIC-2017_{part}_Data", ".jpg")
        if not images:
            continue
        truth = folder / f"ISIC-2017_{part}_Part3_GroundTruth.csv"
        masks = files_by_stem(folder, f"ISIC-2017_{part}_Part1_GroundTruth", "_segmentation.png")
        tables = files_by_stem(folder, f"ISIC-2017_{part}_Data", "_metadata.csv").values()
        columns = ("image_id", "age_approximate", "sex")
        metadata = {row["image_id"]: row for table in tables for row in read_csv(table, columns)}
        for row in read_csv(truth, ("image_id", "melanoma", "seborrheic_keratosis")):
            name = row["image_id"]
            image_metadata = metadata.get(name, {})
            age = image_metadata.get("age_approximate", "")  # some cells are "unknown"
            cells = {
                "melanoma": decode(row, "melanoma", YES_NO, truth),
                "keratosis": decode(row, "seborrheic_keratosis", YES_NO, truth),
                "age": age if age.replace(".", "", 1).isdecimal() else "",
                "outline": _outline(name, masks, labels),
            }
            path = _image_path(name, images, folder, truth)
            yield Sample(path, name, cells, split, extra={"sex": image_metadata.get("sex", "")})


def read_2018(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the images of tasks 1 and 2 of the splits that are present: outlines, and masks of five attributes."""
    for part, split in SPLITS_2018.items():
        masks = files_by_stem(folder, f"ISIC2018_Task1_{part}_GroundTruth", "_segmentation.png")
        pattern = f"ISIC2018_Task2_{part}_GroundTruth*"
        attributes = {name: files_by_stem(folder, pattern, f"_attribute_{name}.png") for name in ATTRIBUTES}
        for name, path in files_by_stem(folder, f"ISIC2018_Task1-2_{part}_Input", ".jpg").items():
            paths_by_attribute = {attribute: paths[name] for attribute, paths in attributes.items() if name in paths}
            arrays = {attribute: read_mask(mask, threshold=127) for attribute, mask in paths_by_attribute.items()}
            cells = {"outline": _outline(name, masks, labels)}
            cells["attributes"] = save_arrays(labels, f"{name}_attributes", arrays) if arrays else ""
            yield Sample(path.relative_to(folder).as_posix(), name, cells, split)


def read_2018_diagnosis(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the images of task 3 of the splits that are present, with their diagnoses."""
    groups = folder / "ISIC2018_Task3_Training_LesionGroupings.csv"
    lesions = {row["image"]: row["lesion_id"] for row in read_csv(groups, ("image", "lesion_id"))}
    for part, split in SPLITS_2018.items():
        images = files_by_stem(folder, f"ISIC2018_Task3_{part}_Input", ".jpg")
        if not images:
            continue
        name = f"ISIC2018_Task3_{part}_GroundTruth"
        truth = files_by_stem(folder, name, ".csv").get(name, folder / f"{name}.csv")
        for row in read_csv(truth, ("image", *DIAGNOSES)):
            image = row["image"]
            diagnoses = [diagnosis for diagnosis in DIAGNOSES if decode(row, diagnosis, YES_NO, truth) == "yes"]
            if len(diagnoses) != 1:
                count = len(diagnoses)
                raise MtfedError(f"{truth}: image {image} should have one diagnosis, it has {count}; get it again.")
            if split == "train" and image not in lesions:
                raise MtfedError(f"{groups} does not contain the lesion that {image} shows; get it again.")
            path = _image_path(image, images, folder, truth)
            yield Sample(path, lesions.get(image, image), {"diagnosis": diagnoses[0]}, split)


def _image_path(name: str, images: dict[str, Path], folder: Path, table: Path) -> str:
    if name not in images:
        raise MtfedError(f"{table} names the image {name}.jpg, which is missing; unpack the archive of images again.")
    return images[name].relative_to(folder).as_posix()


def _outline(name: str, masks: dict[str, Path], labels: Path) -> str:
    return save_mask(labels, f"{name}_outline", read_mask(masks[name], threshold=127)) if name in masks else ""


def _files(year: int, archives: tuple[str, ...], tables: tuple[str, ...] = ()) -> tuple[RemoteFile, ...]:
    # Each archive is unpacked into a folder of the same name, even if it contains such a folder itself.
    return tuple(RemoteFile(f"{name}.zip", f"{SERVER}/{year}/{name}.zip", unpack_to=name) for name in archives) + tuple(
        RemoteFile(f"{name}.csv", f"{SERVER}/{year}/{name}.csv") for name in tables
    )


SETS = (DataSet(
    name="isic2017", title="ISIC 2017",
    images=2750, dimensions=2, channels=3, modality="dermatoscopy", body_part="skin",  # 2000, 150 and 600
    licence="CC0 1.0",
    terms="According to other sources, not to its owners. The terms on its home page apply; read them before use.",
    home="https://challenge.isic-archive.com/data/#2017",
    citation="Codella NCF, Gutman D, Celebi ME, et al. Skin Lesion Analysis Toward Melanoma Detection: A Challenge at "
    "the 2017 International Symposium on Biomedical Imaging (ISBI), Hosted by the International Skin Imaging "
    "Collaboration (ISIC). arXiv:1710.05006, 2017.",
    layout="""
ISIC-2017_Training_Data/                ISIC_0000000.jpg, ..., ISIC-2017_Training_Data_metadata.csv (2000 images)
ISIC-2017_Training_Part1_GroundTruth/   ISIC_0000000_segmentation.png, ...
ISIC-2017_Training_Part3_GroundTruth.csv
ISIC-2017_Validation_...                the same (150 images)
ISIC-2017_Test_v2_...                   the same (600 images)""",
    required=(
        "ISIC-2017_Training_Data/**/*.jpg",
        "ISIC-2017_Training_Part1_GroundTruth/**/*_segmentation.png",
        "ISIC-2017_Training_Part3_GroundTruth.csv",
    ),
    tasks={
        "melanoma": {"kind": "classification", "classes": "no, yes"},
        "keratosis": {"kind": "classification", "classes": "no, yes"},
        "age": {"kind": "regression", "classes": "years", "range": "0, 100"},
        "outline": {"kind": "segmentation", "classes": "background, lesion"},
    },
    read=read_2017,
    files=_files(
        2017,
        tuple(f"ISIC-2017_{part}_{what}" for part in SPLITS_2017 for what in ("Data", "Part1_GroundTruth")),
        tuple(f"ISIC-2017_{part}_Part3_GroundTruth" for part in SPLITS_2017),
    ),
    note="Patients are not identified, so every image counts as a separate patient. Part 2 (features by superpixels) "
    "is not read.",
), DataSet(
    name="isic2018", title="ISIC 2018, tasks 1 and 2: outlines and attributes",
    images=3694, dimensions=2, channels=3, modality="dermatoscopy", body_part="skin",  # 2594, 100 and 1000
    licence="CC BY-NC 4.0",
    terms="Not for commercial use; name the authors, and cite HAM10000 too. According to other sources; the terms on "
    "its home page apply.",
    home="https://challenge.isic-archive.com/data/#2018",
    citation=CITATION_2018,
    layout="""
ISIC2018_Task1-2_Training_Input/         ISIC_0000000.jpg, ... (2594)
ISIC2018_Task1_Training_GroundTruth/     ISIC_0000000_segmentation.png, ...
ISIC2018_Task2_Training_GroundTruth_v3/  ISIC_0000000_attribute_globules.png, ... (five per image)
ISIC2018_..._Validation_...              the same (100 images)
ISIC2018_..._Test_...                    the same (1000 images)""",
    required=("ISIC2018_Task1-2_Training_Input/**/*.jpg", "ISIC2018_Task1_Training_GroundTruth/**/*_segmentation.png"),
    tasks={
        "outline": {"kind": "segmentation", "classes": "background, lesion"},
        "attributes": {"kind": "multi-label-segmentation", "classes": ", ".join(ATTRIBUTES)},
    },
    read=read_2018,
    files=_files(2018, tuple(
        f"ISIC2018_{name}"
        for part, version in (("Training", "_v3"), ("Validation", ""), ("Test", ""))
        for name in (f"Task1-2_{part}_Input", f"Task1_{part}_GroundTruth", f"Task2_{part}_GroundTruth{version}")
    )),
    note="Patients are not identified, so every image counts as a separate patient.",
), DataSet(
    name="isic2018-diagnosis", title="ISIC 2018, task 3: diagnoses",
    images=11720, dimensions=2, channels=3, modality="dermatoscopy", body_part="skin",  # 10015, 193 and 1512
    licence="CC BY-NC 4.0",
    terms="Not for commercial use; name the authors. The training images are those of HAM10000; cite that too.",
    home="https://challenge.isic-archive.com/data/#2018",
    citation=CITATION_2018,
    layout="""
ISIC2018_Task3_Training_Input/              ISIC_0024306.jpg, ... (10015)
ISIC2018_Task3_Training_GroundTruth/        ISIC2018_Task3_Training_GroundTruth.csv
ISIC2018_Task3_Training_LesionGroupings.csv
ISIC2018_Task3_Validation_Input/, ..._GroundTruth/  the same (193 images)
ISIC2018_Task3_Test_Input/, ..._GroundTruth/        the same (1512 images)""",
    required=(
        "ISIC2018_Task3_Training_Input/**/*.jpg",
        "ISIC2018_Task3_Training_GroundTruth/**/*.csv|ISIC2018_Task3_Training_GroundTruth.csv",
        "ISIC2018_Task3_Training_LesionGroupings.csv",
    ),
    tasks={"diagnosis": {"kind": "classification", "classes": ", ".join(DIAGNOSES)}},
    read=read_2018_diagnosis,
    files=_files(
        2018,
        tuple(f"ISIC2018_Task3_{part}_{what}" for part in SPLITS_2018 for what in ("Input", "GroundTruth")),
        ("ISIC2018_Task3_Training_LesionGroupings",),
    ),
    note="Every lesion counts as a separate patient. The validation and test sets do not identify lesions; there every "
    "image does.",
))  # fmt: skip
