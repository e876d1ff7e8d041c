"""Random factors z of a loss's curvature in the outputs: E[z z^T] is the curvature."""

from __future__ import annotations

import torch
from torch import Tensor


def random_signs(like: Tensor) -> Tensor:
    """Return -1 or 1 at random, in a tensor's shape, from the default generator."""
    return torch.randint(0, 2, like.shape, device=like.device).mul_(2).sub_(1).to(like.dtype)


def softmax_factor(logits: Tensor) -> Tensor:
    """Return z = sum_c e_c sqrt(p_c) (1_c - p) with random signs e_c, (M, K, ...): cross-entropy of a softmax.

    E[z z^T] is its curvature in the logits, diag(p) - p p^T.
    """
    p = logits.softmax(1)
    signed = p.sqrt() * random_signs(p)
    return signed - p * signed.sum(1, keepdim=True)


def sigmoid_factor(logits: Tensor) -> Tensor:
    """Return z = e sqrt(p (1 - p)) with random signs e: binary cross-entropy, whose curvature is p (1 - p)."""
    p = logits.sigmoid()
    return (p * (1 - p)).sqrt() * random_signs(p)
