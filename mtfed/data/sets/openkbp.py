"""OpenKBP: planning CT of the head and neck with organs, targets and the dose that was planned.

The official form is sparse tables of a 128 x 128 x 128 grid whose axes lead to the patient's back, to the left and to
the feet (so they come out of the masks: mandible before spinal cord, right parotid before left, brainstem before
oesophagus). Each patient becomes one file with the axes z to the head, y to the back, x to the left.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...errors import MtfedError
from .dataset import DataSet, RemoteFile, Sample
from .masks import save_arrays

# In the order of the bit field in re-encoded copies; the structures from PTV56 on are targets.
STRUCTURES = (
    "Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Esophagus", "Larynx", "Mandible", "PTV56", "PTV63",
    "PTV70",
)  # fmt: skip
SHAPE = (128, 128, 128)
AIR = -1024  # HU of what no table names: CT is stored as HU + 1024, without its zeros
PARTS = {"train-pats": "train", "valid-pats": "val", "test-pats": "test"}
TASKS = {
    "structures": {"kind": "multi-label-segmentation", "classes": ", ".join(STRUCTURES)},
    "dose": {"kind": "dose", "classes": ", ".join(STRUCTURES), "range": "0, 100"},
}


def read(folder: Path, labels: Path) -> Iterator[Sample]:
    """Yield the patients of the splits that are there, each converted to one file."""
    base = next(path.parent for part in PARTS for path in _bases(folder, part))
    for part, split in PARTS.items():
        for patient in sorted((base / part).glob("pt_*"), key=_number):
            cell = save_arrays(labels, patient.name, read_patient(patient))
            yield Sample(cell, patient.name, {"structures": cell, "dose": cell}, split)


def read_patient(folder: Path) -> dict[str, np.ndarray]:
    """Return the arrays of one patient's tables, axes (z, y, x): CT in HU, dose in Gy, masks, and spacing in mm."""
    spacing = _numbers(folder / "voxel_dimensions.csv")
    if spacing.shape != (3,) or not (spacing > 0).all():
        raise MtfedError(f"{folder / 'voxel_dimensions.csv'} should hold three numbers above 0, one a line.")
    arrays = {
        "image": _grid(folder / "ct.csv", np.int16) + np.int16(AIR),
        "dose": _grid(folder / "dose.csv", np.float32),
        "possible": _grid(folder / "possible_dose_mask.csv", np.bool_),
        "spacing": spacing[[2, 0, 1]],
    }
    structures = {name: folder / f"{name}.csv" for name in STRUCTURES}
    return arrays | {name: _grid(path, np.bool_) for name, path in structures.items() if path.exists()}


def _grid(path: Path, kind: type[np.generic]) -> np.ndarray:
    """Return the grid that a sparse table fills: its rows are a voxel's place and value, without value of a mask."""
    mask = kind is np.bool_
    rows = _numbers(path, skiprows=1, delimiter=",", usecols=(0,) if mask else (0, 1)).reshape(-1, 1 if mask else 2)
    places = rows[:, 0]
    if not ((places >= 0) & (places < np.prod(SHAPE)) & (places % 1 == 0)).all():
        raise MtfedError(f"{path} names voxels outside a grid of {' x '.join(map(str, SHAPE))}; get it again.")
    grid = np.zeros(SHAPE, kind)
    grid.flat[places.astype(np.int64)] = True if mask else rows[:, 1]
    return np.ascontiguousarray(grid.transpose(2, 0, 1)[::-1])


def _numbers(path: Path, **how: object) -> np.ndarray:
    try:
        return np.loadtxt(path, np.float64, ndmin=1, **how)  # type: ignore[call-overload,no-any-return]
    except OSError as error:
        raise MtfedError(f"Cannot read {path}: {error.strerror or error}; every patient has one.") from None
    except (ValueError, IndexError) as error:
        raise MtfedError(f"{path} is no table of numbers: {str(error).split(';')[0]}; get it again.") from None


def _bases(folder: Path, part: str) -> list[Path]:
    return [path for pattern in ("", "provided-data/", "*/provided-data/") for path in folder.glob(f"{pattern}{part}")]


def _number(path: Path) -> int:
    digits = path.name.removeprefix("pt_")
    return int(digits) if digits.isdecimal() else 0


SETS = (
    DataSet(
        name="openkbp",
        title="OpenKBP",
        images=340,  # 200, 40 and 100
        dimensions=3,
        channels=1,
        modality="planning CT",
        licence="MIT",
        terms="The repository is under the MIT licence; the patients' scans are from The Cancer Imaging Archive.",
        home="https://github.com/ababier/open-kbp",
        citation="Babier A, Zhang B, Mahmood R, et al. OpenKBP: The open-access knowledge-based planning grand "
        "challenge and dataset. Medical Physics 48(9):5549-5561, 2021.",
        place="""
provided-data/
  train-pats/pt_1/    ct.csv, dose.csv, possible_dose_mask.csv, voxel_dimensions.csv,
                      and of the structures that are there: Brainstem.csv, SpinalCord.csv, ..., PTV70.csv
  valid-pats/pt_201/  likewise
  test-pats/pt_241/   likewise
""",
        needs=("train-pats/pt_*/ct.csv|provided-data/train-pats/pt_*/ct.csv|*/provided-data/train-pats/pt_*/ct.csv",),
        tasks=TASKS,
        read=read,
        settings={"window": "40, 400"},
        # The repository as a whole, of which the tables are the most; GitHub packs it anew, so it has no checksum.
        files=(
            RemoteFile("open-kbp.zip", "https://github.com/ababier/open-kbp/archive/refs/heads/master.zip", unpack=""),
        ),
        note="CT is given in HU, and every patient becomes one file with the head up. Where a structure was not "
        "contoured, it is not marked.",
    ),
)
