"""The diagonal of the Gauss-Newton matrix of a site's loss: how precisely its data determine each weight.

This is the Fisher information of the model's own predictions: the expectation is over labels drawn from the model. (The
gradients of the actual labels vanish where the model fits them.) It is the precision of the site's weights in the
merge, see :mod:`mtfed.strategies.bayesian`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..config import Config
from ..data.shard import Shard
from ..models.system import MultiTaskModel
from ..tasks.kind import kind_of
from .balancing import BALANCING, History
from .device import seed_device, to_device
from .parts import train_only
from .pretext import add_pretext

MICRO_BATCH = 8  # samples in a backward pass; a smaller batch gives less noise and takes more time


def curvature(
    model: MultiTaskModel,
    shard: Shard,
    tasks: list[str],
    config: Config,
    *,
    seed: int,
    samples: int = 0,
    history: History | None = None,
) -> dict[str, Tensor]:
    """Return, by tensor name, the diagonal curvature of the site's loss summed over its labelled samples.

    In a softmax's logits, cross-entropy has the curvature diag(p) - p p^T = E[z z^T], where z = sum_c e_c sqrt(p_c)
    (1_c - p) with random signs e_c. The signs of two samples, and of two pixels, are independent. The square of the
    gradient that z gives for a whole micro-batch is therefore, in expectation, the sum of its samples' curvatures, so
    one backward pass is enough for all of them. (Labels drawn from p, as in Martens, JMLR 2020, section 9, have the
    same mean; but if the model is confident, nearly all of it comes from rare draws. Measured: a site's share of the
    encoder then jumped from .2 to .9 between rounds.)

    The task's kind defines z for its loss. The terms of a loss are treated as estimates of the same loss and weighed by
    their mean weight (:class:`~mtfed.tasks.kind.Kind`; our design). A task is weighed as its loss is
    (:mod:`.balancing`). A learned number of the balancing rule gets half a sample for each sample of its task. This is
    the curvature of ``L / (2 exp(s)) + s / 2`` in s at its minimum; GradNorm's v, which has no likelihood, is thereby
    averaged by samples (our design).

    Args:
        model: the trained model; it is left in evaluation mode.
        shard: the site's training images.
        tasks: the tasks that were trained.
        seed: seed of the random signs.
        samples: use at most this many samples of each task, drawn by ``seed``, and scale up; 0 means all.
        history: the tasks' losses in earlier rounds, for balancing rules that use them.

    Returns:
        A tensor of the weight's shape for every weight that ``tasks`` train, without frozen weights. It is 0 for
        weights that no task's output depends on. Learned numbers of the balancing rule are included if it has any.
    """
    seed_device(seed, next(model.parameters()).device)
    model.eval()
    weights = BALANCING[config.balancing](model.balance, history).weights(tasks)
    with train_only(model, tasks):
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    parameters = {name: weight for name, weight in trained.items() if not name.startswith("balance.")}
    total = {name: torch.zeros_like(weight) for name, weight in parameters.items()}
    for task in tasks:
        rows = shard.labels[task].rows
        count = len(rows)
        scale = weights[task] * config.tasks[task].weight
        if 0 < samples < count:
            rows = rows[torch.randperm(count)[:samples]]
        for name, value in _squared_gradients(model, shard, task, rows, config, parameters).items():
            total[name].add_(value, alpha=scale * count / len(rows))
        if BALANCING[config.balancing].learns:
            total[f"balance.{task}"] = torch.full_like(trained[f"balance.{task}"], count / 2).detach()
    return total


def _squared_gradients(
    model: MultiTaskModel, shard: Shard, task: str, rows: Tensor, config: Config, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return, by name, the sum over micro-batches of the squared gradients of z, for weights that the task uses."""
    declared, device = config.tasks[task], next(model.parameters()).device
    sums: dict[str, Tensor] = {}
    for batch in shard.batches(min(MICRO_BATCH, -(-config.batch_size // config.accumulate)), rows, [task]):
        batch = add_pretext(to_device(batch, device), config.tasks)
        labels = batch.labels[task]
        outputs = model(batch.images, {task: labels.rows}, batch.words)[task]
        z = kind_of(declared).curvature_factor(outputs.detach(), labels.values, declared)
        gradients = torch.autograd.grad(outputs, list(parameters.values()), z, allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                sums[name] = sums[name].addcmul_(gradient, gradient) if name in sums else gradient.square()
    return sums
