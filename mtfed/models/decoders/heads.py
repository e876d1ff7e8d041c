"""Decoders of one prediction for each image, from the pooled features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...tasks.task import Task
from ..encoders import FeatureInfo, Features


class ClassificationDecoder(nn.Module):
    """Logits (B, K) of one class among several, or of every class independently."""

    def __init__(self, task: Task, info: FeatureInfo, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(info.dim)
        self.head = nn.Linear(info.dim, task.output_channels)

    def forward(self, features: Features) -> Tensor:
        return self.head(self.norm(features.pooled))


class OrdinalDecoder(nn.Module):
    """Logits (B, K - 1) of P(class > k), by CORAL (Cao, Mirjalili, Raschka, Pattern Recognition Letters 140, 2020).

    All thresholds share one weight vector, and each has a bias. The probabilities then fall from one threshold to the
    next, as the biases do at the minimum of the loss. The biases start from classes that are equally frequent.
    """

    def __init__(self, task: Task, info: FeatureInfo, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(info.dim)
        self.head = nn.Linear(info.dim, 1, bias=False)
        above = torch.arange(len(task.classes) - 1, 0, -1) / len(task.classes)
        self.thresholds = nn.Parameter(above.logit())

    def forward(self, features: Features) -> Tensor:
        return self.head(self.norm(features.pooled)) + self.thresholds


class RegressionDecoder(ClassificationDecoder):
    """Quantities (B, K) in units of the task's range; they start from its middle."""

    def __init__(self, task: Task, info: FeatureInfo, width: int) -> None:
        super().__init__(task, info, width)
        nn.init.normal_(self.head.weight, std=0.1 * info.dim**-0.5)  # a spread of a tenth of the range
        nn.init.constant_(self.head.bias, 0.5)
