"""Which symmetry of the square or cube an image was moved by; a kind that needs no labels.

Predicting quarter turns is due to Gidaris, Singh, Komodakis (ICLR 2018). Here, all symmetries of the square (8) and of
the cube (48) are classes, mirror images included: the left and the right side of a body differ, too. An axis of an
image is exchanged for another only if all sides have the same length, which they have in a model's input.

Augmentation comes before this. With ``augment = mirror``, half of the images are mirror images already. No model can
then distinguish two classes that differ by a reflection, so the accuracy is at most one half.
"""

from __future__ import annotations

from functools import cache
from itertools import permutations, product

import torch
from torch import Tensor

from .classification import cross_entropy
from .curvature_factors import softmax_factor
from .kind import Kind, mean_metric, read_no_label
from .task import Task

Symmetry = tuple[tuple[int, ...], tuple[int, ...]]  # the old axis of every new axis, and the new axes to reverse


@cache
def symmetries(dims: int) -> tuple[Symmetry, ...]:
    """Return the symmetries of the square or cube, 8 or 48; the first one changes nothing."""
    signs = list(product((False, True), repeat=dims))
    reversed_axes = [tuple(axis for axis in range(dims) if sign[axis]) for sign in signs]
    return tuple((order, axes) for order in permutations(range(dims)) for axes in reversed_axes)


def move(images: Tensor, symmetry: Symmetry) -> Tensor:
    """Return images (M, C, *S) moved by a symmetry: axes in another order, and then some of them reversed."""
    order, axes = symmetry
    return images.permute(0, 1, *(axis + 2 for axis in order)).flip([axis + 2 for axis in axes])


def move_at_random(images: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Return images (M, C, *S), each moved by a random symmetry, and the symmetries' indices (M,)."""
    choices = symmetries(images.ndim - 2)
    index = torch.randint(len(choices), (len(images),))
    moved = torch.empty_like(images)
    for chosen in index.unique().tolist():
        rows = (index == chosen).nonzero().squeeze(1).to(images.device)
        moved[rows] = move(images[rows], choices[chosen])
    return moved, index.to(images.device)


KIND = Kind(
    read=read_no_label,
    pretext=move_at_random,
    losses={"cross-entropy": cross_entropy},
    metrics={"accuracy": mean_metric(lambda task, logits, values: logits.argmax(1) == values)},
    curvature_factor=lambda logits, values, task: softmax_factor(logits),
    show=lambda logits, task: logits.argmax(1).numpy(),
)
