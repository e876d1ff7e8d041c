"""The optimiser of local training, and the proximal terms that strategies add to its gradients."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import torch
from torch import Tensor

Anchors = Iterable[tuple[Tensor, Tensor, float]]  # weight, anchor and mu


class AdamW(torch.optim.AdamW):
    """PyTorch's AdamW without the decorators that load torch's compiler, which takes about a second.

    They keep the compiler out of these methods, or break its graphs around ``step``. Here only a model's forward pass
    is ever compiled (:mod:`.acceleration`), so the plain methods do the same.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def add_proximal_gradients(anchors: Anchors) -> None:
    """Add the gradient of ``mu / 2 * ||w - anchor||^2`` to each weight that has a gradient."""
    for weight, anchor, mu in anchors:
        if weight.grad is not None:
            weight.grad.add_(weight.detach() - anchor, alpha=mu)
