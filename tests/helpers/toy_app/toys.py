"""A task kind, a file format, a model and a strategy from outside the package, as an app of its own registers them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from mtfed.clients.app import app as client  # noqa: F401  (the app's component)
from mtfed.data.formats import Format, Picture, register_format
from mtfed.data.formats.source_file import SourceFile
from mtfed.models.decoders import register_decoder
from mtfed.models.encoders import Encoder, FeatureInfo, Features
from mtfed.models.sharing import HardSharing
from mtfed.models.specs import ModelSpec, register_model
from mtfed.server import app as server  # noqa: F401  (the app's component)
from mtfed.strategies import TaskFedAvg, register_strategy
from mtfed.tasks import Kind, KindSpec, MetricSpec, Task, mean_metric, register_kind


class ScoreDecoder(nn.Module):
    """A score (B, 1) from the pooled features."""

    def __init__(self, task: Task, info: FeatureInfo, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(info.dim, 1)

    def forward(self, features: Features) -> Tensor:
        return self.head(features.pooled)


class ScaledSharing(HardSharing):
    """A shared encoder whose input is scaled by a learned factor."""

    def __init__(self, encoder: Encoder, tasks: list[str]) -> None:
        super().__init__(encoder, tasks)
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor, rows: Mapping[str, Tensor], words: Tensor | None = None) -> dict[str, Features]:
        return super().forward(image * self.factor, rows, words)


class HalfStep(TaskFedAvg):
    """Move halfway from the global weights to their average."""

    def finish_merge(self) -> dict[str, np.ndarray]:
        merged = super().finish_merge()
        before = {key: self.phase.arrays[key].numpy() for key in merged}
        return {k: ((v + before[k]) / 2).astype(v.dtype) if v.dtype.kind == "f" else v for k, v in merged.items()}


def read_grid(file: SourceFile, dimensions: int) -> Picture:
    """Read an image of numbers as text, a line per row."""
    return Picture(np.array([line.split() for line in file.read().decode().splitlines()], np.uint8))


register_kind(
    "brightness",
    KindSpec(
        "a number from 0 to 1", losses=("squared",), metrics=("distance",), decoders=("score",), output_channels=1
    ),
    Kind(
        read=lambda cell, task, source: np.array([float(cell)], np.float32),
        losses={"squared": lambda task, settings, outputs, values: (outputs - values).square().mean()},
        metrics={"distance": mean_metric(lambda task, outputs, values: (outputs - values).abs()[:, 0])},
        curvature_factor=lambda outputs, values, task: torch.randn_like(outputs),
        show=lambda outputs, task: outputs.numpy(),
        contents=lambda values, task: values > 0.5,
    ),
    {"distance": MetricSpec("Distance", "mean distance from the true brightness", higher_is_better=False)},
)
register_decoder("brightness", "score", ScoreDecoder)
register_format(Format("grid", (".grid",), read_grid))
register_model("scaled", ModelSpec("Scaled", "hard sharing with a learned factor", "toys:ScaledSharing"))
register_strategy("half-step", HalfStep)
