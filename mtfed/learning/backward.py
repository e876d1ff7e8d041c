"""Backward passes of a batch's losses, combined by a balancing rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from .balancing import ByGradient, Equal
from .losses import PieceLosses

Scale = Callable[[Tensor], Tensor]  # the scaler of mixed precision, which prevents small gradients from vanishing


def backward(rule: Equal, pieces: Iterable[PieceLosses], scale: Scale) -> dict[str, Tensor]:
    """Add the gradients of a batch to all weights, one backward pass for each piece; return the tasks' mean losses."""
    means: dict[str, Tensor] = {}
    for losses in pieces:
        total: Tensor | float = 0.0
        for task, (loss, share) in losses.items():
            means[task] = means.get(task, 0.0) + loss.detach() * share
            total = total + rule.term(task, loss) * share
        assert isinstance(total, Tensor)
        scale(total).backward()
    return means


def backward_by_task(
    rule: ByGradient,
    tasks: Sequence[str],
    pieces: Iterable[PieceLosses],
    shared: Sequence[Tensor],
    own: Mapping[str, Sequence[Tensor]],
    scale: Scale,
) -> dict[str, Tensor]:
    """Add the gradients that a rule combines from the tasks' gradients to all weights; return the tasks' mean losses.

    This takes a backward pass for each task and piece, a copy of the shared weights for each task, and on a GPU one
    synchronisation for each step, because the combination depends on the gradients' inner products.

    Args:
        pieces: pieces of the batch of these tasks, computed as they are consumed.
        shared: weights that several tasks' losses may depend on.
        own: task -> weights that only its loss depends on.
        scale: loss scale of mixed precision; the resulting gradients are scaled.
    """
    sizes = [weight.numel() for weight in shared]
    rows = torch.zeros(len(tasks), sum(sizes), dtype=shared[0].dtype, device=shared[0].device)  # (T, P)
    has_gradient = [False] * len(shared)
    means: dict[str, Tensor] = {}
    for losses in pieces:
        for left, (task, (loss, share)) in zip(range(len(losses) - 1, -1, -1), losses.items(), strict=True):
            means[task] = means.get(task, 0.0) + loss.detach() * share
            weights = [*shared, *own[task]]
            gradients = torch.autograd.grad(scale(loss * share), weights, retain_graph=left > 0, allow_unused=True)
            row = rows[tasks.index(task)].split(sizes)
            for i, gradient in enumerate(gradients[: len(shared)]):
                if gradient is not None:
                    row[i].view(gradient.shape).add_(gradient)
                    has_gradient[i] = True
            for weight, gradient in zip(own[task], gradients[len(shared) :], strict=True):
                if gradient is not None:
                    add_gradient(weight, gradient)
    gram = (rows @ rows.T).cpu().double()
    mean_losses = torch.stack([means[task] for task in tasks]).cpu().double()
    in_shared, in_own, slope = rule.combine(tasks, mean_losses, gram)
    combined = (in_shared.to(rows) @ rows).split(sizes)
    for weight, gradient, is_used in zip(shared, combined, has_gradient, strict=True):
        if is_used:  # with a gradient of 0, the optimiser would still decay a weight that no task used
            add_gradient(weight, gradient.view(weight.shape))
    for i, task in enumerate(tasks):
        for weight in own[task]:
            if weight.grad is not None:
                weight.grad.mul_(float(in_own[i]))
        if slope is not None:
            add_gradient(rule.balance[task], slope[i].to(rows))
    return means


def add_gradient(weight: Tensor, gradient: Tensor) -> None:
    """Add to a weight's gradient, which must have the weight's memory layout."""
    if weight.grad is None:
        weight.grad = torch.empty_like(weight).copy_(gradient)
    else:
        weight.grad.add_(gradient)
