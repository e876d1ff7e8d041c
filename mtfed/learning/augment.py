"""Images that differ a little each time they are trained on, and their labels with them.

Every image of a batch is zoomed, shifted and, where sides do not matter, mirrored, by numbers of its own; masks, doses
and boxes go along. There is no turning, so a box stays the box of what is in it. Contrast changes for images alone. A
batch moves as a whole, which costs little; more, and more slowly, is done in :mod:`.strong_augment`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Augment
from ..data.shard import Batch, Labels
from ..tasks.task import Task

ZOOM = 0.15  # of the size, up or down
SHIFT = 0.1  # of the side, either way along each axis
CONTRAST = 0.2  # of the deviation, up or down
KEPT = 0.3  # a box of which less is still in the image is no longer a label


def augment(batch: Batch, tasks: dict[str, Task], how: Augment) -> Batch:
    """Return a batch with images and labels changed at random, by torch's default generator.

    Args:
        batch: on the CPU; left as it is.
        tasks: by name; a task's kind says whether its labels lie in the image.
        how: ``none``, ``shift`` (and zoom), ``mirror`` (left and right, too), or ``strong`` (much more).
    """
    if how == "none":
        return batch
    if how == "strong":
        from .strong_augment import strong  # needs libraries that the others do without

        return strong(batch, tasks)
    count, dims = len(batch.images), batch.images.ndim - 2
    scale = 1 + ZOOM * (2 * torch.rand(count, 1) - 1).expand(count, dims)  # (B, dims), axes x first
    shift = 2 * SHIFT * (2 * torch.rand(count, dims) - 1)  # in half sides, as grids count
    if how == "mirror":
        scale = scale * torch.cat([torch.randint(0, 2, (count, 1)) * 2.0 - 1, torch.ones(count, dims - 1)], dim=1)
    grid = _grid(scale, shift, batch.images.shape[2:])
    images = F.grid_sample(batch.images, grid, padding_mode="border", align_corners=False)
    images = images * (1 + CONTRAST * (2 * torch.rand(count, *[1] * (dims + 1)) - 1))
    labels = {}
    for name, held in batch.labels.items():
        geometry = tasks[name].spec.geometry
        values = held.values
        if geometry == "map":
            values = _resample(values, grid[held.rows], dims)
        elif geometry == "boxes":
            values = _move(values, scale[held.rows], shift[held.rows], batch.images.shape[-1])
        labels[name] = Labels(held.rows, values)
    return Batch(images, labels)


def _grid(scale: Tensor, shift: Tensor, size: torch.Size) -> Tensor:
    """Return where each pixel of the new images (B, *size, dims) comes from: a point p moves to ``scale p + shift``."""
    inverse = torch.diag_embed(1 / scale)
    theta = torch.cat([inverse, (-shift / scale)[:, :, None]], dim=2)  # (B, dims, dims + 1)
    return F.affine_grid(theta, [len(scale), 1, *size], align_corners=False)


def _resample(values: Tensor, grid: Tensor, dims: int) -> Tensor:
    """Return maps (M, *S) or (M, K, *S) of integers, each pixel that of the nearest."""
    maps = values[:, None] if values.ndim == dims + 1 else values
    moved = F.grid_sample(maps.float(), grid, mode="nearest", padding_mode="border", align_corners=False)
    return moved.to(values.dtype).reshape(values.shape)


def _move(values: Tensor, scale: Tensor, shift: Tensor, side: int) -> Tensor:
    """Return boxes (M, N, 2 dims + 1) moved and cut off at the edge; one that is nearly gone becomes padding."""
    dims = scale.shape[1]
    low, size, classes = values[..., :dims], values[..., dims : 2 * dims], values[..., 2 * dims :]
    ends = torch.stack([low, low + size]) * (2 / side) - 1  # (2, M, N, dims), in half sides from the middle
    ends = ((ends * scale[:, None] + shift[:, None] + 1) * (side / 2)).sort(dim=0).values
    whole, ends = ends, ends.clamp(0, side)
    left = (ends[1] - ends[0]).prod(-1, keepdim=True) / (whole[1] - whole[0]).prod(-1, keepdim=True).clamp_min(1e-9)
    classes = torch.where(left >= KEPT, classes, -1.0)
    return torch.cat([ends[0], ends[1] - ends[0], classes], dim=-1)
