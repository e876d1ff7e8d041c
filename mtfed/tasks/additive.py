"""Metrics that are a function of sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..lean import lean_import

if TYPE_CHECKING:
    from torchmetrics import Metric


def sum_metric(compute: Callable[..., Tensor], higher_is_better: bool, **shapes: tuple[int, ...]) -> Metric:
    """Return a torchmetrics metric that adds up what it is updated with, and computes its value of the sums.

    Args:
        compute: takes the sums, float64, by name.
        higher_is_better: which way is up.
        shapes: the name and shape of every sum; ``update`` takes what is added to them, in this order.
    """

    def start(self: Any) -> None:
        kind.__init__(self)
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self: Any, *terms: Tensor) -> None:
        for name, term in zip(shapes, terms, strict=True):
            setattr(self, name, getattr(self, name) + term)

    def value(self: Any) -> Tensor:
        return compute(**{name: getattr(self, name) for name in shapes})

    kind: Any = lean_import("torchmetrics.metric").Metric
    members = {"__init__": start, "update": update, "compute": value, "higher_is_better": higher_is_better}
    return type("Sums", (kind,), members)()
