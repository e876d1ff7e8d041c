"""Planning CT of the prostate, one folder per patient: a layout for sets that hospitals cannot publish.

An example is the first set of the CTAN paper (Kim, Purdie and McIntosh, 2023): planning CT whose contours and dose are
predicted. That set is private and its form is not published, so this layout is our own. Contours and dose are volumes
in any format that mtfed reads, on the voxels of the CT; RTSTRUCT and RTDOSE files (DICOM) must be converted first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...errors import MtfedError
from ..manifest import SiteData
from ..root import Root
from .dataset import DataSet, Sample
from .masks import save_arrays
from .tables import read_csv

STRUCTURES = ("CTV", "PTV", "Bladder", "Rectum", "LeftFemur", "RightFemur")  # the targets are first
BODY = "Body"  # structure outside which the dose is zero
PATIENT_TABLE = "patients.csv"
SIDE = 512  # image size that Source requires; not used here


def read(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the patients; the contours and the dose of a patient become one file."""
    data = SiteData("prostate-ct", Root(folder), ())
    table = folder / PATIENT_TABLE
    metadata = {row["patient"]: row for row in read_csv(table, ("patient",))} if table.exists() else {}
    for patient in sorted(path for path in folder.iterdir() if (path / "structures").is_dir()):
        patient_metadata = metadata.get(patient.name, {})
        split = patient_metadata.get("split", "").lower()
        if split not in ("", "train", "val", "test"):
            raise MtfedError(
                f"{table}: split of patient {patient.name} should be train, val or test, it is {split!r}; correct it."
            )
        image = f"{patient.name}/{'ct' if (patient / 'ct').is_dir() else _single_file(patient, 'ct')}"
        arrays = _arrays(data, patient, image)
        cell = save_arrays(labels, patient.name, arrays)
        cells = {"structures": cell, "dose": cell if "dose" in arrays else ""}
        yield Sample(image, patient.name, cells, split, patient_metadata.get("site", ""))


def _arrays(data: SiteData, patient: Path, image: str) -> dict[str, np.ndarray]:
    """Return masks by structure and, if there is a dose: dose in Gy, mask of possible dose, voxel spacing in mm."""
    from ..source import Source  # imported here because listing the data sets does not need it

    ct = Source(data, image, SIDE, 3)

    def read_on_ct(name: str, role: str) -> np.ndarray:
        """Read an array that must have the voxels of the CT."""
        array = ct.array(name, role)
        if array.shape != ct.letterbox.shape:
            raise MtfedError(
                f"{role.capitalize()} {name} should have the voxels of {image}, {list(ct.letterbox.shape)}, it has "
                f"{list(array.shape)}; resample it to the CT."
            )
        return array

    paths = {path.name.split(".")[0]: path for path in sorted((patient / "structures").iterdir())}
    if unknown := sorted(paths.keys() - {*STRUCTURES, BODY}):
        expected = ", ".join((*STRUCTURES, BODY))
        raise MtfedError(f"{patient / 'structures'} contains {unknown[0]}, expected {expected}; rename or remove it.")
    files = {name: path.relative_to(data.root.path).as_posix() for name, path in paths.items()}
    masks = {name: read_on_ct(file, "mask") > 0.5 for name, file in files.items()}
    body = masks.pop(BODY, None)
    if not masks:
        raise MtfedError(f"{patient / 'structures'} contains none of {', '.join(STRUCTURES)}; add the contours.")
    if not list(patient.glob("dose.*")):
        return masks
    if body is None or ct.spacing is None:
        raise MtfedError(
            f"Patient {patient.name} has a dose, so expected structures/{BODY} (where there can be dose) and a CT with "
            "a voxel size; add them."
        )
    dose = read_on_ct(f"{patient.name}/{_single_file(patient, 'dose')}", "dose").astype(np.float32)
    return {**masks, "dose": dose, "possible": body, "spacing": np.asarray(ct.spacing)}


def _single_file(patient: Path, name: str) -> str:
    names = sorted(path.name for path in patient.glob(f"{name}.*"))
    if len(names) != 1:
        raise MtfedError(
            f"Expected one {name}.nii.gz (or another format) in {patient}, found {len(names)}; leave exactly one there."
        )
    return names[0]


SETS = (DataSet(
    name="prostate-ct", title="Planning CT of the prostate (your own data)",
    images=0, dimensions=3, channels=1, modality="planning CT", body_part="prostate",
    licence="your own",
    terms="Depends on your data. The set of the CTAN paper, for which this layout was made, is not public.",
    home="https://arxiv.org/abs/2309.03837",
    citation="Kim S, Purdie TG, McIntosh C. Cross-Task Attention Network: Improving Multi-Task Learning for Medical "
    "Imaging Applications. arXiv:2309.03837, 2023.",
    layout=f"""
PATIENT/            one folder per patient, named by the patient's id in the study
  ct/               a DICOM series; or ct.nii.gz, ct.nrrd, ct.mha
  structures/       {", ".join(f"{name}.nii.gz" for name in STRUCTURES)}: those that were contoured, each 1 inside
    Body.nii.gz     where there can be dose; required if there is a dose
  dose.nii.gz       in Gy, on the voxels of the CT; optional
patients.csv        columns patient, split (train, val, test), site; optional""",
    required=("*/structures/*", "*/ct/*|*/ct.*"),
    tasks={
        "structures": {"kind": "multi-label-segmentation", "classes": ", ".join(STRUCTURES)},
        "dose": {"kind": "dose", "classes": ", ".join(STRUCTURES), "range": "0, 100"},
    },
    read=read,
    access="Export CT, contours and dose from your planning system, convert contours and dose to NIfTI on the voxels "
    "of the CT, and place the files as shown below.",
    settings={"window": "40, 400"},
),)  # fmt: skip
