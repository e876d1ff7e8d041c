"""The tasks' losses against their formulas, and batches computed in pieces."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from helpers import SMALL, TASKS
from helpers.three_tasks import IMAGES, shard
from helpers.two_tasks import config
from mtfed.config import read_config
from mtfed.data.shard import Batch
from mtfed.learning.balancing import (
    Equal,
    Uncertainty,
)
from mtfed.learning.losses import split_batch, task_losses

torch.set_num_threads(1)


def test_the_hybrid_loss_is_the_written_formula() -> None:
    torch.manual_seed(0)
    logits = {"pneumonia": torch.randn(5, 2), "lungs": torch.randn(3, 2, 8, 8)}
    values = {"pneumonia": torch.randint(0, 2, (5,)), "lungs": torch.randint(0, 2, (3, 8, 8))}
    s = {"pneumonia": torch.tensor(-0.5), "lungs": torch.tensor(0.3)}
    each = {task: loss(logits[task], values[task]) for task, loss in task_losses(config()).items()}
    nll = -logits["pneumonia"].log_softmax(1)[range(5), values["pneumonia"]].mean()
    p, y = logits["lungs"].softmax(1)[:, 1], values["lungs"].float()
    dice = 1 - (2 * (p * y).sum((1, 2)) + 1e-5) / (p.sum((1, 2)) + y.sum((1, 2)) + 1e-5)
    cross = -torch.stack(
        [logits["lungs"].log_softmax(1)[i].gather(0, values["lungs"][i][None]) for i in range(3)]
    ).mean()
    torch.testing.assert_close(each["pneumonia"], nll)
    torch.testing.assert_close(each["lungs"], dice.mean() + cross)
    for task, loss in each.items():
        torch.testing.assert_close(Uncertainty(s).term(task, loss), loss / (2 * math.exp(s[task])) + s[task] / 2)
        assert Equal(s).term(task, loss) is loss


@pytest.mark.parametrize("loss", ["focal", "cross-entropy"])
def test_focal_is_cross_entropy_at_gamma_zero(loss: str) -> None:
    torch.manual_seed(0)
    logits, values = torch.randn(6, 2), torch.randint(0, 2, (6,))
    settings = read_config(TASKS | SMALL | {"task.pneumonia.loss": loss, "focal-gamma": 0.0})
    nll = -logits.log_softmax(1)[range(6), values].mean()
    torch.testing.assert_close(task_losses(settings)["pneumonia"](logits, values), nll)


@pytest.mark.parametrize("pieces", [1, 2, 3, 5, 7, 40])
def test_pieces_make_up_the_batch(pieces: int) -> None:
    batch = next(shard().batches(7, torch.randperm(IMAGES)))
    parts = list(split_batch(batch, pieces))
    assert len(parts) == {1: 1, 2: 2, 3: 3, 5: 4, 7: 7, 40: 7}[pieces]
    assert torch.equal(torch.cat([piece.images for piece in parts]), batch.images)
    for task, labels in batch.labels.items():
        starts = np.cumsum([0, *(len(piece.images) for piece in parts)])
        own = [(start, piece.labels[task]) for start, piece in zip(starts, parts, strict=False) if task in piece.labels]
        assert torch.equal(torch.cat([piece.rows + start for start, piece in own]), labels.rows)
        assert torch.equal(torch.cat([piece.values for _, piece in own]), labels.values)


def test_one_piece_is_the_batch_itself() -> None:
    batch = Batch(torch.zeros(3, 1, 2, 2), {})
    assert [piece is batch for piece in split_batch(batch, 1)] == [True]
