"""How sharply a site's data determine each weight: the diagonal of its loss's Gauss-Newton matrix.

That is the Fisher information of the model's own predictions (expectation over labels that the model draws, not over
the labels that are there, whose gradients vanish where the model fits them). It is the precision of the site's weights
in the merge, see :mod:`mtfed.strategies.bayesian`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import Config
from ..data.shard import Shard
from ..models.system import MultiTaskModel
from ..tasks.kind import kind_of
from .balancing import BALANCING, History
from .train import only, seed_device, to_device

MICRO_BATCH = 8  # fewer samples a pass: less noise, more time


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

    In a softmax's logits cross-entropy has the curvature diag(p) - p p^T = E[z z^T], where z = sum_c e_c sqrt(p_c)
    (1_c - p) with random signs e_c. Signs of two samples, and of two pixels, are independent, so the square of what z
    sends back through a whole micro-batch is the sum of its samples' curvatures in expectation, and one backward pass
    serves them all. (Labels drawn from p, as in Martens, JMLR 2020, section 9, have the same mean, but where the model
    is sure nearly all of it comes from rare draws: measured, a site's share of the encoder then jumped from .2 to .9
    between rounds.)

    A task's kind says what z is for its loss, whose terms are taken for estimates of one and count by their mean weight
    (:class:`~mtfed.tasks.kind.Kind`; our design). A task counts as its loss does
    (:mod:`.balancing`), and a learned number of the balancing as half a sample for each sample of its task: that is the
    curvature of ``L / (2 exp(s)) + s / 2`` in s where it is least, and GradNorm's v, which follows no likelihood, is so
    averaged by samples (our design).

    Args:
        model: as trained; it is left in evaluation mode.
        shard: the site's training images.
        tasks: those that were trained.
        config: of the run.
        seed: of the signs.
        samples: use at most so many samples a task, drawn by ``seed``, and scale up; 0 means all.
        history: losses of earlier rounds, for balancing that looks back.

    Returns:
        Tensors of the weights' shapes, of every part that ``tasks`` train, without what is frozen. Weights that no
        task's output depends on are 0 throughout; those of the balancing are there if it learns.
    """
    device = next(model.parameters()).device
    seed_device(seed, device)
    model.eval()
    weights = BALANCING[config.balancing](model.balance, history).weights(tasks)
    with only(model, tasks):
        named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    learned = {name: weight for name, weight in named.items() if name.startswith("balance.")}
    used = {name: weight for name, weight in named.items() if name not in learned}
    total = {name: torch.zeros_like(weight) for name, weight in used.items()}
    for task in tasks:
        rows = shard.labels[task].rows
        count = len(rows)
        scale = weights[task] * config.tasks[task].weight
        if 0 < samples < count:
            rows = rows[torch.randperm(count)[:samples]]
        sums: dict[str, Tensor] = {}
        for batch in shard.batches(min(MICRO_BATCH, -(-config.batch_size // config.accumulate)), rows, [task]):
            batch = to_device(batch, device)
            labels = batch.labels[task]
            outputs = model(batch.images, {task: labels.rows})[task]
            z = kind_of(config.tasks[task]).curvature_factor(outputs.detach(), labels.values, config.tasks[task])
            gradients = torch.autograd.grad(outputs, list(used.values()), z, allow_unused=True)
            for name, gradient in zip(used, gradients, strict=True):
                if gradient is not None:
                    sums[name] = sums[name].addcmul_(gradient, gradient) if name in sums else gradient.square()
        for name, value in sums.items():
            total[name].add_(value, alpha=scale * count / len(rows))
        if BALANCING[config.balancing].learns:
            total[f"balance.{task}"] = torch.full_like(learned[f"balance.{task}"], count / 2).detach()
    return total
