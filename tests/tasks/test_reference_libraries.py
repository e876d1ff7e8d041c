"""Metrics and losses against torchmetrics and MONAI, which the product does not need for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from mtfed.learning.losses import task_loss
from mtfed.learning.metrics import TaskMetrics
from mtfed.startup import import_torchvision
from mtfed.tasks import Task
from mtfed.tasks.ordinal import predicted_class
from mtfed.tasks.roc import BELOW_ONE, THRESHOLDS

import_torchvision()  # repaired, before both libraries import it

import torchmetrics.functional as reference  # noqa: E402
from monai.losses import DiceLoss  # noqa: E402
from monai.metrics import compute_dice, compute_iou  # noqa: E402
from torchmetrics.functional.classification import (  # noqa: E402
    binary_accuracy,
    binary_auroc,
    multiclass_accuracy,
    multiclass_auroc,
    multiclass_cohen_kappa,
    multilabel_accuracy,
    multilabel_auroc,
)

NAMES = ("a", "b", "c", "d", "e")


def declare(kind: str, classes: int, **fields: object) -> Task:
    return Task(name="t", kind=kind, classes=NAMES[:classes], **fields)


def compute(task: Task, outputs: Tensor, values: Tensor) -> dict[str, float]:
    """Return the metrics of two batches."""
    metrics = TaskMetrics(task)
    for part in torch.arange(len(values)).tensor_split(2):
        metrics.update(outputs[part], values[part])
    return metrics.compute()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_binary_classification() -> None:
    logits, values = 3 * torch.randn(300, 2), torch.randint(2, (300,))
    scores = logits.softmax(1)[:, 1].clamp(max=BELOW_ONE)
    assert compute(declare("classification", 2), logits, values) == {
        "auc": pytest.approx(float(binary_auroc(scores, values, thresholds=THRESHOLDS)), abs=1e-6),
        "accuracy": pytest.approx(float(binary_accuracy(scores, values)), abs=1e-6),
    }


@pytest.mark.parametrize("classes", [3, 5])
def test_classification(classes: int) -> None:
    logits, values = 3 * torch.randn(300, classes), torch.randint(classes, (300,))
    scores = logits.softmax(1).clamp(max=BELOW_ONE)
    assert compute(declare("classification", classes), logits, values) == {
        "auc": pytest.approx(float(multiclass_auroc(scores, values, classes, thresholds=THRESHOLDS)), abs=1e-6),
        "accuracy": pytest.approx(float(multiclass_accuracy(scores, values, classes, average="micro")), abs=1e-6),
    }


def test_multi_label() -> None:
    logits, values = torch.randn(200, 4), torch.randint(2, (200, 4))
    scores = logits.sigmoid().clamp(max=BELOW_ONE)
    assert compute(declare("multi-label", 4), logits, values) == {
        "auc": pytest.approx(float(multilabel_auroc(scores, values, 4, thresholds=THRESHOLDS)), abs=1e-6),
        "accuracy": pytest.approx(float(multilabel_accuracy(scores, values, 4)), abs=1e-6),
    }


@pytest.mark.parametrize("classes", [2, 5])
def test_ordinal(classes: int) -> None:
    logits, values = torch.randn(200, classes - 1), torch.randint(classes, (200,))
    predicted = predicted_class(logits)
    assert compute(declare("ordinal", classes), logits, values) == {
        "kappa": pytest.approx(float(multiclass_cohen_kappa(predicted, values, classes, "quadratic")), abs=1e-6),
        "mae": pytest.approx(float(reference.mean_absolute_error(predicted.float(), values.float())), abs=1e-6),
        "accuracy": pytest.approx(float(multiclass_accuracy(predicted, values, classes, average="micro")), abs=1e-6),
    }


def test_regression() -> None:
    outputs, values = torch.rand(60, 2), 4 * torch.rand(60, 2) - 1
    predicted = 4 * outputs - 1
    assert compute(declare("regression", 2, range=(-1, 3)), outputs, values) == {
        "mae": pytest.approx(float(reference.mean_absolute_error(predicted, values)), abs=1e-6),
        "r2": pytest.approx(float(reference.r2_score(predicted, values)), abs=1e-5),
    }


SHAPES = [(7, 9), (4, 5, 6)]


def masks(classes: int, shape: tuple[int, ...], images: int = 6) -> tuple[Tensor, Tensor]:
    """Return logits and masks; the first image has no structure, and none is predicted in the first two."""
    logits, values = torch.randn(images, classes, *shape), torch.randint(classes, (images, *shape))
    values[0], logits[:2, 0] = 0, 9
    return logits, values


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_overlaps_of_a_segmentation(classes: int, shape: tuple[int, ...]) -> None:
    logits, values = masks(classes, shape)
    maps = [one_hot(x, classes).movedim(-1, 1) for x in (logits.argmax(1), values)]
    expected = {
        name: float(overlap(*maps, include_background=False, ignore_empty=False).mean())
        for name, overlap in (("dice", compute_dice), ("iou", compute_iou))
    }
    assert compute(declare("segmentation", classes), logits, values) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_overlaps_of_structures(shape: tuple[int, ...]) -> None:
    logits, values = torch.randn(5, 3, *shape) - 1, torch.randint(2, (5, 3, *shape))
    values[0], logits[0, 0] = 0, -1
    maps = (logits > 0).long(), values
    expected = {
        name: float(overlap(*maps, include_background=True, ignore_empty=False).mean())
        for name, overlap in (("dice", compute_dice), ("iou", compute_iou))
    }
    assert compute(declare("multi-label-segmentation", 3), logits, values) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_soft_dice_is_that_of_monai_bit_for_bit(classes: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    logits, values = masks(classes, shape)
    task = declare("segmentation", classes, loss="dice")
    losses = (
        task_loss(task, None),  # type: ignore[arg-type]
        lambda x, y: DiceLoss(include_background=False, to_onehot_y=True, softmax=True)(x, y.unsqueeze(1)),
    )
    results = []
    for loss in losses:
        given = logits.to(dtype).requires_grad_()
        value = loss(given, values)
        results.append((value, *torch.autograd.grad(value, given)))
    for own, monai in zip(*results, strict=True):
        assert torch.equal(own, monai)


@pytest.mark.parametrize(
    ("kind", "shape", "unknown"), [("multi-label", (), -1), ("multi-label-segmentation", (4, 4), 255)]
)
def test_what_is_not_known_does_not_count(kind: str, shape: tuple[int, ...], unknown: int) -> None:
    outputs = torch.randn(8, 3, *shape)
    values = torch.randint(2, outputs.shape)
    values[:, 1] = unknown
    without = compute(declare(kind, 2), outputs[:, [0, 2]], values[:, [0, 2]])
    assert compute(declare(kind, 3), outputs, values) == pytest.approx(without)
