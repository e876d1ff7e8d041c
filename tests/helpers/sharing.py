"""Sharing schemes of three tasks over small encoders, with noise on their weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mtfed.models.ctan import CrossTaskAttention
from mtfed.models.encoders import Encoder, Features
from mtfed.models.mtan import TaskAttention
from mtfed.models.sharing import HardSharing, SeparateEncoders, Sharing

TASKS = ("lungs", "left-lung_2", "kind")

ROWS = {"lungs": [0, 1, 2], "kind": [1], "left-lung_2": [0, 2]}

ENCODERS = {  # name -> side, dimensions
    "resnet_nano": (32, 2),
    "vit_nano_patch8": (32, 2),
    "pvt_mini": (32, 2),
    "resnet3d_mini": (32, 3),
    "vit3d_mini_patch8": (16, 3),
}


def separate(encoder: Callable[[], Encoder], tasks: tuple[str, ...]) -> Sharing:
    return SeparateEncoders(encoder, tasks)


def over_one(kind: Any, **options: bool) -> Callable[[Callable[[], Encoder], tuple[str, ...]], Sharing]:
    return lambda encoder, tasks: kind(encoder(), tasks, **options)


SCHEMES = {
    "hard": over_one(HardSharing),
    "separate": separate,
    "mtan": over_one(TaskAttention),
    "ctan": over_one(CrossTaskAttention),
    "ctan, encoder only": over_one(CrossTaskAttention, at_bottleneck=False),
    "ctan, bottleneck only": over_one(CrossTaskAttention, in_encoder=False),
}

OVER_ONE = [name for name in SCHEMES if name != "separate"]

ALL = [(scheme, encoder) for scheme in SCHEMES for encoder in ENCODERS]


def build(scheme: str, encoder: str = "resnet_nano", tasks: tuple[str, ...] = TASKS, noise: bool = True) -> Sharing:
    """Return a scheme with noise on its weights, as what begins at zero would hide."""
    torch.manual_seed(0)
    side, dims = ENCODERS[encoder]
    model = SCHEMES[scheme](partial(Encoder, encoder, side, 1, dims), tasks)
    with torch.no_grad():
        for name, tensor in model.state_dict().items() if noise else ():
            if tensor.is_floating_point() and not name.startswith("body."):
                tensor += 0.1 * torch.rand(tensor.shape)
    return model


def image(encoder: str = "resnet_nano", count: int = 3) -> Tensor:
    side, dims = ENCODERS[encoder]
    return torch.randn(count, 1, *(side,) * dims, generator=torch.Generator().manual_seed(1))


def rows(of: dict[str, list[int]] = ROWS) -> dict[str, Tensor]:
    return {task: torch.tensor(index) for task, index in of.items()}


def close(left: Features, right: Features) -> None:
    for own, other in zip((*left.maps, left.pooled, left.image), (*right.maps, right.pooled, right.image), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
