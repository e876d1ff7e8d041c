"""How sharply a site's data determine each weight: the diagonal of its loss's Gauss-Newton matrix.

That is the Fisher information of the model's own predictions (expectation over labels that the model draws, not over
the labels that are there, whose gradients vanish where the model fits them). It is the precision of the site's weights
in the merge, see :mod:`.strategies.bayesian`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import Config
from .data.shard import Shard
from .models import MTMedFormer
from .training import seed_device, to_device

MICRO_BATCH = 8  # fewer samples a pass: less noise, more time


def curvature(
    model: MTMedFormer, shard: Shard, tasks: list[str], config: Config, *, seed: int, samples: int = 0
) -> dict[str, Tensor]:
    """Return, by tensor name, the diagonal curvature of the site's loss summed over its labelled samples.

    In a softmax's logits cross-entropy has the curvature diag(p) - p p^T = E[z z^T], where z = sum_c e_c sqrt(p_c)
    (1_c - p) with random signs e_c. Signs of two samples, and of two pixels, are independent, so the square of what z
    sends back through a whole micro-batch is the sum of its samples' curvatures in expectation, and one backward pass
    serves them all. (Labels drawn from p, as in Martens, JMLR 2020, section 9, have the same mean, but where the model
    is sure nearly all of it comes from rare draws: measured, a site's share of the encoder then jumped from .2 to .9
    between rounds.)

    A dense task's loss is a mean over pixels, and so is its curvature. A task counts as its loss does: with
    ``balancing="uncertainty"`` times ``1 / (2 exp(s))``, and the curvature in s itself is one half a sample (that of
    ``L / (2 exp(s)) + s / 2`` where it is least). Dice and focal losses have the curvature of their cross-entropy (our
    design).

    Args:
        model: as trained; it is left in evaluation mode.
        shard: the site's training images.
        tasks: those that were trained.
        config: of the run.
        seed: of the signs.
        samples: use at most so many samples a task, drawn by ``seed``, and scale up; 0 means all.

    Returns:
        Tensors of the weights' shapes; of the encoder, and of the decoders of ``tasks``, without what is frozen.
        Weights that no task's output depends on are 0 throughout.
    """
    device = next(model.parameters()).device
    seed_device(seed, device)
    model.eval()
    named = dict(model.named_parameters())
    total = {}
    for task in tasks:
        used = {n: p for n, p in named.items() if p.requires_grad and n.startswith(("encoder.", f"decoders.{task}."))}
        rows = shard.labels[task].rows
        count = len(rows)
        if 0 < samples < count:
            rows = rows[torch.randperm(count)[:samples]]
        sums = {name: torch.zeros_like(weight) for name, weight in used.items()}
        for batch in shard.batches(MICRO_BATCH, rows, [task]):
            batch = to_device(batch, device)
            logits = model(batch.images, {task: batch.labels[task].rows})[task]
            gradients = torch.autograd.grad(_signed(logits), list(used.values()), allow_unused=True)
            for name, gradient in zip(used, gradients, strict=True):
                if gradient is not None:
                    sums[name].addcmul_(gradient, gradient)
        scale = count / len(rows)
        if config.balancing == "uncertainty":
            scale /= 2 * float(model.log_variance[task].detach().exp())
            total[f"log_variance.{task}"] = torch.full_like(model.log_variance[task], count / 2).detach()
        for name, value in sums.items():
            total[name] = total[name].add_(value, alpha=scale) if name in total else value.mul_(scale)
    return total


def _signed(logits: Tensor) -> Tensor:
    """Return the sum of logits (M, K, ...) times z, over the root of the number of pixels.

    Squared gradients then add up to the curvature of a loss that is a mean over pixels.
    """
    with torch.no_grad():
        p = logits.softmax(1)
        drawn = p.sqrt() * torch.randint(0, 2, p.shape, device=p.device).mul_(2).sub_(1)
        z = drawn - p * drawn.sum(1, keepdim=True)
    return (z * logits).sum() / logits[0, 0].numel() ** 0.5
