"""Augmentation of a whole batch at once: shift, zoom, contrast, and optionally mirroring.

Every image gets random numbers of its own. Masks, doses and boxes move with it. Nothing is rotated, so a moved box
remains the bounding box of its content. Contrast changes only in images. Moving the batch as a whole is cheap;
:mod:`.strong_augment` changes more and is slower.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.shard import Batch, Labels
from ..tasks.task import Task

ZOOM = 0.15  # larger or smaller, as a share of the size
SHIFT = 0.1  # largest shift along each axis, as a share of the side
CONTRAST = 0.2  # more or less, as a share of the deviation
MIN_BOX_SHARE = 0.3  # share of a box that must remain in the image; with less it is no longer a label


def augment_affinely(batch: Batch, tasks: dict[str, Task], mirror: bool) -> Batch:
    """Return a batch shifted and zoomed, with other contrast, and mirrored half of the time if ``mirror``."""
    count, dims = len(batch.images), batch.images.ndim - 2
    scale = 1 + ZOOM * (2 * torch.rand(count, 1) - 1).expand(count, dims)  # (B, dims), axes x first
    shift = 2 * SHIFT * (2 * torch.rand(count, dims) - 1)  # in half sides, the unit of sampling grids
    if mirror:
        scale = scale * torch.cat([torch.randint(0, 2, (count, 1)) * 2.0 - 1, torch.ones(count, dims - 1)], dim=1)
    grid = _sampling_grid(scale, shift, batch.images.shape[2:])
    images = F.grid_sample(batch.images, grid, padding_mode="border", align_corners=False)
    images = images * (1 + CONTRAST * (2 * torch.rand(count, *[1] * (dims + 1)) - 1))
    labels = {}
    for name, own in batch.labels.items():
        geometry, values = tasks[name].spec.geometry, own.values
        if geometry == "map":
            values = _resample(values, grid[own.rows], dims)
        elif geometry == "boxes":
            values = _move_boxes(values, scale[own.rows], shift[own.rows], batch.images.shape[-1])
        labels[name] = Labels(own.rows, values)
    return Batch(images, labels, batch.words)


def _sampling_grid(scale: Tensor, shift: Tensor, size: torch.Size) -> Tensor:
    """Return where each pixel of the new images (B, *size, dims) comes from: a point p moves to ``scale p + shift``."""
    inverse = torch.diag_embed(1 / scale)
    theta = torch.cat([inverse, (-shift / scale)[:, :, None]], dim=2)  # (B, dims, dims + 1)
    return F.affine_grid(theta, [len(scale), 1, *size], align_corners=False)


def _resample(values: Tensor, grid: Tensor, dims: int) -> Tensor:
    """Return resampled maps (M, *S) or (M, K, *S) of integers; each pixel is that of its nearest neighbour."""
    maps = values[:, None] if values.ndim == dims + 1 else values
    moved = F.grid_sample(maps.float(), grid, mode="nearest", padding_mode="border", align_corners=False)
    return moved.to(values.dtype).reshape(values.shape)


def _move_boxes(values: Tensor, scale: Tensor, shift: Tensor, side: int) -> Tensor:
    """Return boxes (M, N, 2 dims + 1) moved and clipped; a box becomes padding if too little of it remains."""
    dims = scale.shape[1]
    low, size, classes = values[..., :dims], values[..., dims : 2 * dims], values[..., 2 * dims :]
    ends = torch.stack([low, low + size]) * (2 / side) - 1  # (2, M, N, dims), in half sides from the middle
    ends = ((ends * scale[:, None] + shift[:, None] + 1) * (side / 2)).sort(dim=0).values
    return clip_boxes(ends, (ends[1] - ends[0]).prod(-1, keepdim=True), classes, side)


def clip_boxes(ends: Tensor, volume: Tensor, classes: Tensor, side: int) -> Tensor:
    """Return clipped boxes (M, N, 2 dims + 1); a box becomes padding if too little of it remains in the image."""
    ends = ends.clamp(0, side)
    share = (ends[1] - ends[0]).prod(-1, keepdim=True) / volume.clamp_min(1e-9)
    return torch.cat([ends[0], ends[1] - ends[0], torch.where(share >= MIN_BOX_SHARE, classes, -1.0)], dim=-1)
