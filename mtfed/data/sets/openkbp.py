"""OpenKBP: planning CT of the head and neck with organs, targets and planned dose.

The official form is sparse tables of a 128 x 128 x 128 grid. Its axes point to the patient's back, left and feet (the
masks show this: the mandible is before the spinal cord, the right parotid before the left, the brainstem before the
oesophagus). Each patient becomes one file with the axes z to the head, y to the back, x to the left.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...errors import MtfedError
from .dataset import DataSet, RemoteFile, Sample
from .masks import save_arrays

HOME = "https://github.com/ababier/open-kbp"
# In the order of the bit field in re-encoded copies; the structures from PTV56 on are targets.
STRUCTURES = (
    "Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Esophagus", "Larynx", "Mandible", "PTV56", "PTV63",
    "PTV70",
)  # fmt: skip
SHAPE = (128, 128, 128)
AIR = -1024  # HU of voxels that a table omits: CT is stored as HU + 1024, without zeros
ROOTS = ("", "provided-data/", "*/provided-data/")  # patterns of the folder that contains the splits
SPLIT_FOLDERS = {"train-pats": "train", "valid-pats": "val", "test-pats": "test"}


def read(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the patients of the splits that are present, each converted to one file."""
    root = next(path.parent for name in SPLIT_FOLDERS for root in ROOTS for path in folder.glob(f"{root}{name}"))
    for name, split in SPLIT_FOLDERS.items():
        for patient in sorted((root / name).glob("pt_*"), key=_patient_number):
            cell = save_arrays(labels, patient.name, read_patient(patient))
            yield Sample(cell, patient.name, {"structures": cell, "dose": cell}, split)


def read_patient(folder: Path) -> dict[str, np.ndarray]:
    """Return the arrays of one patient with the axes (z, y, x): CT in HU, dose in Gy, masks, and spacing in mm."""
    spacing = _numbers(folder / "voxel_dimensions.csv")
    if spacing.shape != (3,) or not (spacing > 0).all():
        raise MtfedError(
            f"{folder / 'voxel_dimensions.csv'} should contain three numbers above 0, one per line; get it again."
        )
    arrays = {
        "image": _grid(folder / "ct.csv", np.int16) + np.int16(AIR),
        "dose": _grid(folder / "dose.csv", np.float32),
        "possible": _grid(folder / "possible_dose_mask.csv", np.bool_),
        "spacing": spacing[[2, 0, 1]],
    }
    structures = {name: folder / f"{name}.csv" for name in STRUCTURES}
    return arrays | {name: _grid(path, np.bool_) for name, path in structures.items() if path.exists()}


def _grid(path: Path, dtype: type[np.generic]) -> np.ndarray:
    """Return the grid of a sparse table, whose rows are the index and value of a voxel; a mask has no values."""
    is_mask = dtype is np.bool_
    columns = (0,) if is_mask else (0, 1)
    rows = _numbers(path, skiprows=1, delimiter=",", usecols=columns).reshape(-1, len(columns))
    indices = rows[:, 0]
    if not ((indices >= 0) & (indices < np.prod(SHAPE)) & (indices % 1 == 0)).all():
        raise MtfedError(f"{path} names voxels outside a grid of {' x '.join(map(str, SHAPE))}; get it again.")
    grid = np.zeros(SHAPE, dtype)
    grid.flat[indices.astype(np.int64)] = True if is_mask else rows[:, 1]
    return np.ascontiguousarray(grid.transpose(2, 0, 1)[::-1])


def _numbers(path: Path, **options: object) -> np.ndarray:
    try:
        return np.loadtxt(path, np.float64, ndmin=1, **options)  # type: ignore[call-overload,no-any-return]
    except OSError as error:
        reason = error.strerror or error
        raise MtfedError(f"Cannot read {path}: {reason}; every patient should have this file.") from None
    except (ValueError, IndexError) as error:
        raise MtfedError(f"{path} is not a table of numbers: {str(error).split(';')[0]}; get it again.") from None


def _patient_number(path: Path) -> int:
    digits = path.name.removeprefix("pt_")
    return int(digits) if digits.isdecimal() else 0


SETS = (DataSet(
    name="openkbp", title="OpenKBP",
    images=340, dimensions=3, channels=1, modality="planning CT", body_part="head and neck",  # 200, 40 and 100
    licence="MIT",
    terms="The repository is under the MIT licence; the patients' scans are from The Cancer Imaging Archive.",
    home=HOME,
    citation="Babier A, Zhang B, Mahmood R, et al. OpenKBP: The open-access knowledge-based planning grand challenge "
    "and dataset. Medical Physics 48(9):5549-5561, 2021.",
    layout="""
provided-data/
  train-pats/pt_1/    ct.csv, dose.csv, possible_dose_mask.csv, voxel_dimensions.csv,
                      and the contoured structures: Brainstem.csv, SpinalCord.csv, ..., PTV70.csv
  valid-pats/pt_201/  the same
  test-pats/pt_241/   the same""",
    required=("|".join(f"{root}train-pats/pt_*/ct.csv" for root in ROOTS),),
    tasks={
        "structures": {"kind": "multi-label-segmentation", "classes": ", ".join(STRUCTURES)},
        "dose": {"kind": "dose", "classes": ", ".join(STRUCTURES), "range": "0, 100"},
    },
    read=read, settings={"window": "40, 400"},
    # The whole repository, mostly the tables. GitHub creates the archive on request, so it has no checksum.
    files=(RemoteFile("open-kbp.zip", f"{HOME}/archive/refs/heads/master.zip", unpack_to=""),),
    note="CT is converted to HU, and every patient becomes one file with the head up. Structures that were not "
    "contoured for a patient are not labelled.",
),)  # fmt: skip
