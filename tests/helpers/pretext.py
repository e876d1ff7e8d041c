"""Tasks that need no labels, and batches and configs with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtfed.data.shard import Batch, Labels
from mtfed.tasks.kind import kind_of
from mtfed.tasks.task import Task

PRETEXT = ("reconstruction", "orientation", "views")
KEYS: dict[str, Any] = {f"task.{kind}.kind": kind for kind in PRETEXT}


def pretext_task(kind: str, **fields: str) -> Task:
    return Task(name=kind, kind=kind, **fields)


def copies(kind: str, images: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return what a kind makes of images."""
    make = kind_of(pretext_task(kind)).pretext
    assert make is not None
    torch.manual_seed(seed)
    return make(images, pretext_task(kind))


def batch_of(images: Tensor, **rows: list[int]) -> Batch:
    """Return a batch in which tasks have labels of some images."""
    labels = {task: Labels(torch.tensor(index), torch.zeros(len(index)).long()) for task, index in rows.items()}
    return Batch(images, labels)
