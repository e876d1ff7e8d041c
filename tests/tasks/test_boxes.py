"""Overlap of boxes, and the maps of centres that a detector learns."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch

from helpers.detections import boxes_of
from mtfed.tasks import boxes
from mtfed.tasks.detection import STRIDE


@pytest.mark.parametrize("dims", [2, 3])
def test_overlap_and_clip_agree_with_counted_pixels(dims: int) -> None:
    rng = np.random.default_rng(0)
    side = 12
    corner = rng.integers(-3, side, (6, dims))
    box = np.hstack([corner, rng.integers(1, 9, (6, dims))])

    def painted(row: np.ndarray, low: int, high: int) -> np.ndarray:
        axes = np.meshgrid(*[np.arange(low, high)] * dims, indexing="ij")
        inside = [(a >= c) & (a < c + s) for a, c, s in zip(axes, row[:dims], row[dims:], strict=True)]
        return np.logical_and.reduce(inside)

    masks = [painted(row, -10, 30) for row in box]
    expected = [[(a & b).sum() / (a | b).sum() for b in masks] for a in masks]
    given = torch.from_numpy(box).double()
    torch.testing.assert_close(boxes.intersection_over_union(given, given), torch.tensor(expected, dtype=torch.float64))
    clipped = boxes.clip(given, [side] * dims)
    for row, inside in zip(box, clipped.numpy(), strict=True):
        assert (painted(row, 0, side) == painted(inside, 0, side)).all()
        assert (inside[:dims] >= 0).all() and (inside[:dims] + inside[dims:] <= side).all()


@pytest.mark.parametrize("min_overlap", [0.3, 0.5, 0.7, 0.95])
def test_radius_is_how_far_a_box_may_move(min_overlap: float) -> None:
    sizes = torch.tensor([[10.0, 10], [10, 20], [3, 40], [0.5, 0.7]], dtype=torch.float64)
    r = boxes.gaussian_radius(sizes, min_overlap)
    w, h = sizes.T
    root = (w + h - ((w + h) ** 2 - 4 * w * h * (1 - min_overlap) / (1 + min_overlap)).sqrt()) / 2
    torch.testing.assert_close(r, root)
    for size in (sizes, torch.tensor([[10.0, 10, 10], [2, 5, 9]], dtype=torch.float64)):
        r = boxes.gaussian_radius(size, min_overlap)[:, None]
        box = torch.cat([torch.zeros_like(size), size], 1)
        moved = torch.cat([r.expand_as(size), size], 1)
        farthest = boxes.intersection_over_union(box, moved).diagonal()
        torch.testing.assert_close(farthest, torch.full_like(farthest, min_overlap))


def test_the_second_box_of_a_cell_moves_to_a_nearby_cell() -> None:
    def at(x: float, y: float, k: float) -> list[float]:
        return [x - 1, y - 1, 2, 2, k]

    values = torch.tensor(
        [
            [at(10, 10, 0), at(9, 9, 0), [-1] * 5, [-1] * 5],  # one class: two cells away, the other side of (2, 2)
            [at(10, 10, 0), at(9, 9, 1), at(13, 1, 0), [-1] * 5],  # another class: in the next cell
            [at(1, 1, 0), at(1, 1, 0), at(1, 1, 0), at(1, 1, 0)],  # in a corner
            [at(10, 10, 0), at(14, 10, 0), at(39.9, 39.9, 2), at(41, 10, 1)],  # no two in one cell
        ]
    )
    cells = boxes.assign_cells(values, (10, 10), STRIDE)
    assert cells[0, :2].tolist() in ([[2, 2], [0, 2]], [[2, 2], [2, 0]])
    assert cells[1, :3].tolist() in ([[2, 2], [1, 2], [3, 0]], [[2, 2], [2, 1], [3, 0]])
    assert sorted(cells[2].tolist()) == [[0, 0], [0, 2], [2, 0], [2, 2]]
    assert cells[3].tolist() == [[2, 2], [3, 2], [9, 9], [9, 2]]  # a centre beyond the edge counts as at the edge


def test_boxes_share_a_cell_if_none_is_free() -> None:
    cells = boxes.assign_cells(torch.tensor([[[0.0, 0, 4, 4, 0]] * 6]), (2, 2), STRIDE)
    assert {tuple(cell) for cell in cells[0].tolist()} == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize("dims", [2, 3])
def test_centre_maps_are_the_largest_gaussian(dims: int) -> None:
    rng = np.random.default_rng(1)
    shape = (5, 8) if dims == 2 else (5, 6, 8)
    values = torch.from_numpy(boxes_of(rng, 3, 4, dims, 20, 2)).double()
    cells = boxes.assign_cells(values, shape, STRIDE)
    expected = np.zeros((3, 2, *shape))
    for m, row in enumerate(values):
        for n, box in enumerate(row):
            if box[-1] >= 0:
                sigma = (float(boxes.gaussian_radius(box[dims:-1] / STRIDE)) + 0.5) / 3
                for index in product(*map(range, shape)):
                    away = sum((i - int(c)) ** 2 for i, c in zip(index[::-1], cells[m, n], strict=True))
                    where = (m, int(box[-1]), *index)
                    expected[where] = max(expected[where], math.exp(-away / 2 / sigma**2))
    heat = boxes.centre_maps(values, cells, 2, shape, STRIDE)
    torch.testing.assert_close(heat, torch.from_numpy(expected))
    assert (heat == 1).sum() == (values[..., -1] >= 0).sum()
