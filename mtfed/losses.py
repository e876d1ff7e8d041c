"""The hybrid loss: each task's own loss, weighted by learned uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Config
from .data.shard import Labels
from .lean import lean_import
from .tasks import Task

Loss = Callable[[Tensor, Tensor], Tensor]  # logits (M, K, ...), values (M, ...) -> scalar


def task_loss(task: Task, config: Config) -> Loss:
    """Return a task's loss, MONAI's for masks and focal; MONAI is imported only where it is needed."""
    if task.loss == "cross-entropy":
        return F.cross_entropy
    losses = lean_import("monai.losses")
    if task.loss == "focal":
        focal = losses.FocalLoss(to_onehot_y=True, use_softmax=True, gamma=config.focal_gamma, reduction="none")
        return partial(_focal, focal)
    dice = losses.DiceCELoss if task.loss == "dice-ce" else losses.DiceLoss
    # Background is most of an image; its Dice would hide the structure's.
    return partial(_one_channel, dice(include_background=False, to_onehot_y=True, softmax=True))


def _one_channel(loss: Loss, logits: Tensor, values: Tensor) -> Tensor:
    """Call a MONAI loss, which wants class indices with a channel axis."""
    return loss(logits, values.unsqueeze(1))


def _focal(loss: Loss, logits: Tensor, values: Tensor) -> Tensor:
    """Average over samples only: MONAI's mean divides by classes too, and at gamma 0 would not be cross-entropy."""
    return _one_channel(loss, logits, values).sum(1).mean()


class HybridLoss:
    """Sum of the tasks' losses over the labels that a batch has.

    With ``balancing="uncertainty"`` task t counts ``L_t / (2 exp(s_t)) + s_t / 2``, where s_t is its learned log
    variance (Kendall, Gal, Cipolla, CVPR 2018, in the form of Liu et al.'s MTAN code); ``equal`` adds up plainly.
    """

    def __init__(self, config: Config) -> None:
        self.losses = {name: task_loss(task, config) for name, task in config.tasks.items()}
        self.weigh = config.balancing == "uncertainty"

    def __call__(
        self,
        outputs: Mapping[str, Tensor],
        labels: Mapping[str, Labels],
        log_variance: Mapping[str, Tensor] | nn.ParameterDict,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total and each task's own mean loss, detached."""
        total: Tensor | float = 0.0
        each = {}
        for task, logits in outputs.items():
            loss = self.losses[task](logits, labels[task].values)
            each[task] = loss.detach()
            s = log_variance[task]
            total = total + (loss / (2 * torch.exp(s)) + s / 2 if self.weigh else loss)
        assert isinstance(total, Tensor)
        return total, each
