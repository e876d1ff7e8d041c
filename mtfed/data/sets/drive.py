"""DRIVE: photographs of the retina with masks of its vessels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .dataset import DataSet, Sample
from .masks import read_mask, save_mask

SPLIT_FOLDERS = {"training": "train", "test": "test"}


def read(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the photographs that have a mask by the first observer; newer releases have no masks of test images."""
    for part, split in SPLIT_FOLDERS.items():
        for image in sorted(folder.glob(f"{part}/images/*_{part}.tif")):
            number = image.name.split("_")[0]
            mask = folder / part / "1st_manual" / f"{number}_manual1.gif"
            if part == "test" and not mask.exists():
                continue
            vessels = save_mask(labels, f"{number}_vessels", read_mask(mask, threshold=127))
            yield Sample(image.relative_to(folder).as_posix(), number, {"vessels": vessels}, split)


SETS = (DataSet(
    name="drive", title="DRIVE: Digital Retinal Images for Vessel Extraction",
    images=40, dimensions=2, channels=3, modality="fundus photograph", body_part="retina",
    licence="research and education",
    terms="Free of charge for research and education; copying, redistribution and unauthorised commercial use are "
    "forbidden. Available from its owners only.",
    home="https://drive.grand-challenge.org",
    citation="Staal J, Abramoff MD, Niemeijer M, Viergever MA, van Ginneken B. Ridge-Based Vessel Segmentation in "
    "Color Images of the Retina. IEEE Transactions on Medical Imaging 23(4):501-509, 2004.",
    layout="""
training/
  images/      21_training.tif, ... (20)
  1st_manual/  21_manual1.gif, ...
test/
  images/      01_test.tif, ... (20)
  1st_manual/  01_manual1.gif, ... (missing in newer releases: then there is no test split)""",
    required=("training/images/*_training.tif", "training/1st_manual/*_manual1.gif"),
    tasks={"vessels": {"kind": "segmentation", "classes": "background, vessel"}},
    read=read,
    access="Register at https://drive.grand-challenge.org, download the training and the test set there, and unpack "
    "both into the folder.",
    note="Every photograph counts as a separate patient. Newer releases do not contain the masks of the test set.",
),)  # fmt: skip
