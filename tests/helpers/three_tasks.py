"""Three tasks over a tiny model in double precision, and a step of its training."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from mtfed.config import Config, read_config
from mtfed.data.shard import Labels, Shard
from mtfed.learning.train import train
from mtfed.models.system import MultiTaskModel

from . import SMALL, TASKS

SIDE, IMAGES, SEED = 4, 12, 5

ROWS = {"lungs": range(4, 12), "pneumonia": range(0, 8), "side": range(2, 6)}  # the images that a task labels

SCALARS = {"lungs": 0.4, "pneumonia": -0.7, "side": 0.1}

HISTORY = {"lungs": [1.1, 0.9, 0.7], "pneumonia": [0.8, 0.6, 0.2], "side": [0.5, 0.4, 0.45]}

MORE = {"task.side.kind": "classification", "task.side.classes": "left, right", "task.lungs.loss": "cross-entropy"}


def config(**changes: object) -> Config:
    settings = {key.replace("_", "-"): value for key, value in changes.items()}
    return read_config(TASKS | MORE | SMALL | {"weight-decay": 0.0} | settings)


class Tiny(nn.Module):
    """Three tasks over a shared convolution and one task's stream, in double precision; some weights reach nothing."""

    frozen: frozenset[str] = frozenset()

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        stream = [nn.Conv2d(3, 3, 3, padding=1), *([nn.BatchNorm2d(3)] if norm else [])]
        self.encoder = nn.ModuleDict({"shared": nn.Conv2d(1, 3, 3, padding=1), "unused": nn.Linear(2, 2),
                                      "streams": nn.ModuleDict({"lungs": nn.Sequential(*stream)})})  # fmt: skip
        self.decoders = nn.ModuleDict(
            {"lungs": nn.Conv2d(3, 2, 1), "pneumonia": nn.Linear(3, 2), "side": nn.Linear(3, 2)}
        )
        self.balance = nn.ParameterDict({task: torch.tensor(value) for task, value in SCALARS.items()})
        self.double()
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.8)

    def forward(self, images: Tensor, rows: dict[str, Tensor], words: Tensor | None = None) -> dict[str, Tensor]:
        features = self.encoder["shared"](images.to(self.balance["lungs"].dtype)).tanh()
        features = features + self.encoder["streams"]["lungs"](features)
        own = {task: features[index] for task, index in rows.items()}
        return {t: self.decoders[t](x if t == "lungs" else x.mean((2, 3))) for t, x in own.items()}

    def parts(self) -> dict[str, dict[str, Tensor]]:
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.state_dict().items():
            kind, _, rest = name.partition(".")
            part = "decoder." + rest.partition(".")[0] if kind != "encoder" else "encoder"
            parts.setdefault("cross.lungs" if "streams" in name else part, {})[name] = tensor
        return parts


def tiny(norm: bool = False) -> MultiTaskModel:
    return cast(MultiTaskModel, Tiny(norm))


def shard() -> Shard:
    g = torch.Generator().manual_seed(0)
    labels = {
        task: Labels(torch.tensor(rows), torch.randint(0, 2, (len(rows), *((SIDE, SIDE) if task == "lungs" else ())),
                                                       generator=g))
        for task, rows in ROWS.items()
    }  # fmt: skip
    return Shard(torch.randint(0, 255, (IMAGES, 1, SIDE, SIDE), generator=g, dtype=torch.uint8), labels)


def one_step(model: MultiTaskModel, tasks: list[str] | None = None, **changes: object) -> dict[str, np.ndarray]:
    """Return the gradients of a step on all images, by name of the weight."""
    settings = config(batch_size=IMAGES, local_steps=1, **changes)
    result = train(model, shard(), tasks or list(ROWS), settings, seed=SEED, learning_rate=1e-3, history=HISTORY)
    assert result.steps == 1 and result.samples == {task: len(ROWS[task]) for task in tasks or ROWS}
    return {name: weight.grad.numpy() for name, weight in model.named_parameters() if weight.grad is not None}
