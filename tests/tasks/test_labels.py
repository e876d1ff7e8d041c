"""Reading labels of every kind: valid cells and files, and the errors for invalid ones."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.kinds import AGE, AXES, DOSE, FINDINGS, GRADE, NUMBERED, PARTS, source
from mtfed.data.source import Source
from mtfed.errors import LabelError, MtfedError
from mtfed.tasks import dose
from mtfed.tasks.kind import kind_of
from mtfed.tasks.task import Task

CELLS = [
    (FINDINGS, "mass", [0, 1, 0]),
    (FINDINGS, "nodule; effusion", [1, 0, 1]),
    (FINDINGS, "none", [0, 0, 0]),
    (FINDINGS, "1;0;?", [1, 0, -1]),
    (FINDINGS, "? ; ? ; 1", [-1, -1, 1]),
    (GRADE, "mild", 1),
    (GRADE, "none", 0),
    (GRADE, "3", 3),
    (NUMBERED, "4", 3),
    (NUMBERED, "1", 0),
    (AGE, "61.5", [61.5]),
    (AXES, "2.3; -1", [2.3, -1]),
    (AXES, "?; 40", [np.nan, 40]),
]


@pytest.mark.parametrize(("task", "cell", "label"), CELLS)
def test_a_cell_becomes_a_label(task: Task, cell: str, label: Any) -> None:
    values = kind_of(task).read(cell, task, source())
    np.testing.assert_allclose(values, label, rtol=1e-6)
    assert values.dtype == (np.float32 if task.kind == "regression" else np.int64)


INVALID_CELLS = [
    (FINDINGS, "heart", r"Image p\.png of site north: label 'heart' of task findings should name those of effusion, "),
    (FINDINGS, "mass; ", "that are present, or be 'none', or 3 of 0, 1 and"),
    (FINDINGS, "1;0", "3 of 0, 1 and"),
    (FINDINGS, "1;0;2", "label '1;0;2'"),
    (FINDINGS, "none; mass", "label 'none; mass'"),
    (FINDINGS, "?;?;?", "contains no known class; leave the cell empty"),
    (
        GRADE,
        "awful",
        r"p\.png of site north: label 'awful' of task grade should be one of none, mild, moderate, severe",
    ),
    (GRADE, "4", "or an index below 4"),
    (GRADE, "²", "or an index below 4"),
    (NUMBERED, "0", "label '0' of task birads should be one of 1, 2, 3, 4.$"),  # an index would be another class
    (NUMBERED.model_copy(update={"classes": ("1.0", "2.0")}), "1", "should be one of 1.0, 2.0.$"),
    (AGE, "old", r"p\.png of site north: label 'old' of task age should be 1 numbers or \?"),
    (AGE, "61,5", "label '61,5'"),
    (AGE, "nan", "label 'nan'"),
    (AGE, "inf", "label 'inf'"),
    (AGE, "1; 2", "should be 1 numbers"),
    (AXES, "1", r"should be 2 numbers or \?, with ';' between them: long, short"),
    (AXES, "?; ?", "contains no number; leave the cell empty"),
    (AGE, "610", r"p\.png of site north: label '610' of task age is outside the task's range, 0 to 120; correct one"),
    (AXES, "?; -11", "outside the task's range, -10 to 40"),
    (PARTS, "p.png", r"label 'p\.png' of parts should be the path of an \.npz file"),
    (DOSE, "p.npy", r"label 'p\.npy' of dose should be the path of an \.npz file"),
]


@pytest.mark.parametrize(("task", "cell", "message"), INVALID_CELLS)
def test_an_invalid_cell_is_refused(task: Task, cell: str, message: str) -> None:
    with pytest.raises(MtfedError, match=message):
        kind_of(task).read(cell, task, source())


def plan(shape: tuple[int, ...] = (6, 6)) -> dict[str, np.ndarray]:
    """Return a patient's arrays: dose rises along the last axis and is not possible in the first row."""
    possible = np.ones(shape, bool)
    possible[0] = False
    target = np.zeros(shape, bool)
    target[..., shape[-1] // 2 :] = True
    ramp = np.broadcast_to(np.linspace(0, 70, shape[-1]), shape)
    return {"dose": ramp * possible, "possible": possible, "spacing": np.array([3, 2, 2]), "PTV70": target}


def write(folder: Path, shape: tuple[int, ...], arrays: dict[str, np.ndarray]) -> Source:
    """Write an image of a shape and its arrays; return the image as a source with side 6."""
    if len(shape) == 2:
        Image.fromarray(np.zeros(shape, np.uint8)).save(folder / "p.png")
    else:
        np.save(folder / "p.npy", np.zeros(shape, np.uint8))
    np.savez(folder / "a.npz", **arrays)
    return source(folder, "p.png" if len(shape) == 2 else "p.npy", 6, len(shape))


SHAPES = [(6, 6), (6, 6, 6)]


@pytest.mark.parametrize("shape", SHAPES)
def test_unmarked_structures_differ_from_empty_ones(tmp_path: Path, shape: tuple[int, ...]) -> None:
    lung = np.zeros(shape, bool)
    lung[1:3] = True
    site = write(tmp_path, shape, {"lung": lung, "rib": np.zeros(shape, np.uint8), "other": np.zeros(3)})
    values = kind_of(PARTS).read("a.npz", PARTS, site)
    assert values.dtype == np.uint8
    np.testing.assert_array_equal(values, np.stack([np.full(shape, 255), lung, np.zeros(shape)]))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_dose_is_read_and_unpacked(tmp_path: Path, shape: tuple[int, ...]) -> None:
    arrays = plan(shape) | {"Larynx": np.zeros(shape, bool)}
    values = kind_of(DOSE).read("a.npz", DOSE, write(tmp_path, shape, arrays))
    assert (values.dtype, values.shape) == (np.int16, (3, *shape))
    (read,) = dose.plans(torch.from_numpy(values[None]).long(), DOSE)
    np.testing.assert_allclose(read.dose * 80, arrays["dose"], atol=80 / dose.STEPS)
    np.testing.assert_array_equal(read.possible, arrays["possible"])
    assert list(read.structures) == ["PTV70"]  # a structure without voxels has no dose
    np.testing.assert_array_equal(read.structures["PTV70"], arrays["PTV70"])
    assert read.tenth == round(100 / 12)


def test_a_dose_keeps_its_volume_when_it_is_resized(tmp_path: Path) -> None:
    big = plan((12, 12, 12))
    values = kind_of(DOSE).read("a.npz", DOSE, write(tmp_path, (12, 12, 12), big))
    (read,) = dose.plans(torch.from_numpy(values[None]).long(), DOSE)
    assert read.tenth == max(1, round(100 / (12 * 8)))
    means = (big["dose"] * big["possible"]).reshape(6, 2, 6, 2, 6, 2).mean((1, 3, 5))
    np.testing.assert_allclose(read.dose[1:] * 80, means[1:], atol=80 / dose.STEPS)
    slice_ = kind_of(DOSE).read(
        "a.npz", DOSE, write(tmp_path, (12, 6), plan((12, 6)))
    )  # beside the image no dose is possible
    assert (slice_[0][:, [0, 1, 5]] == -1).all() and slice_[2, 0, 0] == round(100 / (12 * 4))


def test_all_sixteen_structures_have_a_bit(tmp_path: Path) -> None:
    names = tuple(f"organ{i}" for i in range(17))
    masks = {name: np.random.default_rng(i).random((6, 6)) < 0.5 for i, name in enumerate(names)}
    site = write(tmp_path, (6, 6), plan() | masks)
    task = DOSE.model_copy(update={"classes": names[:16]})
    (read,) = dose.plans(torch.from_numpy(kind_of(task).read("a.npz", task, site)[None]).long(), task)
    for name in names[:16]:
        np.testing.assert_array_equal(read.structures[name], masks[name])
    with pytest.raises(MtfedError, match="Task dose should have at most 16 structures, it has 17"):
        kind_of(DOSE).read("a.npz", DOSE.model_copy(update={"classes": names}), site)


INVALID_ARRAYS = [  # task, changes of a valid file, message
    (
        PARTS,
        {"heart": np.full((6, 6), 2)},
        r"Mask heart in a\.npz of site north should contain false and true, .* up to 2",
    ),
    (PARTS, {"heart": np.zeros((6, 6))}, "it has type float64"),
    (PARTS, {"heart": np.zeros((5, 6), bool)}, r"Mask heart in a\.npz of site north should be 6 x 6 pixels"),
    (PARTS, {}, r"Expected arrays called heart, lung, rib in a\.npz of site north, found none"),
    (DOSE, {"dose": None}, r"Expected an array 'dose' of numbers in a\.npz of site north, found none"),
    (DOSE, {"possible": None}, "Expected an array 'possible'"),
    (DOSE, {"spacing": np.array(["wide"])}, "Expected an array 'spacing' of numbers"),
    (
        DOSE,
        {"spacing": np.array([2.0, 2.0])},
        r"Spacing in a\.npz of site north should be three numbers above 0, in mm",
    ),
    (DOSE, {"spacing": np.array([2.0, 2.0, 0.0])}, "should be three numbers above 0"),
    (DOSE, {"dose": np.full((6, 6), 81)}, r"in the range of task dose, 0 to 80 Gy; .* is 81 to 81 Gy"),
    (DOSE, {"dose": np.full((6, 6), np.nan)}, "possible it is nan to nan Gy"),
    (DOSE, {"dose": np.zeros((5, 6))}, r"should have the same shape, .* are \[5, 6\] and \[6, 6\]"),
    (DOSE, {"possible": np.zeros((6, 6), bool)}, "some voxel where dose is possible"),
    (DOSE, {"dose": np.zeros((5, 5)), "possible": np.ones((5, 5))}, r"^Dose in a\.npz of site north should be 6 x 6"),
    (PARTS, {"heart": np.full((6, 6), "yes")}, "it has type <U3; save it as such"),
    (DOSE, {"cord": np.full((6, 6), 3)}, "Mask cord in a"),
]


@pytest.mark.parametrize(("task", "changes", "message"), INVALID_ARRAYS)
def test_an_invalid_file_is_refused(tmp_path: Path, task: Task, changes: dict[str, Any], message: str) -> None:
    arrays = {name: array for name, array in (plan() | changes).items() if array is not None}
    site = write(tmp_path, (6, 6), arrays)
    with pytest.raises(MtfedError, match=message):
        kind_of(task).read("a.npz", task, site)


MASK = Task(name="mask", kind="segmentation", classes=("background", "lung"))
BLOOD = Task(name="cells", kind="detection", classes=("red", "white"))
FAULTS = [  # task, cell, the finding of the site's check that it belongs to
    (FINDINGS, "heart", "class"),
    (GRADE, "awful", "class"),
    (AGE, "old", "wrong"),
    (AGE, "610", "range"),
    (BLOOD, "1,2", "wrong"),
    (BLOOD, "0,0,4,4,blue", "class"),
    (BLOOD, "9,9,4,4,red", "range"),
    (BLOOD, "[[0, 0, -4, 4, 1]]", "range"),
    (PARTS, "p.png", "unreadable"),
    (MASK, "p.png", "values"),
    (MASK, "small.npy", "misfit"),
    (MASK, "colour.npy", "misfit"),
    (PARTS, "none.npz", "wrong"),
    (PARTS, "two.npz", "values"),
    (PARTS, "small.npz", "misfit"),
    (DOSE, "none.npz", "wrong"),
]


@pytest.mark.parametrize(("task", "cell", "fault"), FAULTS)
def test_an_error_contains_the_kind_of_fault(tmp_path: Path, task: Task, cell: str, fault: str) -> None:
    Image.fromarray(np.full((6, 6), 7, np.uint8)).save(tmp_path / "p.png")
    np.save(tmp_path / "small.npy", np.zeros((5, 6), np.uint8))
    np.save(tmp_path / "colour.npy", np.zeros((6, 6, 3), np.uint8))
    np.savez(tmp_path / "none.npz", other=np.zeros((6, 6), bool))
    np.savez(tmp_path / "two.npz", heart=np.full((6, 6), 2))
    np.savez(tmp_path / "small.npz", heart=np.zeros((5, 6), bool))
    with pytest.raises(LabelError) as caught:
        kind_of(task).read(cell, task, source(tmp_path, size=6))
    assert caught.value.fault == fault
    assert pickle.loads(pickle.dumps(caught.value)).fault == fault
