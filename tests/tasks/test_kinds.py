"""Kinds of tasks: cells good and bad; losses, curvatures, metrics and dose histograms against slow references."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mtfed.config import Config
from mtfed.data.manifest import SiteData
from mtfed.data.root import Root
from mtfed.data.source import Source
from mtfed.errors import MtfedError
from mtfed.learning.losses import task_loss
from mtfed.learning.metrics import TaskMetrics, pool
from mtfed.tasks import dose, dvh
from mtfed.tasks.kind import kind_of
from mtfed.tasks.specs import KIND_SPECS, METRIC_SPECS
from mtfed.tasks.task import Task

FINDINGS = Task(name="findings", kind="multi-label", classes=("effusion", "mass", "nodule"))
NUMBERED = Task(name="birads", kind="ordinal", classes=("1", "2", "3", "4"))
GRADE = Task(name="grade", kind="ordinal", classes=("none", "mild", "moderate", "severe"))
AGE = Task(name="age", kind="regression", classes=("age",), range=(0, 120))
AXES = Task(name="axes", kind="regression", classes=("long", "short"), range=(-10, 40))
PARTS = Task(name="parts", kind="multi-label-segmentation", classes=("heart", "lung", "rib"))
DOSE = Task(name="dose", kind="dose", classes=("cord", "Larynx", "PTV70"), range=(0, 80))
TASKS = {task.name: task for task in (FINDINGS, GRADE, AGE, AXES, PARTS, DOSE)}
OPENKBP = Path(__file__).parents[3] / "shared" / "data" / "openkbp3d"


def config(*tasks: Task) -> Config:
    return Config(tasks={task.name: task for task in tasks}, focal_gamma=1.5)


def trained_by(task: Task, loss: str) -> Task:
    return Task.model_validate(task.model_dump() | {"loss": loss})


def source(root: Path = Path("."), image: str = "p.png", size: int = 8, dimensions: int = 2) -> Source:
    return Source(SiteData("north", Root(root), ()), image, size, dimensions)


# Cells.

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
def test_a_cell_is_read(task: Task, cell: str, label: Any) -> None:
    found = kind_of(task).read(cell, task, source())
    np.testing.assert_allclose(found, label, rtol=1e-6)
    assert found.dtype == (np.float32 if task.kind == "regression" else np.int64)


BAD_CELLS = [
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
    (AGE, "610", r"p\.png of site north: label '610' of task age lies outside the task's range, 0 to 120; correct one"),
    (AXES, "?; -11", "outside the task's range, -10 to 40"),
    (PARTS, "p.png", r"label 'p\.png' of parts should be the path of an \.npz file"),
    (DOSE, "p.npy", r"label 'p\.npy' of dose should be the path of an \.npz file"),
]


@pytest.mark.parametrize(("task", "cell", "message"), BAD_CELLS)
def test_a_bad_cell_says_what_it_should_be(task: Task, cell: str, message: str) -> None:
    with pytest.raises(MtfedError, match=message):
        kind_of(task).read(cell, task, source())


def plan(shape: tuple[int, ...] = (6, 6)) -> dict[str, np.ndarray]:
    """Return a patient's arrays: dose rises along the last axis, the first row can have none."""
    possible = np.ones(shape, bool)
    possible[0] = False
    target = np.zeros(shape, bool)
    target[..., shape[-1] // 2 :] = True
    ramp = np.broadcast_to(np.linspace(0, 70, shape[-1]), shape)
    return {"dose": ramp * possible, "possible": possible, "spacing": np.array([3, 2, 2]), "PTV70": target}


def write(folder: Path, shape: tuple[int, ...], arrays: dict[str, np.ndarray]) -> Source:
    """Write an image of a shape and arrays that belong to it; return the image as the model sees it, of side 6."""
    if len(shape) == 2:
        Image.fromarray(np.zeros(shape, np.uint8)).save(folder / "p.png")
    else:
        np.save(folder / "p.npy", np.zeros(shape, np.uint8))
    np.savez(folder / "a.npz", **arrays)
    return source(folder, "p.png" if len(shape) == 2 else "p.npy", 6, len(shape))


SHAPES = [(6, 6), (6, 6, 6)]


@pytest.mark.parametrize("shape", SHAPES)
def test_structures_that_are_not_marked_are_told_from_empty_ones(tmp_path: Path, shape: tuple[int, ...]) -> None:
    lung = np.zeros(shape, bool)
    lung[1:3] = True
    site = write(tmp_path, shape, {"lung": lung, "rib": np.zeros(shape, np.uint8), "other": np.zeros(3)})
    found = kind_of(PARTS).read("a.npz", PARTS, site)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.stack([np.full(shape, 255), lung, np.zeros(shape)]))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_dose_is_read_and_unpacked(tmp_path: Path, shape: tuple[int, ...]) -> None:
    arrays = plan(shape) | {"Larynx": np.zeros(shape, bool)}
    found = kind_of(DOSE).read("a.npz", DOSE, write(tmp_path, shape, arrays))
    assert (found.dtype, found.shape) == (np.int16, (3, *shape))
    (read,) = dose.plans(torch.from_numpy(found[None]).long(), DOSE)
    np.testing.assert_allclose(read.dose * 80, arrays["dose"], atol=80 / dose.STEPS)
    np.testing.assert_array_equal(read.possible, arrays["possible"])
    assert list(read.structures) == ["PTV70"]  # one without a voxel has no dose
    np.testing.assert_array_equal(read.structures["PTV70"], arrays["PTV70"])
    assert read.tenth == round(100 / 12)


def test_a_dose_keeps_its_volume_when_it_is_resized(tmp_path: Path) -> None:
    big = plan((12, 12, 12))
    found = kind_of(DOSE).read("a.npz", DOSE, write(tmp_path, (12, 12, 12), big))
    (read,) = dose.plans(torch.from_numpy(found[None]).long(), DOSE)
    assert read.tenth == max(1, round(100 / (12 * 8)))
    means = (big["dose"] * big["possible"]).reshape(6, 2, 6, 2, 6, 2).mean((1, 3, 5))
    np.testing.assert_allclose(read.dose[1:] * 80, means[1:], atol=80 / dose.STEPS)
    slice_ = kind_of(DOSE).read("a.npz", DOSE, write(tmp_path, (12, 6), plan((12, 6))))  # beside it nothing is possible
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


BAD_ARRAYS = [  # task, what is changed of a good file, message
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
    (DOSE, {"dose": np.full((6, 6), 81)}, r"in the range of task dose, 0 to 80 Gy; .* goes from 81 to 81"),
    (DOSE, {"dose": np.full((6, 6), np.nan)}, "goes from nan to nan"),
    (DOSE, {"dose": np.zeros((5, 6))}, r"should have the same shape, .* are \[5, 6\] and \[6, 6\]"),
    (DOSE, {"possible": np.zeros((6, 6), bool)}, "some voxel where dose is possible"),
    (DOSE, {"dose": np.zeros((5, 5)), "possible": np.ones((5, 5))}, r"^Dose in a\.npz of site north should be 6 x 6"),
    (PARTS, {"heart": np.full((6, 6), "yes")}, "it has type <U3; save it as such"),
    (DOSE, {"cord": np.full((6, 6), 3)}, "Mask cord in a"),
]


@pytest.mark.parametrize(("task", "changes", "message"), BAD_ARRAYS)
def test_a_bad_file_says_what_is_wrong(tmp_path: Path, task: Task, changes: dict[str, Any], message: str) -> None:
    arrays = {name: array for name, array in (plan() | changes).items() if array is not None}
    site = write(tmp_path, (6, 6), arrays)
    with pytest.raises(MtfedError, match=message):
        kind_of(task).read("a.npz", task, site)


# What the losses, curvatures and metrics are tested on: (outputs, values) of M images, float64.


def examples(task: Task, images: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = np.random.default_rng(seed)
    classes, shape = len(task.classes), (4, 5)
    channels = {
        "multi-label": (classes,), "ordinal": (classes - 1,), "regression": (classes,),
        "multi-label-segmentation": (classes, *shape), "dose": (1, *shape),
    }[task.kind]  # fmt: skip
    outputs = generator.normal(0.3, 1, (images, *channels))
    if task.kind == "multi-label":
        values = generator.integers(-1, 2, (images, classes))
        values[:, 0] = generator.integers(0, 2, images)  # an image knows of some class
    elif task.kind == "ordinal":
        values = generator.integers(0, classes, images)
    elif task.kind == "regression":
        values = generator.uniform(*task.range, (images, classes)).astype(np.float32)
        values[::3, 1:] = np.nan
    elif task.kind == "multi-label-segmentation":
        values = generator.integers(0, 2, (images, classes, *shape))
        values[1::2, 1:] = 255
        values[:3, 0], outputs[1, 0] = 0, -1  # not there: falsely found, not found, falsely found
    else:
        steps = np.where(
            generator.random((images, *shape)) < 0.7, generator.integers(0, dose.STEPS, (images, *shape)), -1
        )
        bits = generator.integers(0, 8, (images, *shape)) & np.where(np.arange(images) % 3, 7, 5)[:, None, None]
        values = np.stack([steps, bits, np.full_like(bits, 3)], axis=1)
    return torch.from_numpy(outputs), torch.from_numpy(values)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def bernoulli(logit: float, truth: int, gamma: float = 0) -> float:
    p = sigmoid(logit) if truth else 1 - sigmoid(logit)
    return -((1 - p) ** gamma) * np.log(p)


def entropy(outputs: np.ndarray, values: np.ndarray, task: Task, gamma: float = 0) -> float:
    """Return the cross-entropy of labels or masks, mean over pixels, what is known of an image, and images."""
    images = []
    for output, value in zip(outputs, values, strict=True):
        each = []
        for o, v in zip(output.reshape(len(output), -1), value.reshape(len(value), -1), strict=True):
            if v[0] not in (-1, 255):
                each.append(np.mean([bernoulli(x, t, gamma) for x, t in zip(o, v, strict=True)]))
        images.append(np.mean(each))
    return float(np.mean(images))


def cumulative(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    each = [sum(bernoulli(o, v > k) for k, o in enumerate(output)) for output, v in zip(outputs, values, strict=True)]
    return float(np.mean(each))


def over_known(term: Callable[[float], float]) -> Callable[[np.ndarray, np.ndarray, Task], float]:
    """Return the mean over images of a term over what is known, in units of the range."""

    def slow(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
        low, high = task.range
        if task.kind == "dose":
            values = np.where(values[:, :1] >= 0, values[:, :1] / dose.STEPS * (high - low) + low, np.nan)
        images = []
        for output, value in zip(outputs, values, strict=True):
            truth = (value.astype(float) - low) / (high - low)
            images.append(np.mean([term(o - t) for o, t in zip(output.flat, truth.flat, strict=True) if t == t]))
        return float(np.mean(images))

    return slow


def soft_dice(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    images = []
    for output, value in zip(outputs, values, strict=True):
        each = []
        for p, v in zip(sigmoid(output), value, strict=True):
            if v[0, 0] != 255:
                each.append(1 - (2 * (p * v).sum() + 1e-5) / (p.sum() + v.sum() + 1e-5))
        images.append(np.mean(each))
    return float(np.mean(images))


def patients(outputs: np.ndarray, values: np.ndarray, task: Task) -> Any:
    """Yield each patient's predicted and planned dose in Gy, where it is possible, and structures, by definition."""
    low, high = task.range
    for output, (steps, bits, tenth) in zip(outputs[:, 0], values, strict=True):
        possible = steps >= 0
        predicted = np.where(possible, output * (high - low) + low, 0)
        planned = np.where(possible, steps / dose.STEPS * (high - low) + low, 0)
        masks = {name: (bits // 2**i) % 2 == 1 for i, name in enumerate(task.classes)}
        yield predicted, planned, possible, {name: mask for name, mask in masks.items() if mask.any()}, tenth.flat[0]


def slow_dvh(gray: np.ndarray, name: str, mask: np.ndarray, tenth: int) -> dict[str, float]:
    """Return the metrics of a structure as the challenge defines them."""
    inside = gray[mask]
    if name.startswith("PTV"):
        return {"D_99": np.percentile(inside, 1), "D_95": np.percentile(inside, 5), "D_1": np.percentile(inside, 99)}
    return {"D_0.1cc": np.percentile(inside, max(0, 100 - tenth / len(inside) * 100)), "mean": np.mean(inside)}


def histogram(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    high, total = task.range[1], []
    for predicted, planned, _, masks, _ in patients(outputs, values, task):
        each = []
        for mask in masks.values():
            for level in (np.arange(32) + 0.5) / 32:
                shares = [np.mean(sigmoid(32 * (gray[mask] / high - level))) for gray in (predicted, planned)]
                each.append((shares[0] - shares[1]) ** 2)
        total.append(np.mean(each))
    return float(np.mean(total))


LOSSES: dict[tuple[str, str], Callable[[np.ndarray, np.ndarray, Task], float]] = {
    ("findings", "cross-entropy"): entropy,
    ("findings", "focal"): lambda outputs, values, task: entropy(outputs, values, task, 1.5),
    ("grade", "coral"): cumulative,
    ("axes", "l1"): over_known(abs),
    ("axes", "mse"): over_known(lambda d: d * d),
    ("axes", "huber"): over_known(lambda d: d * d / 0.2 if abs(d) < 0.1 else abs(d) - 0.05),
    ("parts", "cross-entropy"): entropy,
    ("parts", "focal"): lambda outputs, values, task: entropy(outputs, values, task, 1.5),
    ("parts", "dice"): soft_dice,
    ("dose", "l1"): over_known(abs),
    ("dose", "mse"): over_known(lambda d: d * d),
    ("dose", "dvh"): histogram,
}


@pytest.mark.parametrize(("name", "term"), LOSSES)
def test_losses_are_what_they_say(name: str, term: str) -> None:
    task = TASKS[name]
    outputs, values = examples(task)
    outputs.requires_grad_()
    loss = task_loss(trained_by(task, term), config(task))(outputs, values)
    expected = LOSSES[name, term](outputs.detach().numpy(), values.numpy(), task)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert outputs.grad is not None and outputs.grad.isfinite().all() and outputs.grad.any()


def test_every_loss_and_metric_of_these_kinds_is_there() -> None:
    for task in TASKS.values():
        kind = kind_of(task)
        assert {term for name, term in LOSSES if TASKS[name].kind == task.kind} == set(KIND_SPECS[task.kind].losses)
        assert set(kind.losses) == set(KIND_SPECS[task.kind].losses) and set(kind.metrics) == set(task.metrics)


def test_what_is_true_and_sure_costs_nothing() -> None:
    for outputs, values, task, term in (
        (torch.full((1, 3, 2, 2), -100.0), torch.zeros(1, 3, 2, 2), PARTS, "dice"),  # not there, not found
        (torch.tensor([[100.0, 100.0, -100.0]]), torch.tensor([2]), GRADE, "coral"),
        (torch.tensor([[100.0, -100.0, 3.0]]), torch.tensor([[1, 0, -1]]), FINDINGS, "focal"),
    ):
        loss = task_loss(trained_by(task, term), config(task))(outputs, values.long())
        assert float(loss) == pytest.approx(0, abs=1e-6)


CURVATURES = [("findings", "cross-entropy", 1), ("grade", "coral", 1), ("parts", "cross-entropy", 1),
              ("axes", "mse", 2), ("dose", "mse", 2)]  # fmt: skip


@pytest.mark.parametrize(("name", "term", "times"), CURVATURES)
def test_signs_have_the_curvature_of_the_loss(name: str, term: str, times: float) -> None:
    """These losses' curvature is diagonal, and so is E[z z^T], as signs are independent: z^2 is its diagonal."""
    task = TASKS[name]
    outputs, values = examples(task, images=3)
    loss = task_loss(trained_by(task, term), config(task))
    hessian = torch.autograd.functional.hessian(lambda x: 3 * loss(x.view_as(outputs), values), outputs.flatten())
    assert isinstance(hessian, Tensor)
    assert torch.equal(hessian, hessian.diag().diag())
    draws = torch.stack([kind_of(task).curvature_factor(outputs, values, task).flatten() for _ in range(40)])
    for draw in draws[:2]:
        np.testing.assert_allclose(times * draw**2, hessian.diag(), rtol=1e-6, atol=1e-12)
    assert all({-1.0, 1.0} == set(draws[:, i].sign().tolist()) for i in draws[0].nonzero().flatten())


# Metrics.


def slow_auc(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    bins = np.floor(np.arcsinh(outputs * np.sinh(4.5) / 16) / (4.5 / 64)).clip(-64, 63)  # scores of one bin tie
    areas = []
    for score, truth in zip(bins.T, values.T, strict=True):
        pairs = [np.sign(p - n) / 2 + 0.5 for p in score[truth == 1] for n in score[truth == 0]]
        areas += [np.mean(pairs)] if pairs else []
    return float(np.mean(areas))


def slow_accuracy(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    columns = zip(outputs.T, values.T, strict=True)
    return float(np.mean([np.mean((o > 0)[v >= 0] == v[v >= 0]) for o, v in columns if (v >= 0).any()]))


def slow_kappa(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    found, count = (outputs > 0).sum(1), len(task.classes)
    seen, expected = 0.0, 0.0
    for i in range(count):
        for j in range(count):
            seen += (i - j) ** 2 * np.mean((found == i) & (values == j))
            expected += (i - j) ** 2 * np.mean(found == i) * np.mean(values == j)
    return 1 - seen / expected


def slow_mae(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    if task.kind == "ordinal":
        return float(np.mean(abs((outputs > 0).sum(1) - values)))
    low, high = task.range
    return float(np.nanmean(abs(outputs * (high - low) + low - values)))


def slow_r2(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    low, high = task.range
    found = []
    for output, value in zip((outputs * (high - low) + low).T, values.astype(float).T, strict=True):
        known = ~np.isnan(value)
        spread = ((value[known] - value[known].mean()) ** 2).sum()
        found.append(1 - ((output[known] - value[known]) ** 2).sum() / spread)
    return float(np.mean(found))


def slow_overlap(ratio: Callable[[int, int, int], float]) -> Callable[[np.ndarray, np.ndarray, Task], float]:
    def slow(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
        found = []
        for o, v in zip(outputs.reshape(-1, 4, 5), values.reshape(-1, 4, 5), strict=True):
            a, b = o > 0, v == 1
            if v[0, 0] != 255:
                found.append(1.0 if not (a | b).any() else ratio(int((a & b).sum()), int(a.sum()), int(b.sum())))
        return float(np.mean(found))

    return slow


def slow_dose(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    return float(
        np.mean([abs(a - b)[possible].sum() / possible.sum() for a, b, possible, *_ in patients(outputs, values, task)])
    )


def slow_dvh_score(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    differences = []
    for predicted, planned, _, masks, tenth in patients(outputs, values, task):
        for name, mask in masks.items():
            a, b = (slow_dvh(gray, name, mask, tenth) for gray in (predicted, planned))
            differences += [abs(a[metric] - b[metric]) for metric in a]
    return float(np.mean(differences))


METRICS = {
    ("findings", "auc"): slow_auc,
    ("findings", "accuracy"): slow_accuracy,
    ("grade", "kappa"): slow_kappa,
    ("grade", "mae"): slow_mae,
    ("grade", "accuracy"): lambda outputs, values, task: float(np.mean((outputs > 0).sum(1) == values)),
    ("age", "mae"): slow_mae,
    ("age", "r2"): slow_r2,
    ("axes", "mae"): slow_mae,
    ("axes", "r2"): slow_r2,
    ("parts", "dice"): slow_overlap(lambda both, a, b: 2 * both / (a + b)),
    ("parts", "iou"): slow_overlap(lambda both, a, b: both / (a + b - both)),
    ("dose", "dose-score"): slow_dose,
    ("dose", "dvh-score"): slow_dvh_score,
}


@pytest.mark.parametrize("name", TASKS)
def test_metrics_of_two_sites_add_up_to_the_pooled_reference(name: str) -> None:
    task = TASKS[name]
    sites = [examples(task, images=m, seed=m) for m in (11, 26)]
    sums: dict[str, Any] = {}
    for outputs, values in sites:
        metrics = TaskMetrics(task)
        for part in torch.arange(len(values)).split(10):  # in batches
            metrics.update(outputs[part], values[part])
        for key, value in metrics.sums().items():
            sums[key] = np.add(sums[key], value).tolist() if key in sums else value
    pooled = pool([task], sums)[name]
    outputs, values = (torch.cat(parts).numpy() for parts in zip(*sites, strict=True))
    assert pooled.compute() == {
        metric: pytest.approx(METRICS[name, metric](outputs, values, task), rel=1e-5, abs=1e-6)
        for metric in task.metrics
    }


def perfect(task: Task, values: Tensor) -> Tensor:
    low, high = task.range or (0, 1)
    return {
        "multi-label": lambda: (values > 0) * 8.0 - 4,
        "ordinal": lambda: (values[:, None] > torch.arange(len(task.classes) - 1)) * 8.0 - 4,
        "regression": lambda: ((values - low) / (high - low)).nan_to_num(),
        "multi-label-segmentation": lambda: (values == 1) * 8.0 - 4,
        "dose": lambda: values[:, :1] / dose.STEPS,
    }[task.kind]()


@pytest.mark.parametrize("name", TASKS)
def test_which_way_is_up(name: str) -> None:
    task = TASKS[name]
    outputs, values = examples(task, images=30)
    good, bad = TaskMetrics(task), TaskMetrics(task)
    good.update(perfect(task, values), values)
    bad.update(outputs, values)
    for metric, value in good.compute().items():
        higher = METRIC_SPECS[metric].higher_is_better
        assert value == pytest.approx(1 if higher else 0, abs=1e-5)
        assert (value > bad.compute()[metric]) == higher


def test_what_data_cannot_tell_is_nan() -> None:
    outputs, values = torch.randn(4, 3), torch.tensor([[1, 0, -1]] * 4)  # one class only
    metrics = TaskMetrics(FINDINGS)
    metrics.update(outputs, values)
    assert np.isnan(metrics.compute()["auc"]) and 0 <= metrics.compute()["accuracy"] <= 1
    values[0, 0] = 0  # now of the first class there are both
    metrics = TaskMetrics(FINDINGS)
    metrics.update(outputs, values)
    assert 0 <= metrics.compute()["auc"] <= 1
    metrics = TaskMetrics(AGE)
    metrics.update(torch.rand(3, 1), torch.full((3, 1), 50.3))
    assert np.isnan(metrics.compute()["r2"]) and metrics.compute()["mae"] > 0
    outputs, values = examples(DOSE)
    values[:, 1] = 0  # no structure
    metrics = TaskMetrics(DOSE)
    metrics.update(outputs, values)
    assert np.isnan(metrics.compute()["dvh-score"]) and metrics.compute()["dose-score"] > 0


def test_what_the_report_is_shown() -> None:
    shown = {name: kind_of(task).show(examples(task)[0].float(), task) for name, task in TASKS.items()}
    shapes = {name: array.shape for name, array in shown.items()}
    assert shapes == {"findings": (9, 3), "grade": (9, 4), "age": (9, 1), "axes": (9, 2), "parts": (9, 3, 4, 5),
                      "dose": (9, 4, 5)}  # fmt: skip
    np.testing.assert_allclose(shown["grade"].sum(1), 1, rtol=1e-6)
    falling = torch.tensor([[2.0, 0.0, -1.0]])
    expected = -np.diff([1, *sigmoid(falling[0].numpy()), 0])
    np.testing.assert_allclose(kind_of(GRADE).show(falling, GRADE)[0], expected, rtol=1e-6)
    np.testing.assert_allclose(kind_of(AXES).show(torch.tensor([[0.5, 1.0]]), AXES), [[15, 40]])


# Dose-volume histograms.


def test_percentiles_are_those_of_numpy() -> None:
    generator = np.random.default_rng(0)
    at = np.array([0, 1, 5, 37.3, 99, 99.99, 100])
    for count in (1, 2, 7, 300):
        values = generator.gamma(2, 20, (2, count))
        found = dvh.percentiles(torch.from_numpy(values), torch.from_numpy(at))
        np.testing.assert_allclose(found, np.percentile(values, at, axis=1).T, rtol=1e-12)


NAMES = [("PTV70", True), ("ptv_low", True), ("CTV", True), ("GTV1", True), ("Larynx", False), ("opticPTV", False)]


@pytest.mark.parametrize(("name", "target"), NAMES)
def test_a_target_is_known_by_its_name(name: str, target: bool) -> None:
    assert dvh.is_target(name) == target


@pytest.mark.parametrize(("volume", "voxels"), [(1.0, 100), (30.0, 3), (64.0, 2), (250.0, 1)])
def test_a_tenth_of_a_cubic_centimetre(volume: float, voxels: int) -> None:
    assert dvh.voxels_of_tenth(volume) == voxels


def test_metrics_of_structures_are_those_of_the_challenge() -> None:
    generator = np.random.default_rng(1)
    gray = generator.gamma(2, 15, (5, 6, 7))
    masks = {"Larynx": generator.random(gray.shape) < 0.4, "PTV70": generator.random(gray.shape) < 0.3}
    masks["tiny"] = np.arange(gray.size).reshape(gray.shape) == 17  # smaller than 0.1 cm^3
    masks["none"] = np.zeros(gray.shape, bool)
    found = dvh.dvh_metrics(torch.from_numpy(gray), {name: torch.from_numpy(m) for name, m in masks.items()}, 3)
    del masks["none"]
    expected = {(s, m): v for s, mask in masks.items() for m, v in slow_dvh(gray, s, mask, 3).items()}
    assert {key: float(value) for key, value in found.items()} == pytest.approx(expected, rel=1e-12)


def test_a_soft_histogram_nears_the_histogram_and_has_gradients() -> None:
    generator = np.random.default_rng(2)
    values, masks = generator.random(50), generator.random((2, 50)) < 0.5
    levels = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    given = torch.from_numpy(values), torch.from_numpy(masks), levels
    sharp = dvh.soft_histogram(*given, 1e-6)
    np.testing.assert_allclose(sharp, [[np.mean(values[m] >= t) for t in levels.numpy()] for m in masks], atol=1e-6)
    assert torch.autograd.gradcheck(lambda x: dvh.soft_histogram(x, *given[1:], 0.1), given[0].requires_grad_())


@pytest.mark.skipif(not OPENKBP.is_dir(), reason="needs the OpenKBP patients, which are not part of the project")
def test_a_real_patient_is_scored_as_by_definition(tmp_path: Path) -> None:
    patient = np.load(sorted((OPENKBP / "volumes").glob("*.npz"))[0])
    names = ("Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Esophagus", "Larynx", "Mandible", "PTV56",
             "PTV63", "PTV70")  # fmt: skip
    gray = patient["dose"].astype(np.float64) / 20
    masks = {name: (patient["structures"] >> i & 1).astype(bool) for i, name in enumerate(names)}
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    possible = patient["possible_dose"].astype(bool)
    np.save(tmp_path / "ct.npy", patient["ct"])
    np.savez(tmp_path / "dose.npz", dose=gray, possible=possible, spacing=[5.0, 7.812, 7.812], **masks)
    task = Task(name="dose", kind="dose", classes=names, range=(0, 100))
    site = source(tmp_path, "ct.npy", 64, 3)
    values = torch.from_numpy(kind_of(task).read("dose.npz", task, site)[None]).long()
    gray = gray * possible
    (read,) = dose.plans(values, task)
    found = dvh.dvh_metrics(read.dose * 100, read.structures, read.tenth)
    tenth = max(1, round(100 / (5 * 7.812**2)))
    expected = {(s, m): v for s, mask in masks.items() for m, v in slow_dvh(gray, s, mask, tenth).items()}
    step = 100 / dose.STEPS
    assert {key: float(value) for key, value in found.items()} == pytest.approx(expected, abs=step)
    metrics = TaskMetrics(task)
    metrics.update(perfect(task, values), values)
    assert metrics.compute() == {"dose-score": pytest.approx(0, abs=1e-5), "dvh-score": pytest.approx(0, abs=1e-5)}
    metrics = TaskMetrics(task)
    metrics.update(torch.zeros(1, 1, 64, 64, 64), values)
    mean = np.mean(list(expected.values()))
    assert metrics.compute() == {
        "dose-score": pytest.approx(gray.sum() / possible.sum(), abs=step), "dvh-score": pytest.approx(mean, abs=step),
    }  # fmt: skip
