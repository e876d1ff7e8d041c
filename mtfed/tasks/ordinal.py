"""One of several classes that have an order, such as grades of a disease."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..lean import lean_import
from .classification import class_index, read_class
from .kind import Kind, Loss, Measure, sigmoid_signs
from .segmentation import mean_metric
from .task import Task

if TYPE_CHECKING:
    from torchmetrics import Metric


def coral(task: Task, config: Config) -> Loss:
    """Return the sum of the thresholds' binary cross-entropies, mean over images (Cao, Mirjalili, Raschka, 2020)."""

    def loss(logits: Tensor, values: Tensor) -> Tensor:
        above = values[:, None] > torch.arange(logits.shape[1], device=values.device)
        return F.binary_cross_entropy_with_logits(logits, above.to(logits), reduction="sum") / len(logits)

    return loss


def predicted(logits: Tensor) -> Tensor:
    """Return the class (M,): the number of thresholds that are passed with probability over one half."""
    return (logits > 0).sum(1)


def class_probabilities(logits: Tensor) -> Tensor:
    """Return (M, K) of logits (M, K - 1): differences of the thresholds' probabilities, none below 0, summing to 1."""
    above = F.pad(F.pad(logits.sigmoid(), (1, 0), value=1.0), (0, 1))
    between = (above[:, :-1] - above[:, 1:]).clamp(min=0)
    return between / between.sum(1, keepdim=True)


def _kappa(task: Task) -> Metric:
    kappa = lean_import("torchmetrics.classification").MulticlassCohenKappa
    return kappa(num_classes=len(task.classes), weights="quadratic")


def _classes(task: Task, logits: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    return predicted(logits), values


KIND = Kind(
    read=read_class,
    signs=lambda logits, values, task: sigmoid_signs(logits),
    losses={"coral": coral},
    measures={
        "kappa": Measure(_kappa, _classes),
        "mae": Measure(
            mean_metric(higher_is_better=False),
            lambda task, logits, values: ((predicted(logits) - values).abs().float(),),
        ),
        "accuracy": Measure(mean_metric(), lambda task, logits, values: ((predicted(logits) == values).float(),)),
    },
    show=lambda logits, task: class_probabilities(logits).numpy(),
    class_of=class_index,
)
