"""One of several ordered classes for each image, such as the grades of a disease."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .classification import class_counts, class_index, class_shown, read_class
from .curvature_factors import sigmoid_factor
from .kind import AdditiveMetric, Kind, LossSettings, mean_metric
from .roc import auc_metric
from .task import Task


def coral(task: Task, settings: LossSettings, logits: Tensor, values: Tensor) -> Tensor:
    """Return the sum of the thresholds' binary cross-entropies, mean over images (Cao, Mirjalili, Raschka, 2020)."""
    above = values[:, None] > torch.arange(logits.shape[1], device=values.device)
    return F.binary_cross_entropy_with_logits(logits, above.to(logits), reduction="sum") / len(logits)


def predicted_class(logits: Tensor) -> Tensor:
    """Return the class (M,): the number of thresholds that are exceeded with a probability over one half.

    This is the median of the class probabilities. MedMNIST's accuracy of ordered classes judges the most probable
    class instead, which can be another one if there are more than two.
    """
    return (logits > 0).sum(1)


def class_probabilities(logits: Tensor) -> Tensor:
    """Return (M, K) of logits (M, K - 1): differences of the thresholds' probabilities, none below 0, summing to 1."""
    above = F.pad(F.pad(logits.sigmoid(), (1, 0), value=1.0), (0, 1))
    between = (above[:, :-1] - above[:, 1:]).clamp(min=0)
    return between / between.sum(1, keepdim=True)


def scores_and_truth(task: Task, logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return class probabilities (M, K) and the true class as 1 among 0."""
    return class_probabilities(logits), class_shown(values, task)


def confusion(task: Task, logits: Tensor, values: Tensor) -> tuple[Tensor]:
    """Return how many images of each class (rows) are predicted to be of each class (columns)."""
    count = len(task.classes)
    index = values.long() * count + predicted_class(logits)
    return (torch.bincount(index, minlength=count * count).view(count, count),)


def quadratic_kappa(confusion: Tensor) -> Tensor:
    """Return Cohen's kappa with quadratic weights of a confusion matrix (K, K); NaN if all is one class."""
    classes = torch.arange(len(confusion), device=confusion.device)
    weights = (classes[:, None] - classes).square()
    expected = confusion.sum(1, keepdim=True) * confusion.sum(0, keepdim=True) / confusion.sum()
    return 1 - (weights * confusion).sum() / (weights * expected).sum()


KIND = Kind(
    read=read_class,
    class_of=class_index,
    class_counts=class_counts,
    losses={"coral": coral},
    metrics={
        "kappa": AdditiveMetric(lambda task: {"confusion": (len(task.classes),) * 2}, confusion, quadratic_kappa),
        "mae": mean_metric(lambda task, logits, values: (predicted_class(logits) - values).abs()),
        "accuracy": mean_metric(lambda task, logits, values: predicted_class(logits) == values),
        "auc": auc_metric(lambda task: len(task.classes), scores_and_truth),
    },
    curvature_factor=lambda logits, values, task: sigmoid_factor(logits),
    show=lambda logits, task: class_probabilities(logits).numpy(),
    contents=class_shown,
)
