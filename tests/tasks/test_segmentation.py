"""Segmentation: overlaps and the soft Dice loss against MONAI."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from helpers.references import DiceLoss, compute, compute_dice, compute_iou, declare
from mtfed.learning.losses import task_loss
from mtfed.learning.metrics import TaskMetrics

SHAPES = [(7, 9), (4, 5, 6)]


def masks(classes: int, shape: tuple[int, ...], images: int = 6) -> tuple[Tensor, Tensor]:
    """Return logits and masks; the first image has no structure, and none is predicted in the first two."""
    logits, values = torch.randn(images, classes, *shape), torch.randint(classes, (images, *shape))
    values[0], logits[:2, 0] = 0, 9
    return logits, values


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_metrics_agree_with_monai(classes: int, shape: tuple[int, ...]) -> None:
    logits, values = masks(classes, shape)
    maps = [one_hot(x, classes).movedim(-1, 1) for x in (logits.argmax(1), values)]
    expected = {
        name: float(overlap(*maps, include_background=False, ignore_empty=False).mean())
        for name, overlap in (("dice", compute_dice), ("iou", compute_iou))
    }
    assert compute(declare("segmentation", classes), logits, values) == pytest.approx(expected, abs=1e-6)


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


def test_an_empty_mask_that_is_predicted_empty_counts_one() -> None:
    metrics = TaskMetrics(declare("segmentation", 2))
    metrics.update(
        torch.tensor([1.0, 0.0])[None, :, None, None].expand(1, 2, 8, 8), torch.zeros(1, 8, 8, dtype=torch.long)
    )
    assert metrics.compute() == {"dice": 1.0, "iou": 1.0}
