"""Planning CT of the prostate, a folder a patient: a layout for sets that hospitals keep to themselves.

The first set of the CTAN paper (Kim, Purdie and McIntosh, 2023) is one of these: planning CT whose contours and dose
are predicted. It is private, and its form is not told; this form is ours. Contours and dose are volumes in any format
that mtfed reads, on the CT's voxels; DICOM's RTSTRUCT and RTDOSE are to be converted first.
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

STRUCTURES = ("CTV", "PTV", "Bladder", "Rectum", "LeftFemur", "RightFemur")  # targets first
BODY = "Body"  # where there can be dose
TABLE = "patients.csv"
SIDE = 512  # of a frame that is not used


def read(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the patients; what was contoured and planned of one becomes one file."""
    data = SiteData("prostate-ct", Root(folder), ())
    table = folder / TABLE
    known = {row["patient"]: row for row in read_csv(table, ("patient",))} if table.exists() else {}
    for patient in sorted(path for path in folder.iterdir() if (path / "structures").is_dir()):
        about = known.get(patient.name, {})
        split = about.get("split", "").lower()
        if split not in ("", "train", "val", "test"):
            raise MtfedError(f"{table}: split of patient {patient.name} should be train, val or test, it is {split!r}.")
        image = "ct" if (patient / "ct").is_dir() else _only(patient, "ct")
        arrays = _arrays(data, patient, f"{patient.name}/{image}")
        cell = save_arrays(labels, patient.name, arrays)
        cells = {"structures": cell, "dose": cell if "dose" in arrays else ""}
        yield Sample(f"{patient.name}/{image}", patient.name, cells, split, about.get("site", ""))


def _arrays(data: SiteData, patient: Path, image: str) -> dict[str, np.ndarray]:
    """Return masks by structure, and dose in Gy, where it can be, and voxel spacing in mm where there is a dose."""
    from ..source import Source  # what it needs is not needed to list data sets

    ct = Source(data, image, SIDE, 3)

    def over(name: str, what: str) -> np.ndarray:
        """Read what lies over the CT, voxel by voxel."""
        found = ct.array(name, what)
        if found.shape != ct.letterbox.shape:
            raise MtfedError(
                f"{what.capitalize()} {name} should have the voxels of {image}, {list(ct.letterbox.shape)}, it has "
                f"{list(found.shape)}; resample it to the CT."
            )
        return found

    named = {path.name.split(".")[0]: path for path in sorted((patient / "structures").iterdir())}
    if strange := sorted(named.keys() - {*STRUCTURES, BODY}):
        raise MtfedError(
            f"{patient / 'structures'} holds {strange[0]}, expected {', '.join((*STRUCTURES, BODY))}; rename or "
            "remove it."
        )
    masks = {name: over(_within(path, data), "mask") > 0.5 for name, path in named.items()}
    body = masks.pop(BODY, None)
    if not masks:
        raise MtfedError(f"{patient / 'structures'} holds none of {', '.join(STRUCTURES)}; add what was contoured.")
    if not list(patient.glob("dose.*")):
        return masks
    if body is None or ct.spacing is None:
        raise MtfedError(
            f"Patient {patient.name} has a dose, so expected structures/{BODY} too, where dose can be, and a CT that "
            "tells its voxels' size; add them."
        )
    dose = over(f"{patient.name}/{_only(patient, 'dose')}", "dose").astype(np.float32)
    return {**masks, "dose": dose, "possible": body, "spacing": np.asarray(ct.spacing)}


def _within(path: Path, data: SiteData) -> str:
    return path.relative_to(data.root.path).as_posix()


def _only(patient: Path, name: str) -> str:
    found = sorted(path.name for path in patient.glob(f"{name}.*"))
    if len(found) != 1:
        raise MtfedError(f"Expected one {name}.nii.gz, or of another format, in {patient}, found {len(found)}.")
    return found[0]


SETS = (
    DataSet(
        name="prostate-ct",
        title="Planning CT of the prostate, of your own",
        images=0,
        dimensions=3,
        channels=1,
        modality="planning CT",
        licence="your own",
        terms="Yours to know. The set of the CTAN paper, which this layout is for, is not public.",
        home="https://arxiv.org/abs/2309.03837",
        citation="Kim S, Purdie TG, McIntosh C. Cross-Task Attention Network: Improving Multi-Task Learning for "
        "Medical Imaging Applications. arXiv:2309.03837, 2023.",
        place=f"""
PATIENT/            a folder a patient, called as the patient is in the study
  ct/               a DICOM series; or ct.nii.gz, ct.nrrd, ct.mha
  structures/       {", ".join(f"{name}.nii.gz" for name in STRUCTURES)}: those that are there, each 1 within
    Body.nii.gz     where there can be dose; needed where there is one
  dose.nii.gz       in Gy, on the voxels of the CT; may be left out
patients.csv        columns patient, split (train, val, test), site; may be left out
""",
        needs=("*/structures/*", "*/ct/*|*/ct.*"),
        tasks={
            "structures": {"kind": "multi-label-segmentation", "classes": ", ".join(STRUCTURES)},
            "dose": {"kind": "dose", "classes": ", ".join(STRUCTURES), "range": "0, 100"},
        },
        read=read,
        access="Export CT, contours and dose from your planning system, convert contours and dose to NIfTI on the "
        "voxels of the CT, and place them so.",
        settings={"window": "40, 400"},
    ),
)
