"""Detection: cells that are read or refused, what is learned at which cell, and figures that add up."""

from __future__ import annotations

import io
import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mtfed.strategies.axes import Axis
from PIL import Image
from torch import Tensor, nn

from mtfed.config import Config
from mtfed.data.manifest import SiteData
from mtfed.data.root import Root
from mtfed.data.source import Source
from mtfed.errors import MtfedError
from mtfed.learning.metrics import TaskMetrics, pool
from mtfed.models.axes.decoders import label_centre_decoder
from mtfed.models.decoders.detection import CentreDecoder
from mtfed.models.decoders.layers import CONVOLUTIONS
from mtfed.models.encoders import Features
from mtfed.tasks import boxes
from mtfed.tasks.average_precision import (
    ALARMS,
    EDGES,
    OVERLAPS,
    count_hits,
    free_response,
    match,
    mean_average_precision,
)
from mtfed.tasks.detection import KIND, STRIDE, curvature_factor, decode, encode, read_boxes, show, stack_boxes
from mtfed.tasks.kind import kind_of
from mtfed.tasks.task import Task

LESIONS = Task(name="lesions", kind="detection", classes="lesion")
CELLS = Task(name="cells", kind="detection", classes="red, white, platelet")
CONFIG = Config(tasks={"cells": CELLS})


def boxes_of(
    rng: np.random.Generator, images: int, most: int, dims: int, side: float, classes: int, least: int = 0
) -> np.ndarray:
    """Return random boxes within an image, padded: (M, N, 2d + 1)."""
    labels = []
    for _ in range(images):
        count = int(rng.integers(least, most + 1))
        size = rng.uniform(0.05, 0.4, (count, dims)) * side
        corner = rng.uniform(0, 1, (count, dims)) * (side - size)
        labels.append(np.hstack([corner, size, rng.integers(0, classes, (count, 1))]).astype(np.float32))
    return stack_boxes(labels)


# Cells of a manifest


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """An image of 80 x 40 pixels in a model's image of 40 px: at half its size, ten pixels down."""
    out = io.BytesIO()
    Image.new("L", (80, 40)).save(out, "PNG")
    (tmp_path / "a.png").write_bytes(out.getvalue())
    return Source(SiteData("north", Root(tmp_path), ()), "a.png", 40)


@pytest.fixture
def volume(tmp_path: Path) -> Source:
    np.save(tmp_path / "v.npy", np.zeros((10, 20, 40), np.uint8))
    return Source(SiteData("north", Root(tmp_path), ()), "v.npy", 20, 3)


@pytest.mark.parametrize(
    ("task", "cell", "expected"),
    [
        (LESIONS, "none", []),
        (LESIONS, "[]", []),
        (LESIONS, "10,20,30,8", [[5, 20, 15, 4, 0]]),
        (LESIONS, "10,20,30,8,lesion", [[5, 20, 15, 4, 0]]),
        (LESIONS, "10,20,30,8,0", [[5, 20, 15, 4, 0]]),
        (LESIONS, " 10, 20,30 ,8 ; 0,0,80,40;", [[5, 20, 15, 4, 0], [0, 10, 40, 20, 0]]),
        (LESIONS, "-4,30,10,20", [[0, 25, 3, 5, 0]]),  # reaches past the left and the lower edge
        (LESIONS, "70.5,30,10,1e1", [[35.25, 25, 4.75, 5, 0]]),
        (CELLS, "0,0,4,4,platelet;0,0,4,4,1", [[0, 10, 2, 2, 2], [0, 10, 2, 2, 1]]),
        (CELLS, '[[0, 0, 4, 4, "white"], [2, 2, 4.0, 4, 0]]', [[0, 10, 2, 2, 1], [1, 11, 2, 2, 0]]),
    ],
)
def test_cells_become_boxes_in_the_models_image(
    source: Source, task: Task, cell: str, expected: list[list[float]]
) -> None:
    found = read_boxes(cell, task, source)
    assert found.dtype == np.float32
    assert found.shape == (len(expected), 5)
    np.testing.assert_allclose(found, np.array(expected).reshape(-1, 5), atol=1e-6)


def test_boxes_of_a_volume_have_a_depth(volume: Source) -> None:
    found = read_boxes("4,2,0,8,6,10", LESIONS, volume)
    np.testing.assert_allclose(found, [[2, 6, 7.5, 4, 3, 5, 0]], atol=0.51)  # placed on whole pixels
    np.testing.assert_allclose(found[:, 3:], [[4, 3, 5, 0]])
    assert read_boxes("none", LESIONS, volume).shape == (0, 7)
    with pytest.raises(MtfedError, match="should be x,y,z,w,h,d;"):
        read_boxes("4,2,8,6", LESIONS, volume)


@pytest.mark.parametrize(
    ("task", "cell", "message"),
    [
        (LESIONS, "10,20,30", "should be x,y,w,h;"),
        (LESIONS, "10,20,30,8,0,0", "should be x,y,w,h;"),
        (LESIONS, "10 20 30 8", "should be x,y,w,h;"),
        (LESIONS, "None", "box 'None' of task lesions should be"),
        (LESIONS, ";", "should be at least one box"),
        (LESIONS, "a,20,30,8", "should be x,y,w,h in numbers"),
        (LESIONS, "10,20,0,8", "with a size above 0"),
        (LESIONS, "10,20,30,-8", "with a size above 0"),
        (LESIONS, "10,20,nan,8", "should be x,y,w,h in finite numbers"),
        (LESIONS, "inf,20,1,8", "should be x,y,w,h in finite numbers"),
        (LESIONS, "80,20,30,8", "within the image of 80 x 40 pixels"),
        (LESIONS, "10,-9,30,8", "within the image of 80 x 40 pixels"),
        (LESIONS, "10,20,30,8,1", "label '1' of task lesions should be one of lesion or an index below 1"),
        (CELLS, "10,20,30,8", "should be x,y,w,h,class;"),
        (CELLS, "10,20,30,8,blue", "label 'blue' of task cells should be one of red, white, platelet"),
        (CELLS, "10,20,30,8,-1", "label '-1' of task cells"),
        (LESIONS, "[[10, 20, 30, 8]", "should be a JSON list of lists"),
        (LESIONS, "[10, 20, 30, 8]", "should be a JSON list of lists"),
        (LESIONS, "[[10, 20, 30, null]]", "in numbers"),
    ],
)
def test_what_is_no_box_is_refused(source: Source, task: Task, cell: str, message: str) -> None:
    with pytest.raises(MtfedError) as caught:
        read_boxes(cell, task, source)
    assert message in str(caught.value)
    assert "a.png of site north" in str(caught.value)


def test_labels_are_padded_to_the_most() -> None:
    stacked = stack_boxes([np.zeros((0, 5), np.float32), np.ones((2, 5), np.float32), np.ones((1, 5), np.float32)])
    assert stacked.shape == (3, 2, 5)
    assert stacked.dtype == np.float32
    assert (stacked[..., -1] == [[-1, -1], [1, 1], [1, -1]]).all()
    assert stack_boxes([np.zeros((0, 5), np.float32)] * 2).shape == (2, 0, 5)


# Boxes


@pytest.mark.parametrize("dims", [2, 3])
def test_overlap_and_clip_are_those_of_counted_pixels(dims: int) -> None:
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
    torch.testing.assert_close(boxes.overlap(given, given), torch.tensor(expected, dtype=torch.float64))
    clipped = boxes.clip(given, [side] * dims)
    for row, kept in zip(box, clipped.numpy(), strict=True):
        assert (painted(row, 0, side) == painted(kept, 0, side)).all()
        assert (kept[:dims] >= 0).all() and (kept[:dims] + kept[dims:] <= side).all()


@pytest.mark.parametrize("least", [0.3, 0.5, 0.7, 0.95])
def test_radius_is_how_far_a_box_may_move(least: float) -> None:
    sizes = torch.tensor([[10.0, 10], [10, 20], [3, 40], [0.5, 0.7]], dtype=torch.float64)
    r = boxes.radius(sizes, least)
    w, h = sizes.T
    root = (w + h - ((w + h) ** 2 - 4 * w * h * (1 - least) / (1 + least)).sqrt()) / 2
    torch.testing.assert_close(r, root)
    for size in (sizes, torch.tensor([[10.0, 10, 10], [2, 5, 9]], dtype=torch.float64)):
        r = boxes.radius(size, least)[:, None]
        box = torch.cat([torch.zeros_like(size), size], 1)
        moved = torch.cat([r.expand_as(size), size], 1)
        farthest = boxes.overlap(box, moved).diagonal()
        torch.testing.assert_close(farthest, torch.full_like(farthest, least))


def test_a_centre_is_in_its_cell_and_the_second_box_there_in_one_nearby() -> None:
    def at(x: float, y: float, k: float) -> list[float]:
        return [x - 1, y - 1, 2, 2, k]

    values = torch.tensor(
        [
            [at(10, 10, 0), at(9, 9, 0), [-1] * 5, [-1] * 5],  # one class: two cells away, the other side of (2, 2)
            [at(10, 10, 0), at(9, 9, 1), at(13, 1, 0), [-1] * 5],  # another class: beside it
            [at(1, 1, 0), at(1, 1, 0), at(1, 1, 0), at(1, 1, 0)],  # in a corner
            [at(10, 10, 0), at(14, 10, 0), at(39.9, 39.9, 2), at(41, 10, 1)],  # no two in one cell
        ]
    )
    cells = boxes.place(values, (10, 10), STRIDE)
    assert cells[0, :2].tolist() in ([[2, 2], [0, 2]], [[2, 2], [2, 0]])
    assert cells[1, :3].tolist() in ([[2, 2], [1, 2], [3, 0]], [[2, 2], [2, 1], [3, 0]])
    assert sorted(cells[2].tolist()) == [[0, 0], [0, 2], [2, 0], [2, 2]]
    assert cells[3].tolist() == [[2, 2], [3, 2], [9, 9], [9, 2]]  # beyond the edge counts as at it


def test_boxes_share_a_cell_where_none_is_free() -> None:
    cells = boxes.place(torch.tensor([[[0.0, 0, 4, 4, 0]] * 6]), (2, 2), STRIDE)
    assert {tuple(cell) for cell in cells[0].tolist()} == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize("dims", [2, 3])
def test_drawn_map_is_the_largest_gaussian(dims: int) -> None:
    rng = np.random.default_rng(1)
    shape = (5, 8) if dims == 2 else (5, 6, 8)
    values = torch.from_numpy(boxes_of(rng, 3, 4, dims, 20, 2)).double()
    cells = boxes.place(values, shape, STRIDE)
    expected = np.zeros((3, 2, *shape))
    for m, row in enumerate(values):
        for n, box in enumerate(row):
            if box[-1] >= 0:
                sigma = (float(boxes.radius(box[dims:-1] / STRIDE)) + 0.5) / 3
                for index in product(*map(range, shape)):
                    away = sum((i - int(c)) ** 2 for i, c in zip(index[::-1], cells[m, n], strict=True))
                    where = (m, int(box[-1]), *index)
                    expected[where] = max(expected[where], math.exp(-away / 2 / sigma**2))
    heat = boxes.draw(values, cells, 2, shape, STRIDE)
    torch.testing.assert_close(heat, torch.from_numpy(expected))
    assert (heat == 1).sum() == (values[..., -1] >= 0).sum()


# Losses


def slow_losses(outputs: np.ndarray, values: np.ndarray, classes: int) -> dict[str, float]:
    """Return the terms of the loss of 2D outputs, cell by cell: mean over images of a sum over boxes."""
    total = dict.fromkeys(("focal", "size", "offset"), 0.0)
    cells = boxes.place(torch.from_numpy(values), outputs.shape[2:], STRIDE)
    truth = boxes.draw(torch.from_numpy(values), cells, classes, outputs.shape[2:], STRIDE).numpy()
    for m in range(len(values)):
        count, size, offset, focal = 0, 0.0, 0.0, 0.0
        for (x, y, w, h, k), (cx, cy) in zip(values[m], cells[m].tolist(), strict=True):
            if k >= 0:
                count += 1
                _, *at = np.split(outputs[m, :, cy, cx], [classes, classes + 2])
                size += abs(at[0][0] - math.log(w / 4)) + abs(at[0][1] - math.log(h / 4))
                offset += abs((cx + 0.5 + at[1][0]) * 4 - (x + w / 2)) / 4
                offset += abs((cy + 0.5 + at[1][1]) * 4 - (y + h / 2)) / 4
        for logit, t in zip(outputs[m, :classes].ravel(), truth[m].ravel(), strict=True):
            p = 1 / (1 + math.exp(-logit))
            focal -= (1 - p) ** 2 * math.log(p) if t == 1 else (1 - t) ** 4 * p**2 * math.log(1 - p)
        for term, value in (("focal", focal), ("size", size), ("offset", offset)):
            total[term] += value / max(count, 1) / len(values)
    return total


def test_the_loss_is_a_mean_over_images() -> None:
    rng = np.random.default_rng(4)
    values = torch.from_numpy(boxes_of(rng, 6, 3, 2, 32, 3))
    outputs = torch.from_numpy(rng.normal(0, 2, (6, 7, 8, 8)))
    for make in KIND.losses.values():
        loss = make(CELLS, CONFIG)
        pieces = [float(loss(outputs[i : i + 1], values[i : i + 1])) for i in range(6)]
        assert float(loss(outputs, values)) == pytest.approx(sum(pieces) / 6)


@pytest.mark.parametrize("most", [0, 1, 6])
def test_losses_against_a_slow_reference(most: int) -> None:
    rng = np.random.default_rng(most)
    values = boxes_of(rng, 4, most, 2, 32, 3)
    outputs = rng.normal(0, 2, (4, 7, 8, 8)).astype(np.float32)
    expected = slow_losses(outputs.astype(float), values.astype(float), 3)
    for term, loss in KIND.losses.items():
        found = loss(CELLS, CONFIG)(torch.from_numpy(outputs), torch.from_numpy(values))
        assert float(found) == pytest.approx(expected[term], rel=1e-4, abs=1e-6)


def truth_of(values: Tensor, classes: int, shape: tuple[int, ...]) -> Tensor:
    """Return outputs that say the truth."""
    cells = boxes.place(values, shape, STRIDE)
    heat = boxes.draw(values, cells, classes, shape, STRIDE)
    regressed = torch.zeros(len(values), 2 * len(shape), math.prod(shape))
    told = torch.cat(encode(values, cells), -1)
    for m, n in (values[..., -1] >= 0).nonzero().tolist():
        regressed[m, :, boxes.flat(cells, shape)[m, n]] = told[m, n]
    return torch.cat([torch.logit(heat.clamp(1e-6, 1 - 1e-6)), regressed.unflatten(2, shape)], 1)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_truth_is_decoded_as_it_was_and_costs_least(dims: int) -> None:
    rng = np.random.default_rng(dims)
    values = torch.from_numpy(boxes_of(rng, 6, 5, dims, 64, 3))
    outputs = truth_of(values, 3, (16,) * dims)
    found, scores, classes = decode(outputs)
    assert found.shape == (6, 100, 2 * dims)
    for m, row in enumerate(values):
        expected = row[row[:, -1] >= 0]
        sure = scores[m] > 0.99
        got = torch.cat([found[m], classes[m, :, None]], 1)[sure]
        assert len(got) == len(expected)
        for box in expected:
            torch.testing.assert_close(got[(got - box).abs().sum(1).argmin()], box, atol=1e-3, rtol=0)
    for term in ("size", "offset"):
        assert float(KIND.losses[term](CELLS, CONFIG)(outputs, values)) < 1e-5
    focal = KIND.losses["focal"](CELLS, CONFIG)
    one = torch.where(outputs[:, :3] > 13, outputs[:, :3], -14.0)  # least where only the centres are left
    best = float(focal(torch.cat([one, outputs[:, 3:]], 1), values))
    assert best < 1e-6
    for _ in range(5):
        other = torch.cat([one + torch.randn_like(one) * 10, outputs[:, 3:]], 1)
        assert float(focal(other, values)) > best


def test_no_loss_changes_with_padding_and_all_have_gradients_without_boxes() -> None:
    values = torch.from_numpy(boxes_of(np.random.default_rng(3), 3, 4, 2, 32, 3))
    padded = torch.cat([values, torch.full((3, 2, 5), -1.0)], 1)
    outputs = torch.randn(3, 7, 8, 8, requires_grad=True)
    for make in KIND.losses.values():
        loss = make(CELLS, CONFIG)
        torch.testing.assert_close(loss(outputs, values), loss(outputs, padded))
        for nothing in (torch.zeros(3, 0, 5), torch.full((3, 2, 5), -1.0)):
            (gradient,) = torch.autograd.grad(loss(outputs, nothing), outputs)
            assert gradient.isfinite().all()


def test_decode_gives_peaks_alone_and_stays_within_the_map() -> None:
    outputs = torch.full((1, 5, 4, 4), -9.0)
    outputs[0, 0, 1, 1], outputs[0, 0, 1, 2], outputs[0, 0, 3, 3] = 3.0, 2.0, 1.0  # the second is no peak
    outputs[0, 1:3] = 50.0
    outputs[0, 3:] = 0.0
    found, scores, classes = decode(outputs)
    assert found.shape == (1, 16, 4)
    torch.testing.assert_close(scores[0, :2], torch.sigmoid(torch.tensor([3.0, 1.0])))
    assert (scores.diff() <= 0).all()
    assert ((classes == -1) == (scores == 0)).all()
    assert found.isfinite().all() and (found[..., :2] >= 0).all() and (found[..., :2] + found[..., 2:] <= 16).all()


def test_show_keeps_twenty_boxes() -> None:
    shown = show(torch.randn(2, 7, 16, 16), CELLS)
    assert shown.shape == (2, 20, 6)
    assert (np.diff(shown[..., -1]) <= 0).all()


def test_signs_have_the_curvature_as_their_mean_square() -> None:
    torch.manual_seed(0)
    task = Task(name="cells", kind="detection", classes="red, white, platelet", loss="2*focal + 0.1*size")
    values = torch.from_numpy(boxes_of(np.random.default_rng(5), 3, 4, 2, 32, 3)).double()
    outputs = torch.randn(3, 7, 8, 8, dtype=torch.float64)
    count = (values[..., -1] >= 0).sum(1)
    assert (count > 0).any()
    cells = boxes.place(values, (8, 8), STRIDE)
    expected = torch.zeros_like(outputs)
    p = outputs[:, :3].sigmoid()
    expected[:, :3] = 2 * p * (1 - p)
    for m, n in (values[..., -1] >= 0).nonzero().tolist():
        x, y = cells[m, n].tolist()
        expected[m, 3:5, y, x] = 0.1
    drawn = torch.stack([curvature_factor(outputs, values, task) for _ in range(100)])
    torch.testing.assert_close((drawn**2).mean(0), expected / task.weight / count.clamp_min(1).view(-1, 1, 1, 1))
    assert float(drawn.mean(0).abs().max()) < 1.5  # signs are as often one as the other


# Metrics


def random_finds(seed: int, images: int = 12, classes: int = 3) -> tuple[Tensor, ...]:
    """Return predicted boxes near some of the objects and elsewhere, each score in a bin of its own."""
    rng = np.random.default_rng(seed)
    values = boxes_of(rng, images, 5, 2, 64, classes)
    most = 9
    found = np.zeros((images, most, 4))
    kinds = np.full((images, most), -1)
    for m in range(images):
        for p in range(int(rng.integers(0, most + 1))):
            objects = values[m][values[m][:, -1] >= 0]
            near = len(objects) and rng.random() < 0.7
            box = objects[rng.integers(len(objects))] if near else boxes_of(rng, 1, 1, 2, 64, classes, least=1)[0, 0]
            found[m, p] = box[:4] + rng.normal(0, 0.08 if near else 0.0, 4) * np.tile(box[2:4], 2)
            kinds[m, p] = box[-1] if rng.random() < 0.9 else rng.integers(classes)
    found[..., 2:] = found[..., 2:].clip(0.5)
    middle = torch.logit(EDGES[:-1]) + 0.0625
    scores = torch.sigmoid(middle[torch.from_numpy(rng.permutation(len(middle)))[: images * most]]).view(images, most)
    scores = scores.masked_fill(torch.from_numpy(kinds) < 0, 0)
    return torch.from_numpy(found), scores, torch.from_numpy(kinds), torch.from_numpy(values)


def slow_hits(finds: tuple[Tensor, ...], k: int, least: float) -> tuple[list[tuple[float, bool]], int]:
    """Return each predicted box of a class, score and whether it hits, and the number of objects; one by one."""
    listed: list[tuple[float, bool]] = []
    objects = 0
    for found, scores, kinds, values in zip(*(x.double().tolist() for x in finds), strict=True):
        truth = [row[:4] for row in values if row[4] == k]
        objects += len(truth)
        hit: set[int] = set()
        for score, box in sorted(
            ((s, b) for s, b, c in zip(scores, found, kinds, strict=True) if c == k), reverse=True
        ):
            best, which = least, -1
            for i, (x, y, w, h) in enumerate(truth):
                across = min(x + w, box[0] + box[2]) - max(x, box[0])
                down = min(y + h, box[1] + box[3]) - max(y, box[1])
                shared = max(across, 0) * max(down, 0)
                iou = shared / (w * h + box[2] * box[3] - shared)
                if i not in hit and iou >= best:
                    best, which = iou, i
            hit |= {which} - {-1}
            listed.append((score, which >= 0))
    return sorted(listed, reverse=True), objects


def slow_average_precision(finds: tuple[Tensor, ...], overlaps: tuple[float, ...], classes: int = 3) -> float:
    of_class = []
    for k in range(classes):
        values = []
        for least in overlaps:
            listed, objects = slow_hits(finds, k, least)
            if not objects:
                continue
            curve = []
            for n in range(1, len(listed) + 1):
                hits = sum(hit for _, hit in listed[:n])
                curve.append((hits / objects, hits / n))
            points = [max((p for r, p in curve if r >= recall), default=0.0) for recall in np.linspace(0, 1, 101)]
            values.append(np.mean(points))
        if values:
            of_class.append(np.mean(values))
    return float(np.mean(of_class))


def slow_free_response(finds: tuple[Tensor, ...], classes: int = 3) -> float:
    of_class = []
    for k in range(classes):
        listed, objects = slow_hits(finds, k, 0.5)
        best = []
        for rate in ALARMS:
            found = 0
            for n in range(len(listed) + 1):
                hits = sum(hit for _, hit in listed[:n])
                if n - hits <= rate * len(finds[0]):
                    found = max(found, hits)
            best.append(found / objects)
        of_class.append(np.mean(best))
    return float(np.mean(of_class))


@pytest.mark.parametrize("seed", range(4))
def test_metrics_are_the_exact_ones_when_bins_part_the_scores(seed: int) -> None:
    finds = random_finds(seed)
    for overlaps in ((0.5,), OVERLAPS):
        counts = count_hits(finds[:3], finds[3], 3, overlaps)
        assert float(mean_average_precision(*counts)) == pytest.approx(
            slow_average_precision(finds, overlaps), abs=1e-9
        )
    counts = count_hits(finds[:3], finds[3], 3, (0.5,))
    assert float(free_response(*counts)) == pytest.approx(slow_free_response(finds), abs=1e-9)


@pytest.mark.parametrize("seed", range(2))
def test_average_precision_is_that_of_coco(seed: int) -> None:
    cocoeval = pytest.importorskip("pycocotools.cocoeval", reason="pycocotools is not installed")
    from pycocotools.coco import COCO

    finds = random_finds(seed)
    truth, listed = COCO(), []
    annotations: list[dict[str, Any]] = []
    for m, (found, scores, kinds, values) in enumerate(zip(*(x.double().tolist() for x in finds), strict=True)):
        for x, y, w, h, k in values:
            if k >= 0:
                place = {"image_id": m, "category_id": int(k), "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
                annotations.append({"id": len(annotations) + 1, **place})
        for box, score, k in zip(found, scores, kinds, strict=True):
            if k >= 0:
                listed.append({"image_id": m, "category_id": int(k), "bbox": box, "score": score})
    images = [{"id": m} for m in range(len(finds[0]))]
    truth.dataset = {"images": images, "annotations": annotations, "categories": [{"id": k} for k in range(3)]}
    truth.createIndex()
    evaluation = cocoeval.COCOeval(truth, truth.loadRes(listed), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    for overlaps, expected in zip((OVERLAPS, (0.5,)), evaluation.stats[:2], strict=True):
        counts = count_hits(finds[:3], finds[3], 3, overlaps)
        assert float(mean_average_precision(*counts)) == pytest.approx(expected, abs=1e-6)


def test_a_hit_object_is_not_hit_again_at_any_threshold() -> None:
    values = torch.tensor([[[0.0, 0, 10, 10, 0], [0, 2, 10, 10, 0]]])
    found = torch.tensor([[[0.0, 1.1, 10, 10], [0, 1.1, 10, 10], [0, 1.1, 10, 10]]])
    hits = match(found, torch.tensor([[0.9, 0.8, 0.7]]), torch.zeros(1, 3, dtype=torch.long), values, (0.5, 0.82, 0.99))
    assert hits.tolist() == [[[True, True, False], [True, False, False], [False, False, False]]]


def outputs_and_values(seed: int, images: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(boxes_of(rng, images, 4, 2, 64, 3))
    return truth_of(values, 3, (16, 16)) + 0.2 * torch.randn(images, 7, 16, 16), values


def test_sums_of_two_sites_are_the_pooled_metric() -> None:
    torch.manual_seed(0)
    sites = [outputs_and_values(0, 9), outputs_and_values(1, 4)]
    together, sums = TaskMetrics(CELLS), []
    for outputs, values in sites:
        one = TaskMetrics(CELLS)
        for rows in torch.arange(len(values)).split(3):
            one.update(outputs[rows], values[rows])
        together.update(outputs, values)
        sums.append(one.sums())
    added = {name: np.add(sums[0][name], sums[1][name]).tolist() for name in sums[0]}
    figures = pool([CELLS], added)["cells"].compute()
    assert figures == pytest.approx(together.compute())
    assert set(figures) == set(CELLS.metrics) == {"ap50", "map", "froc"}
    assert 0.2 < figures["map"] < figures["ap50"] < 1


def test_nothing_to_find_is_no_figure_and_a_class_without_objects_does_not_count() -> None:
    metrics = TaskMetrics(CELLS)
    metrics.update(torch.randn(2, 7, 8, 8), torch.full((2, 1, 5), -1.0))
    assert all(math.isnan(value) for value in metrics.compute().values())
    values = torch.tensor([[[8.0, 8, 12, 12, 1]]])
    metrics.update(truth_of(values, 3, (8, 8)), values)
    figures = metrics.compute()
    assert figures["ap50"] == figures["map"] > 0.2
    perfect = TaskMetrics(CELLS)
    perfect.update(truth_of(values, 3, (8, 8)), values)
    assert perfect.compute() == {"ap50": 1, "map": 1, "froc": 1}


def test_the_kind_names_what_tasks_may_name() -> None:
    kind = kind_of(CELLS)
    assert {term for _, term in CELLS.terms} <= set(kind.losses)
    assert set(CELLS.metrics) == set(kind.metrics)


# The decoder


class TinyEncoder(nn.Module):
    """Stands in for an encoder: two convolutions of strides ``first`` and 2, four maps of them."""

    def __init__(self, dims: int, first: int, width: int = 16) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[dims]
        self.fine = nn.Sequential(convolution(1, width, first + 1, first, padding=first // 2), nn.ReLU())
        self.coarse = nn.Sequential(convolution(width, width, 3, 2, padding=1), nn.ReLU())
        self.channels, self.strides, self.dim = [width] * 4, [first, first, 2 * first, 2 * first], width
        self.dims, self.image_channels = dims, 1

    def forward(self, image: Tensor) -> Features:
        fine = self.fine(image)
        coarse = self.coarse(fine)
        return Features(image, [fine, fine, coarse, coarse], coarse.flatten(2).mean(2))


class Tiny(nn.Module):
    """An encoder and a decoder of boxes."""

    def __init__(self, task: Task, dims: int = 2, first: int = 4, width: int = 16) -> None:
        super().__init__()
        self.encoder = TinyEncoder(dims, first)
        self.decoder = CentreDecoder(task, self.encoder, width)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        return self.decoder(self.encoder(image))


@pytest.mark.parametrize(
    ("dims", "first", "size", "side"),
    [(2, 2, 32, 8), (2, 4, 64, 16), (2, 8, 64, 16), (2, 16, 64, 16), (2, 4, 50, 13), (3, 2, 16, 4), (3, 8, 32, 8)],
)
def test_outputs_lie_at_stride_4(dims: int, first: int, size: int, side: int) -> None:
    model = Tiny(CELLS, dims, first, width=4)
    outputs = model(torch.randn(2, 1, *(size,) * dims))
    assert outputs.shape == (2, 3 + 2 * dims, *(side,) * dims)
    assert 0.03 < float(outputs[:, :3].detach().sigmoid().mean()) < 0.3  # about the prior


@pytest.mark.parametrize(("dims", "first"), [(2, 2), (2, 16), (3, 8)])
def test_units_of_the_decoder_may_be_reordered(dims: int, first: int) -> None:
    symmetry = pytest.importorskip("mtfed.models.symmetry")
    from mtfed.models.axes.builder import AxisGraphBuilder
    from mtfed.models.axes.chains import label_chain

    model = Tiny(CELLS, dims, first, width=6)
    builder = AxisGraphBuilder(model)
    fine, coarse = (builder.add_axis(f"encoder.{name}", Axis(16)) for name in ("fine", "coarse"))
    label_chain(builder, "encoder.fine", model.encoder.fine, None, fine)
    label_chain(builder, "encoder.coarse", model.encoder.coarse, fine, coarse)
    label_centre_decoder(builder, "decoder", model.decoder, [fine, fine, coarse, coarse], coarse)
    graph = builder.build()
    changes = symmetry.check_symmetry(model, graph, [torch.randn(2, 1, *(32,) * dims)])
    steps = len(model.decoder.up)
    assert sum(label.startswith("decoder.") for label in changes) == 5 + steps  # sum, detail, fuse, two heads, steps up
    assert set(graph.tensors) == set(model.state_dict())


def test_a_small_model_learns_to_find_bright_rectangles() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    task = Task(name="spots", kind="detection", classes="wide, tall")

    def images(count: int) -> tuple[Tensor, Tensor]:
        values = []
        pixels = rng.normal(0, 0.3, (count, 1, 64, 64)).astype(np.float32)
        for m in range(count):
            long, short = rng.integers(14, 24, 3), rng.integers(6, 11, 3)
            tall = rng.integers(0, 2, 3)
            corners = np.array([[2, 2], [34, 2], [18, 34]]) + rng.integers(0, 7, (3, 2))
            labels = []
            for (x, y), a, b, k in zip(corners, long, short, tall, strict=True):
                w, h = (b, a) if k else (a, b)
                pixels[m, 0, y : y + h, x : x + w] += 2
                labels.append([x, y, w, h, k])
            values.append(np.array(labels, np.float32)[: int(rng.integers(1, 4))])
            for x, y, w, h, _ in labels[len(values[-1]) :]:
                pixels[m, 0, y : y + h, x : x + w] -= 2
        return torch.from_numpy(pixels), torch.from_numpy(stack_boxes(values))

    seen, labels = images(256)
    model = Tiny(task)
    optimiser = torch.optim.AdamW(model.parameters(), 4e-3)
    terms = [(weight, KIND.losses[term](task, CONFIG)) for weight, term in task.terms]
    for _ in range(100):
        rows = torch.randperm(256)[:16]
        outputs = model(seen[rows])
        loss = sum((weight * term(outputs, labels[rows]) for weight, term in terms), start=torch.zeros(()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    unseen, labels = images(64)
    metrics = TaskMetrics(task)
    with torch.no_grad():
        metrics.update(model.eval()(unseen), labels)
    assert metrics.compute()["ap50"] > 0.8, json.dumps(metrics.compute())
