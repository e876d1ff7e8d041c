"""Kermany's chest X-rays of children: normal, bacterial and viral pneumonia."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ...errors import MtfedError
from .dataset import DataSet, RemoteFile, Sample

# Kaggle's copy takes sixteen images of training for a folder "val", beside others of the same children: not a split.
SPLITS = {"train": "train", "val": "train", "test": "test"}
FOLDERS = {"NORMAL": "normal", "PNEUMONIA": ""}
# Version 2: person1_bacteria_1.jpeg, IM-0115-0001.jpeg, NORMAL2-IM-0381-0001-0001.jpeg.
# Version 3: BACTERIA-1008087-0001.jpeg, VIRUS-1016088-0001.jpeg, NORMAL-1003233-0001.jpeg.
NAMES = (
    re.compile(r"(?P<patient>person\d+)_(?P<kind>bacteria|virus)_\d+", re.IGNORECASE),
    re.compile(r"(?P<kind>BACTERIA|VIRUS|NORMAL)-(?P<patient>\d+)-\d+"),
    re.compile(r"(?P<patient>(?:NORMAL2-)?IM-\d+)(?P<kind>)(-\d+)+"),
)
KINDS = {"bacteria": "bacterial", "virus": "viral"}


def read(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the images; who they are of is in their names. Of children of the test set none is in training."""
    items = [*_items(folder)]
    held_out = {item.patient for item in items if item.split == "test"}
    yield from (item for item in items if item.split == "test" or item.patient not in held_out)


def _items(folder: Path) -> Iterator[Sample]:
    base = next(found for found in (folder / "chest_xray", folder) if (found / "train").is_dir())
    for split, taken in SPLITS.items():
        for kind in FOLDERS:
            for path in sorted((base / split / kind).glob("*.jp*g")):
                found = next((match for name in NAMES if (match := name.fullmatch(path.stem))), None)
                if found is None:
                    raise MtfedError(f"{path} has a name of another form than the set's; remove it, or get it again.")
                cells = {"pneumonia": "normal" if kind == "NORMAL" else "pneumonia"}
                if kind != "NORMAL":
                    cells["cause"] = KINDS.get(found["kind"].lower(), "")
                # In version 2, children are numbered anew in the test set: person1 there is another than in training.
                patient = found["patient"] if found["patient"].isdecimal() else f"{taken}/{found['patient']}"
                yield Sample(path.relative_to(folder).as_posix(), patient, cells, taken)


SETS = (
    DataSet(
        name="kermany",
        title="Kermany chest X-rays",
        images=5856,
        dimensions=2,
        channels=1,
        modality="chest X-ray",
        licence="CC BY 4.0",
        terms="May be used, sold and passed on; its authors must be named.",
        home="https://data.mendeley.com/datasets/rscbjbr9sj/2",
        citation="Kermany DS et al. Identifying medical diagnoses and treatable diseases by image-based deep learning. "
        "Cell 172(5):1122-1131, 2018. doi:10.17632/rscbjbr9sj.2",
        place="""
chest_xray/
  train/  NORMAL/  IM-0115-0001.jpeg, ...
          PNEUMONIA/  person1_bacteria_1.jpeg, ...
  test/   NORMAL/, PNEUMONIA/
""",
        needs=tuple(
            f"chest_xray/{split}/{kind}/*.jp*g|{split}/{kind}/*.jp*g" for split in ("train", "test") for kind in FOLDERS
        ),
        tasks={
            "pneumonia": {"kind": "classification", "classes": "normal, pneumonia"},
            "cause": {"kind": "classification", "classes": "bacterial, viral"},
        },
        read=read,
        # Size and checksum are those that people tell who have downloaded it; the owners give none.
        files=(
            RemoteFile(
                "ChestXRay2017.zip",
                "https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
                "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded",
                size=1_235_512_464,
                sha256="13efc055629733dbab07877f8b3c9f81097840dbcdaa326a8542322c2281ce36",
                unpack="",
            ),
        ),
        note="Version 2; version 3 lies in the same folders under other names, and is read, too. Version 2 numbers the "
        "children of training and those of the test set from 1 each, and says nowhere that they are others.",
    ),
)
