"""The config of two tasks, and random images with labels of each."""

from __future__ import annotations

import torch

from mtfed.config import Config, read_config
from mtfed.data.shard import Labels, Shard

from . import SMALL, TASKS


def config(**changes: object) -> Config:
    return read_config(TASKS | SMALL | {key.replace("_", "-"): value for key, value in changes.items()})


def random_shard(n: int = 12, size: int = 32) -> Shard:
    g = torch.Generator().manual_seed(0)
    labels = {
        "pneumonia": Labels(torch.arange(0, n, 2), torch.randint(0, 2, (n // 2,), generator=g)),
        "lungs": Labels(torch.arange(1, n, 2), torch.randint(0, 2, (n // 2, size, size), generator=g).to(torch.uint8)),
    }
    return Shard(torch.randint(0, 255, (n, 1, size, size), generator=g, dtype=torch.uint8), labels)
