"""Boxes in two or three dimensions, and the maps of centres that a detector learns.

A box is its lower corner and its size, (x, y, w, h) or (x, y, z, w, h, d), in pixels. Maps of cells have the axes of
arrays, (y, x) or (z, y, x); a cell is one ``stride`` wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

TAKEN_COST, TOUCHING_COST = 1e6, 1e3  # costs of bad cells in squared cells, far above any distance in the window


def intersection_over_union(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersection over union of boxes (..., N, 2d) with boxes (..., M, 2d), as (..., N, M)."""
    (a, a_size), (b, b_size) = (boxes.unsqueeze(axis).chunk(2, -1) for boxes, axis in ((first, -2), (second, -3)))
    shared = (torch.minimum(a + a_size, b + b_size) - torch.maximum(a, b)).clamp_min(0).prod(-1)
    union = a_size.prod(-1) + b_size.prod(-1) - shared
    return shared / union.clamp_min(torch.finfo(union.dtype).tiny)


def clip(boxes: Tensor, sides: Sequence[int]) -> Tensor:
    """Return the part of boxes (..., 2d) inside an image of the given sides, x first; outside, the size is 0."""
    corner, size = boxes.chunk(2, -1)
    end = corner.new_tensor(sides)
    low, high = (torch.minimum(edge.clamp_min(0), end) for edge in (corner, corner + size))
    return torch.cat([low, high - low], -1)


def gaussian_radius(sizes: Tensor, min_overlap: float = 0.7) -> Tensor:
    """Return how far a box may move along every axis until its overlap with the original falls to ``min_overlap``.

    Law and Deng (CornerNet, ECCV 2018) let a Gaussian extend that far around a corner; around a centre (Zhou et al.,
    Objects as Points, 2019) only the shift of a whole box matters. If a box with sides s_i is shifted by r along every
    axis, the shared part is prod(s_i - r), and with an intersection over union of t ::

        prod(1 - r / s_i) = 2 t / (1 + t)

    In two dimensions r is the smaller root of r^2 - (w + h) r + w h (1 - t) / (1 + t) = 0. (Widely copied code takes
    the larger root, and divides by 2 instead of 2a in the cases of CornerNet in which a is not 1.) Here the logarithm
    of the equation is solved for any number of sides by Newton's method. From 0, it oversteps the root once and then
    falls towards it, because the left side is concave.

    Args:
        sizes: sizes of boxes, (..., d).
        min_overlap: above 0 and at most 1.

    Returns:
        (...) in the unit of the sizes.
    """
    target = torch.log(sizes.new_tensor(2 * min_overlap / (1 + min_overlap)))
    r = torch.zeros_like(sizes[..., :1])
    for _ in range(6):
        left = torch.log1p(-r / sizes).sum(-1, keepdim=True)
        slope = (1 / (sizes - r)).sum(-1, keepdim=True)
        r = r + (left - target) / slope
    return r[..., 0]


def assign_cells(values: Tensor, shape: Sequence[int], stride: int) -> Tensor:
    """Return the cell (M, N, d) of every box, x first: the cell that contains its centre, if it is still free.

    If the centres of two boxes are in one cell, the second box takes the free cell nearest to its centre, at most two
    cells away. Cells that touch a box of the same class are avoided, because only one of the two could be a peak. The
    box's offset then contains where the centre is. Boxes share a cell only if no cell is free.

    Args:
        values: boxes and classes (M, N, 2d + 1); class -1 is padding.
        shape: shape of the map, in the order of an array's axes.
        stride: stride of the map in pixels.
    """
    dims = len(shape)
    last = torch.tensor(shape[::-1], device=values.device) - 1
    centre = (values[..., :dims] + values[..., dims : 2 * dims] / 2) / stride
    cells = torch.minimum(centre.floor().long().clamp_min(0), last)  # (M, N, d)
    classes, real = values[..., -1], values[..., -1] >= 0
    is_shared = (cells[:, :, None] == cells[:, None]).all(-1) & real[:, :, None] & real[:, None]
    is_taken = is_shared.tril(-1).any(-1)  # (M, N): by an earlier box
    window = torch.tensor(list(product(range(-2, 3), repeat=dims)), device=values.device)
    for n in is_taken.any(0).nonzero().flatten().tolist():
        nearby = cells[:, n, None] + window  # (M, W, d)
        steps = (nearby[:, :, None] - cells[:, None]).abs().amax(-1)  # (M, W, N) to every other box
        steps[:, :, n], steps[~real[:, None].expand_as(steps)] = 9, 9
        cost = (nearby + 0.5 - centre[:, n, None]).square().sum(-1)
        cost += TAKEN_COST * (steps == 0).any(-1)
        cost += TOUCHING_COST * ((steps <= 1) & (classes[:, None] == classes[:, n, None, None])).any(-1)
        cost[((nearby < 0) | (nearby > last)).any(-1)] = torch.inf
        chosen = nearby.gather(1, cost.argmin(1)[:, None, None].expand(-1, 1, dims))[:, 0]
        cells[:, n] = torch.where(is_taken[:, n, None], chosen, cells[:, n])
    return cells


def centre_maps(values: Tensor, cells: Tensor, classes: int, shape: Sequence[int], stride: int) -> Tensor:
    """Return the maps of centres (M, K, *shape): 1 at a box's cell and a Gaussian around it, the larger of several.

    The deviation is a third of :func:`gaussian_radius` plus half a cell, because a cell does not determine the centre.
    """
    dims = len(shape)
    sigma = (gaussian_radius(values[..., dims : 2 * dims].clamp_min(1e-3) / stride) + 0.5) / 3
    exponent = values.new_zeros(values.shape[:2])
    for axis, side in zip(reversed(range(dims)), shape, strict=True):
        distance = torch.arange(side, device=values.device) - cells[..., axis, None]
        along = (distance / sigma[..., None]).square()  # (M, N, side)
        exponent = exponent[..., None] + along.reshape(*along.shape[:2], *(1,) * (exponent.ndim - 2), side)
    bumps = torch.exp(-exponent / 2).flatten(2)  # (M, N, P)
    index = values[..., -1].long().masked_fill(values[..., -1] < 0, classes)  # padding gets a map after the last class
    heat = bumps.new_zeros(len(bumps), classes + 1, bumps.shape[2])
    heat.scatter_reduce_(1, index[..., None].expand_as(bumps), bumps, "amax")
    return heat[:, :classes].unflatten(2, tuple(shape))


def gather_cells(maps: Tensor, cells: Tensor) -> Tensor:
    """Return the values of maps (M, C, *shape) at cells (M, N, d), as (M, N, C)."""
    index = flat_index(cells, maps.shape[2:])
    return maps.flatten(2).transpose(1, 2).gather(1, index[..., None].expand(-1, -1, maps.shape[1]))


def flat_index(cells: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the index (M, N) of cells (M, N, d), x first, into a flattened map of a shape."""
    index = torch.zeros_like(cells[..., 0])
    for axis, side in zip(reversed(range(len(shape))), shape, strict=True):
        index = index * side + cells[..., axis]
    return index
