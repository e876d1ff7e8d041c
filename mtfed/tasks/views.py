"""Two views of an image, which the model projects to similar vectors; a kind that needs no labels.

The views are random crops that are resized, mirrored, and changed in contrast, brightness, sharpness and noise. How the
projections of different images are kept apart depends on the loss:

* ``vicreg`` gives the projections variance and no covariance (Bardes, Ponce, LeCun, ICLR 2022),
* ``nt-xent`` compares with the other images of the batch (SimCLR: Chen, Kornblith, Norouzi, Hinton, ICML 2020),
* ``simsiam`` predicts one projection from the other, whose gradient is stopped (Chen, He, CVPR 2021).

Outputs are projections (N, D), and for ``simsiam`` also predictions of the other view's projection, (N, 2 D). Values
(N,) number the images, so the two rows with the same number belong together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .curvature_factors import random_signs
from .kind import Kind, LossSettings, mean_metric, read_no_label
from .task import Task

PROJECTION = 128  # D, the length of a projection
CROP = (0.5, 1.0)  # side of a crop, as a share of the image's
CONTRAST = 0.4  # more or less, as a share of the deviation
BRIGHTNESS = 0.4  # more or less, in deviations
TINT = 0.4  # contrast and brightness of each channel of a colour image, in the same units
MAX_NOISE = 0.1  # largest deviation of noise, in deviations of the image
BLUR_SHARE = 0.5  # share of views that are blurred

VARIANCE_WEIGHT, COVARIANCE_WEIGHT = 1.0, 1 / 25  # of VICReg, 25 and 1 there, relative to 25 for the invariance
VARIANCE_EPSILON = 1e-4  # VICReg's
TEMPERATURE = 0.2  # of NT-Xent


def make_views(images: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Return two views of each of the images (M, C, *S), (2 M, C, *S), and the images' numbers (2 M,)."""
    index = torch.arange(len(images), device=images.device).repeat_interleave(2)
    return change_appearance(crop(images[index])), index


def crop(images: Tensor) -> Tensor:
    """Return a random crop of each image, resized to the image's size, and mirrored in half of the cases."""
    count, dims = len(images), images.ndim - 2
    side = _uniform(*CROP, (count, 1))
    centre = _uniform(-1, 1, (count, dims)) * (1 - side)  # in half sides of the image, its unit in sampling grids
    scale = side.repeat(1, dims)
    scale[:, 0] *= torch.randint(0, 2, (count,)) * 2.0 - 1
    theta = torch.cat([torch.diag_embed(scale), centre[:, :, None]], 2).to(images)  # axes x first
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def change_appearance(images: Tensor) -> Tensor:
    """Return images with random contrast, brightness, blur (towards the mean of 3 pixels along each axis) and noise.

    Colour images also get another tint. Otherwise the model recognises views by their colours alone.
    """
    shape = (len(images), *[1] * (images.ndim - 1))
    if images.shape[1] > 1:
        tint = TINT * (images - images[:, :1]).flatten(1).any(1).view(shape)  # 0 for a grey image in several channels
        channels = (*images.shape[:2], *shape[2:])
        images = images * (1 + tint * _uniform(-1, 1, channels).to(images))
        images = images + tint * _uniform(-1, 1, channels).to(images)
    images = images * _uniform(1 - CONTRAST, 1 + CONTRAST, shape).to(images)
    images = images + _uniform(-BRIGHTNESS, BRIGHTNESS, shape).to(images)
    blur = (_uniform(0, 1, shape) * (torch.rand(shape) < BLUR_SHARE)).to(images)
    pool = F.avg_pool2d if images.ndim == 4 else F.avg_pool3d
    images = images + blur * (pool(images, 3, stride=1, padding=1, count_include_pad=False) - images)
    return images + _uniform(0, MAX_NOISE, shape).to(images) * torch.randn_like(images)


def _uniform(low: float, high: float, shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape) * (high - low) + low


def pairs(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of the first and of the second views, (P, ...) each, in the order of the images.

    A view without the other one is left out. There may be one at each end of a piece, if a batch is computed in pieces.
    """
    numbers, order = values.sort(stable=True)
    first = (numbers[1:] == numbers[:-1]).nonzero().squeeze(1)
    return rows[order[first]], rows[order[first + 1]]


def vicreg(task: Task, settings: LossSettings, outputs: Tensor, values: Tensor) -> Tensor:
    """Return invariance + variance + covariance / 25; a single image has no variance.

    The paper's weights are 25, 25 and 1; here their sum is divided by 25, so that the loss is about 1 at the start.
    """
    views = pairs(outputs[:, :PROJECTION], values)
    count = len(views[0])
    loss = (views[0] - views[1]).square().sum() / max(views[0].numel(), 1)
    if count < 2:
        return loss
    for view in views:
        deviation = (view.var(0) + VARIANCE_EPSILON).sqrt()
        loss = loss + VARIANCE_WEIGHT * F.relu(1 - deviation).mean() / 2
        centred = view - view.mean(0)
        covariance = centred.T @ centred / (count - 1)
        off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
        loss = loss + COVARIANCE_WEIGHT * off_diagonal / view.shape[1]
    return loss


def nt_xent(task: Task, settings: LossSettings, outputs: Tensor, values: Tensor) -> Tensor:
    """Return the cross-entropy of finding each view's other view among all views; 0 for a single image."""
    first, second = pairs(F.normalize(outputs[:, :PROJECTION], dim=1), values)
    views = torch.cat([first, second])
    itself = torch.eye(len(views), dtype=torch.bool, device=views.device)
    similarity = (views @ views.T / TEMPERATURE).masked_fill(itself, -torch.inf)
    other = torch.arange(len(views), device=views.device).roll(len(first))
    return F.cross_entropy(similarity, other, reduction="sum") / max(len(views), 1)


def simsiam(task: Task, settings: LossSettings, outputs: Tensor, values: Tensor) -> Tensor:
    """Return one minus the cosine of each prediction with the other view's projection, which gets no gradient.

    The paper's loss is the negative cosine. The constant keeps the loss above 0, which balancing rules need.
    """
    first, second = pairs(outputs, values)
    prediction, projection = (torch.cat(rows) for rows in ((first, second), (second, first)))
    cosines = F.cosine_similarity(prediction[:, PROJECTION:], projection[:, :PROJECTION].detach())
    return (1 - cosines).sum() / max(len(cosines), 1)


def retrieved(task: Task, outputs: Tensor, values: Tensor) -> Tensor:
    """Return (P,): whether an image's second view is the most similar one to its first; NaN for a single image."""
    first, second = pairs(F.normalize(outputs[:, :PROJECTION], dim=1), values)
    if len(first) < 2:
        return torch.full((len(first),), torch.nan)
    return ((first @ second.T).argmax(1) == torch.arange(len(first))).double()


def _curvature_factor(outputs: Tensor, values: Tensor, task: Task) -> Tensor:
    """Return the curvature factor of the mean squared distance to the other view, for all losses.

    Our design: this is the diagonal of the curvature of VICReg's invariance. The other terms depend on all images of
    the batch, and the curvature of a sample is not defined for them.
    """
    return random_signs(outputs) * (2 / PROJECTION) ** 0.5


def _nearest(outputs: Tensor) -> Tensor:
    """Return for each view, of pairs in order, the number of the image that has the most similar other view."""
    views = F.normalize(outputs[:, :PROJECTION], dim=1)
    itself = torch.eye(len(views), dtype=torch.bool)
    return (views @ views.T).masked_fill(itself, -torch.inf).argmax(1) // 2


KIND = Kind(
    read=read_no_label,
    pretext=make_views,
    losses={"vicreg": vicreg, "nt-xent": nt_xent, "simsiam": simsiam},
    metrics={"retrieval": mean_metric(retrieved)},
    curvature_factor=_curvature_factor,
    show=lambda outputs, task: _nearest(outputs).numpy(),
)
