"""Boxes in any number of dimensions, and the maps of centres that a detector learns.

A box is its lower corner and its size, (x, y, w, h) or (x, y, z, w, h, d), in pixels. Maps of cells have the axes of
arrays, (y, x) or (z, y, x); a cell is one ``stride`` wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

TAKEN, TOUCHING = 1e6, 1e3  # what a bad cell costs, in squared cells: far more than any distance in the window


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersection over union of boxes (..., N, 2d) with boxes (..., M, 2d), as (..., N, M)."""
    (a, a_size), (b, b_size) = (boxes.unsqueeze(axis).chunk(2, -1) for boxes, axis in ((first, -2), (second, -3)))
    shared = (torch.minimum(a + a_size, b + b_size) - torch.maximum(a, b)).clamp_min(0).prod(-1)
    union = a_size.prod(-1) + b_size.prod(-1) - shared
    return shared / union.clamp_min(torch.finfo(union.dtype).tiny)


def clip(boxes: Tensor, sides: Sequence[int]) -> Tensor:
    """Return the part of boxes (..., 2d) within an image of the given sides, x first; outside it the size is 0."""
    corner, size = boxes.chunk(2, -1)
    end = corner.new_tensor(sides)
    low, high = (torch.minimum(edge.clamp_min(0), end) for edge in (corner, corner + size))
    return torch.cat([low, high - low], -1)


def radius(sizes: Tensor, least: float = 0.7) -> Tensor:
    """Return how far a box's centre may move along every axis until the overlap with the box falls to ``least``.

    Law and Deng (CornerNet, ECCV 2018) let a Gaussian reach that far around a corner; around a centre (Zhou et al.,
    Objects as Points, 2019) only the shift of a whole box matters. Of a box with sides s_i that is shifted by r along
    every axis, prod(s_i - r) is shared, and with an intersection over union of t ::

        prod(1 - r / s_i) = 2 t / (1 + t)

    In two dimensions r is the smaller root of r^2 - (w + h) r + w h (1 - t) / (1 + t) = 0. (Widely copied code takes
    the larger root, and divides by 2 instead of 2a in the cases of CornerNet where a is not 1.) Here the logarithm of
    the equation is solved for any number of sides by Newton's method, which from 0 oversteps the root once and then
    falls towards it, as the left side is concave.

    Args:
        sizes: of boxes, (..., d).
        least: of the overlap, above 0 and at most 1.

    Returns:
        (...) in the unit of the sizes.
    """
    target = torch.log(sizes.new_tensor(2 * least / (1 + least)))
    r = torch.zeros_like(sizes[..., :1])
    for _ in range(6):
        left = torch.log1p(-r / sizes).sum(-1, keepdim=True)
        slope = (1 / (sizes - r)).sum(-1, keepdim=True)
        r = r + (left - target) / slope
    return r[..., 0]


def place(values: Tensor, shape: Sequence[int], stride: int) -> Tensor:
    """Return the cell (M, N, d) of every box, x first: the one that its centre lies in, if that is still free.

    Of two boxes whose centres lie in one cell the second takes the free cell nearest to its centre, at most two away,
    and there rather one that does not touch a box of its class, where only one of the two could be a peak; its offset
    says where the centre is. Only where no cell is free do they share one.

    Args:
        values: boxes and classes (M, N, 2d + 1); class -1 is padding.
        shape: of the map, as arrays have it.
        stride: of the map in pixels.
    """
    dims = len(shape)
    last = torch.tensor(shape[::-1], device=values.device) - 1
    centre = (values[..., :dims] + values[..., dims : 2 * dims] / 2) / stride
    cells = torch.minimum(centre.floor().long().clamp_min(0), last)  # (M, N, d)
    classes, real = values[..., -1], values[..., -1] >= 0
    same = (cells[:, :, None] == cells[:, None]).all(-1) & real[:, :, None] & real[:, None]
    late = same.tril(-1).any(-1)  # (M, N): an earlier box has the cell
    window = torch.tensor(list(product(range(-2, 3), repeat=dims)), device=values.device)
    for n in late.any(0).nonzero().flatten().tolist():
        nearby = cells[:, n, None] + window  # (M, W, d)
        apart = (nearby[:, :, None] - cells[:, None]).abs().amax(-1)  # (M, W, N) cells to every other box
        apart[:, :, n], apart[~real[:, None].expand_as(apart)] = 9, 9
        cost = (nearby + 0.5 - centre[:, n, None]).square().sum(-1)
        cost += TAKEN * (apart == 0).any(-1)
        cost += TOUCHING * ((apart <= 1) & (classes[:, None] == classes[:, n, None, None])).any(-1)
        cost[((nearby < 0) | (nearby > last)).any(-1)] = torch.inf
        chosen = nearby.gather(1, cost.argmin(1)[:, None, None].expand(-1, 1, dims))[:, 0]
        cells[:, n] = torch.where(late[:, n, None], chosen, cells[:, n])
    return cells


def draw(values: Tensor, cells: Tensor, classes: int, shape: Sequence[int], stride: int) -> Tensor:
    """Return the map of centres (M, K, *shape): 1 at a box's cell, around it a Gaussian, the larger where two meet.

    The deviation is a third of the :func:`radius` and half a cell, since a centre is only known to lie in its cell.
    """
    dims = len(shape)
    sigma = (radius(values[..., dims : 2 * dims].clamp_min(1e-3) / stride) + 0.5) / 3
    exponent = values.new_zeros(values.shape[:2])
    for axis, side in zip(reversed(range(dims)), shape, strict=True):
        away = torch.arange(side, device=values.device) - cells[..., axis, None]
        along = (away / sigma[..., None]).square()  # (M, N, side)
        exponent = exponent[..., None] + along.reshape(*along.shape[:2], *(1,) * (exponent.ndim - 2), side)
    bumps = torch.exp(-exponent / 2).flatten(2)  # (M, N, P)
    index = values[..., -1].long().masked_fill(values[..., -1] < 0, classes)  # padding is drawn beyond the last class
    heat = bumps.new_zeros(len(bumps), classes + 1, bumps.shape[2])
    heat.scatter_reduce_(1, index[..., None].expand_as(bumps), bumps, "amax")
    return heat[:, :classes].unflatten(2, tuple(shape))


def at(maps: Tensor, cells: Tensor) -> Tensor:
    """Return what maps (M, C, *shape) hold at cells (M, N, d), as (M, N, C)."""
    index = flat(cells, maps.shape[2:])
    return maps.flatten(2).transpose(1, 2).gather(1, index[..., None].expand(-1, -1, maps.shape[1]))


def flat(cells: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the index (M, N) of cells (M, N, d), x first, into a flattened map of a shape."""
    index = torch.zeros_like(cells[..., 0])
    for axis, side in zip(reversed(range(len(shape))), shape, strict=True):
        index = index * side + cells[..., axis]
    return index
