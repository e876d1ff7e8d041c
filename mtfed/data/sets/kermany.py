"""Kermany's chest X-rays of children: normal, bacterial and viral pneumonia."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ...errors import MtfedError
from .dataset import DataSet, RemoteFile, Sample

# Kaggle's copy moves sixteen training images to a folder "val"; others of the same children stay in "train".
SPLIT_FOLDERS = {"train": "train", "val": "train", "test": "test"}
CLASS_FOLDERS = ("NORMAL", "PNEUMONIA")
# Version 2: person1_bacteria_1.jpeg, IM-0115-0001.jpeg, NORMAL2-IM-0381-0001-0001.jpeg.
# Version 3: BACTERIA-1008087-0001.jpeg, VIRUS-1016088-0001.jpeg, NORMAL-1003233-0001.jpeg.
FILE_NAMES = (
    re.compile(r"(?P<patient>person\d+)_(?P<cause>bacteria|virus)_\d+", re.IGNORECASE),
    re.compile(r"(?P<cause>BACTERIA|VIRUS|NORMAL)-(?P<patient>\d+)-\d+"),
    re.compile(r"(?P<patient>(?:NORMAL2-)?IM-\d+)(?P<cause>)(-\d+)+"),
)
CAUSES = {"bacteria": "bacterial", "virus": "viral"}


def read(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the images, whose names identify the children; no child of the test set is in the training set."""
    samples = [*_samples(folder)]
    held_out = {sample.patient for sample in samples if sample.split == "test"}
    yield from (sample for sample in samples if sample.split == "test" or sample.patient not in held_out)


def _samples(folder: Path) -> Iterator[Sample]:
    root = next(path for path in (folder / "chest_xray", folder) if (path / "train").is_dir())
    for split_folder, split in SPLIT_FOLDERS.items():
        for class_folder in CLASS_FOLDERS:
            for path in sorted((root / split_folder / class_folder).glob("*.jp*g")):
                match = next((match for name in FILE_NAMES if (match := name.fullmatch(path.stem))), None)
                if match is None:
                    raise MtfedError(
                        f"{path} has a name of another form than the set's files; remove it, or get the set again."
                    )
                cells = {"pneumonia": "normal" if class_folder == "NORMAL" else "pneumonia"}
                if class_folder != "NORMAL":
                    cells["cause"] = CAUSES.get(match["cause"].lower(), "")
                # Version 2 numbers the children of each split from 1: person1 is not the same child in both.
                patient = match["patient"] if match["patient"].isdecimal() else f"{split}/{match['patient']}"
                yield Sample(path.relative_to(folder).as_posix(), patient, cells, split)


SETS = (DataSet(
    name="kermany", title="Kermany chest X-rays",
    images=5856, dimensions=2, channels=1, modality="chest X-ray", body_part="chest",
    licence="CC BY 4.0", terms="May be used, sold and redistributed; its authors must be named.",
    home="https://data.mendeley.com/datasets/rscbjbr9sj/2",
    citation="Kermany DS et al. Identifying medical diagnoses and treatable diseases by image-based deep learning. "
    "Cell 172(5):1122-1131, 2018. doi:10.17632/rscbjbr9sj.2",
    layout="""
chest_xray/
  train/  NORMAL/  IM-0115-0001.jpeg, ...
          PNEUMONIA/  person1_bacteria_1.jpeg, ...
  test/   NORMAL/, PNEUMONIA/""",
    required=tuple(
        f"chest_xray/{split}/{class_folder}/*.jp*g|{split}/{class_folder}/*.jp*g"
        for split in ("train", "test") for class_folder in CLASS_FOLDERS
    ),
    tasks={
        "pneumonia": {"kind": "classification", "classes": "normal, pneumonia"},
        "cause": {"kind": "classification", "classes": "bacterial, viral"},
    },
    read=read,
    # Size and checksum were published by people who have downloaded it; the owners provide none.
    files=(RemoteFile(
        "ChestXRay2017.zip",
        "https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
        "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded", size=1_235_512_464,
        sha256="13efc055629733dbab07877f8b3c9f81097840dbcdaa326a8542322c2281ce36", unpack_to="",
    ),),
    note="Version 2. Version 3 uses the same folders with other file names, and is read too. Version 2 numbers the "
    "children of the training set and those of the test set from 1; they are taken to be different children, which the "
    "set does not state.",
),)  # fmt: skip
