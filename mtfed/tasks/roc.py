"""The area under the ROC curve at fixed thresholds, from counts that add up over sites."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .kind import AdditiveMetric
from .task import Task

# Thresholds are spaced by the size of the logit: all scores of a model that is hardly trained are close to 0.5, and a
# confident model distinguishes scores that are almost 0 or 1. Without 0 and 1 a curve would end before its corners. The
# more thresholds there are, the more the counts of a small site reveal about single scores.
LOGITS = torch.sinh(torch.linspace(-4.5, 4.5, 129)) * (16 / math.sinh(4.5))  # 0.025 apart at 0, 0.2 at 3, 1.1 at 16
THRESHOLDS = torch.cat([torch.zeros(1), torch.sigmoid(LOGITS), torch.ones(1)])
BELOW_ONE = 1 - 2**-24  # the next number of float32: a score of 1 itself would leave no threshold above it


def auc_metric(
    rows: Callable[[Task], int], judge: Callable[[Task, Tensor, Tensor], tuple[Tensor, Tensor]]
) -> AdditiveMetric:
    """Return the mean area under the ROC curve as a metric.

    Args:
        rows: the number K of classes that are judged one against the rest.
        judge: outputs and values -> scores (M, K) from 0 to 1, and truth (M, K): 1, 0, or anything else if not known.
    """

    def states(task: Task) -> dict[str, tuple[int, ...]]:
        shape = (rows(task), len(THRESHOLDS))
        return {"true_positives": shape, "false_positives": shape}

    def update(task: Task, outputs: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        scores, truth = judge(task, outputs, values)
        above = scores.clamp(max=BELOW_ONE)[..., None] >= THRESHOLDS.to(scores)  # (M, K, T)
        return tuple((above & (truth == positive)[..., None]).sum(0) for positive in (1, 0))

    return AdditiveMetric(states, update, mean_area)


def mean_area(true_positives: Tensor, false_positives: Tensor) -> Tensor:
    """Return the mean area under the ROC curve over the classes with positives and negatives; NaN if there is none.

    This is MedMNIST's AUC (Yang et al., Scientific Data 10:41, 2023; evaluator.py of its package) of classes, ordered
    classes and several labels, with two differences: scores between two neighbouring thresholds count as equal, and
    MedMNIST's AUC is undefined if any class lacks positives or negatives.

    Args:
        true_positives: (K, T), the positives with scores at or above rising thresholds, the first of which is 0.
        false_positives: (K, T), the same for negatives.
    """
    sensitivity = true_positives / true_positives[:, :1]
    false_rate = false_positives / false_positives[:, :1]
    return torch.trapezoid(sensitivity.flip(1), false_rate.flip(1)).nanmean()
