"""Models whose width the tests change, and their tensors."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from mtfed.config import Form
from mtfed.models.build import assemble

from .planted import TASKS, Network

CHAIN = nn.Sequential(
    nn.Conv2d(2, 14, 3), nn.BatchNorm2d(14), nn.ReLU(), nn.Conv2d(14, 16, 3), nn.ReLU(),
    nn.Conv2d(16, 16, 3, groups=16), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 12), nn.PReLU(12),
    nn.Linear(12, 3),
)  # fmt: skip


def numbers(model: nn.Module) -> Network:
    return {name: tensor.double().numpy().copy() for name, tensor in model.state_dict().items()}


def perceptron(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def multitask() -> nn.Module:
    torch.manual_seed(0)
    return assemble("mtmedformer", TASKS, (Form(2, 32),), encoder="vit_nano_patch8", decoder_width=8)


def samples() -> tuple[Tensor, dict[str, Tensor]]:
    image = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    return image, {"kind": torch.arange(2), "lungs": torch.arange(2)}


def forward(network: Network, x: np.ndarray) -> np.ndarray:
    last = max(int(name.split(".")[0]) for name in network)
    for layer in range(0, last + 1, 2):
        x = x @ network[f"{layer}.weight"].T + network[f"{layer}.bias"]
        x = np.maximum(x, 0) if layer < last else x
    return x
