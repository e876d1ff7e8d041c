"""The tasks' losses against their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from helpers import SMALL, TASKS
from helpers.two_tasks import config
from mtfed.config import read_config
from mtfed.learning.balancing import (
    Equal,
    Uncertainty,
)
from mtfed.learning.losses import task_losses

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
