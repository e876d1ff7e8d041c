"""Masked patches of an image, which the model reconstructs; a kind that needs no labels.

In the manner of SimMIM (Xie et al., CVPR 2022): random patches of the image are set to 0, which is the mean of a
normalised image, and the loss counts only the pixels in them. Unlike there, the mask is not a learned token of the
encoder, so that encoders of all architectures can be trained. The size and share of the masked patches are our design.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .curvature_factors import random_signs
from .kind import AdditiveMetric, Kind, LossSettings, read_no_label
from .task import Task

PATCHES = 8  # patches along a side of the image
MIN_PATCH = 4  # smallest side of a patch, in pixels
MASKED_SHARE = 0.6  # share of the patches that is masked
MOMENTS = ("pixels", "total", "squares", "residual")  # the sums of R²


def random_mask(count: int, size: tuple[int, ...]) -> Tensor:
    """Return ``count`` masks (M, 1, *S) float32 of random patches: 1 where an image is masked.

    The patches are squares or cubes. The masks have the same number of patches; those at the far edges of an image
    whose side is not a multiple of the patch's are smaller.
    """
    patch = max(size[0] // PATCHES, MIN_PATCH)
    grid = [-(-side // patch) for side in size]
    patches = int(torch.tensor(grid).prod())
    chosen = torch.rand(count, patches).argsort(1)[:, : max(round(MASKED_SHARE * patches), 1)]
    mask = torch.zeros(count, patches).scatter_(1, chosen, 1.0).view(count, 1, *grid)
    for axis in range(2, mask.ndim):
        mask = mask.repeat_interleave(patch, axis)
    for axis, side in enumerate(size, start=2):
        mask = mask.narrow(axis, 0, side)
    return mask


def mask_patches(images: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Return images (M, C, *S) with masked patches, and (M, C + 1, *S): the images and the masks."""
    mask = random_mask(len(images), images.shape[2:]).to(images)
    return images * (1 - mask), torch.cat([images, mask], 1)


def masked_loss(error: Callable[..., Tensor]) -> Callable[[Task, LossSettings, Tensor, Tensor], Tensor]:
    """Return the loss that is the mean of an error over the masked pixels of an image, and then over images."""

    def loss(task: Task, settings: LossSettings, outputs: Tensor, values: Tensor) -> Tensor:
        truth, mask = values[:, :-1], values[:, -1:]
        errors = (error(outputs, truth, reduction="none") * mask).flatten(1).sum(1)
        return (errors / (mask.flatten(1).sum(1) * outputs.shape[1])).mean()

    return loss


def moments(task: Task, outputs: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    """Return, of the masked pixels, their count, their sum, their sum of squares, and that of the errors."""
    truth, mask = values[:, :-1].double(), values[:, -1:].double()
    residual = (outputs - truth) * mask
    return (mask.sum() * truth.shape[1], (truth * mask).sum(), (truth.square() * mask).sum(), residual.square().sum())


def r2(pixels: Tensor, total: Tensor, squares: Tensor, residual: Tensor) -> Tensor:
    """Return the share of the masked pixels' variance that is explained; NaN if they do not vary."""
    spread = squares - total**2 / pixels
    return 1 - residual / torch.where(spread > 1e-9 * squares, spread, torch.nan)


def _curvature_factor(outputs: Tensor, values: Tensor, task: Task) -> Tensor:
    """Return the curvature factor of a normal error of unit variance for both losses; our design, as in regression."""
    mask = values[:, -1:].expand_as(outputs)
    count = mask.flatten(1).sum(1).view(-1, *[1] * (outputs.ndim - 1))
    return random_signs(outputs) * mask / count.sqrt()


KIND = Kind(
    read=read_no_label,
    pretext=mask_patches,
    losses={"l1": masked_loss(F.l1_loss), "mse": masked_loss(F.mse_loss)},
    metrics={"r2": AdditiveMetric(lambda task: dict.fromkeys(MOMENTS, ()), moments, r2)},
    curvature_factor=_curvature_factor,
    show=lambda outputs, task: outputs.half().numpy(),
    show_values=lambda values, task: values.half(),
)
