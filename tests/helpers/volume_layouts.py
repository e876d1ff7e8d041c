"""Official forms of the sets of volumes, each with a few drawn files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from helpers.drawings import RNG, VOLUME_SHAPE, ball, write_nifti, write_text
from mtfed.data.sets.decathlon import SUBSETS as DECATHLON
from mtfed.data.sets.openkbp import SHAPE as OPENKBP_SHAPE


def sparse(path: Path, places: np.ndarray, values: np.ndarray | None = None) -> None:
    """Write a sparse table of OpenKBP: the index of each voxel, and its value unless it is a mask."""
    cells = [""] * len(places) if values is None else values.tolist()
    write_text(path, ",data\n" + "".join(f"{place},{cell}\n" for place, cell in zip(places, cells, strict=True)))


def openkbp(folder: Path) -> None:
    grid = np.arange(np.prod(OPENKBP_SHAPE)).reshape(OPENKBP_SHAPE)
    body = grid[40:50, 60:68, 20:30].ravel()  # y, x, z
    for part, patient in {"train-pats": "pt_1", "valid-pats": "pt_201", "test-pats": "pt_241"}.items():
        place = folder / "provided-data" / part / patient
        sparse(place / "ct.csv", body, 1024.0 + np.arange(len(body)) % 50)
        sparse(place / "dose.csv", body[::2], np.full(len(body[::2]), 41.5))
        sparse(place / "possible_dose_mask.csv", body)
        write_text(place / "voxel_dimensions.csv", "3.906e+00\n3.906e+00\n2.5e+00\n")
        sparse(place / "Mandible.csv", grid[40:42, 60:68, 20:30].ravel())
        sparse(place / "PTV70.csv", grid[44:48, 62:66, 20:22].ravel())


def stoic(folder: Path) -> None:
    import SimpleITK

    rows = ["0,0,0", "1,1,0", "2,1,1"]
    write_text(folder / "metadata/reference.csv", "PatientID,probCOVID,probSevere\n" + "\n".join(rows) + "\n")
    (folder / "data/mha").mkdir(parents=True)
    for row in rows:
        image = SimpleITK.GetImageFromArray(RNG.integers(-1000, 500, VOLUME_SHAPE).astype(np.int16))
        image.SetSpacing((0.7, 0.7, 1.5))
        SimpleITK.WriteImage(image, str(folder / f"data/mha/{row.split(',')[0]}.mha"), useCompression=True)


def decathlon(name: str) -> Callable[[Path], None]:
    def lay(folder: Path) -> None:
        subset = next(subset for subset in DECATHLON if subset.task == name)
        base, training = folder / subset.folder, []
        for i in range(2):
            shape = (*VOLUME_SHAPE[::-1], len(subset.channels)) if subset.channels else VOLUME_SHAPE[::-1]
            write_nifti(base / f"imagesTr/case_{i:03d}.nii.gz", RNG.integers(0, 900, shape).astype(np.int16))
            mask = (RNG.integers(0, len(subset.classes), VOLUME_SHAPE[::-1])).astype(np.uint8)
            write_nifti(base / f"labelsTr/case_{i:03d}.nii.gz", mask)
            training.append({"image": f"./imagesTr/case_{i:03d}.nii.gz", "label": f"./labelsTr/case_{i:03d}.nii.gz"})
        description = {
            "name": name,
            "labels": {str(i): label for i, label in enumerate(subset.classes)},
            "numTraining": 2,
            "training": training,
            "test": ["./imagesTs/case_009.nii.gz"],
        }
        write_text(base / "dataset.json", json.dumps(description))

    return lay


def prostate_ct(folder: Path) -> None:
    for patient in ("p1", "p2"):
        write_nifti(folder / patient / "ct.nii.gz", RNG.integers(-1000, 500, VOLUME_SHAPE[::-1]).astype(np.int16))
        for name, radius in (("Body", 0.48), ("PTV", 0.3), ("Bladder", 0.2)):
            write_nifti(
                folder / patient / f"structures/{name}.nii.gz", ball(VOLUME_SHAPE[::-1], radius).astype(np.uint8)
            )
    write_nifti(folder / "p1/dose.nii.gz", (ball(VOLUME_SHAPE[::-1], 0.48) * 60.0).astype(np.float32))
    write_text(folder / "patients.csv", "patient,split,site\np1,train,north\np2,val,south\n")


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "openkbp": openkbp,
    "stoic": stoic,
    **{f"msd-{subset.task}": decathlon(subset.task) for subset in DECATHLON},
    "prostate-ct": prostate_ct,
}
