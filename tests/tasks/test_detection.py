"""Detection: losses, curvature and decoded boxes against slow references."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from helpers.detections import CELLS, boxes_of, truth_of
from mtfed.config import Config
from mtfed.tasks import boxes
from mtfed.tasks.detection import KIND, STRIDE, curvature_factor, decode, show
from mtfed.tasks.kind import kind_of
from mtfed.tasks.task import Task

CONFIG = Config(tasks={"cells": CELLS})


def slow_losses(outputs: np.ndarray, values: np.ndarray, classes: int) -> dict[str, float]:
    """Return the terms of the loss of 2D outputs, cell by cell: mean over images of a sum over boxes."""
    total = dict.fromkeys(("focal", "size", "offset"), 0.0)
    cells = boxes.assign_cells(torch.from_numpy(values), outputs.shape[2:], STRIDE)
    truth = boxes.centre_maps(torch.from_numpy(values), cells, classes, outputs.shape[2:], STRIDE).numpy()
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
    for term in KIND.losses.values():
        loss = partial(term, CELLS, CONFIG)
        pieces = [float(loss(outputs[i : i + 1], values[i : i + 1])) for i in range(6)]
        assert float(loss(outputs, values)) == pytest.approx(sum(pieces) / 6)


@pytest.mark.parametrize("max_boxes", [0, 1, 6])
def test_losses_against_a_slow_reference(max_boxes: int) -> None:
    rng = np.random.default_rng(max_boxes)
    values = boxes_of(rng, 4, max_boxes, 2, 32, 3)
    outputs = rng.normal(0, 2, (4, 7, 8, 8)).astype(np.float32)
    expected = slow_losses(outputs.astype(float), values.astype(float), 3)
    for term, loss in KIND.losses.items():
        value = loss(CELLS, CONFIG, torch.from_numpy(outputs), torch.from_numpy(values))
        assert float(value) == pytest.approx(expected[term], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("dims", [2, 3])
def test_labels_survive_encoding_and_have_the_lowest_loss(dims: int) -> None:
    rng = np.random.default_rng(dims)
    values = torch.from_numpy(boxes_of(rng, 6, 5, dims, 64, 3))
    outputs = truth_of(values, 3, (16,) * dims)
    decoded, scores, classes = decode(outputs)
    assert decoded.shape == (6, 100, 2 * dims)
    for m, row in enumerate(values):
        expected = row[row[:, -1] >= 0]
        sure = scores[m] > 0.99
        got = torch.cat([decoded[m], classes[m, :, None]], 1)[sure]
        assert len(got) == len(expected)
        for box in expected:
            torch.testing.assert_close(got[(got - box).abs().sum(1).argmin()], box, atol=1e-3, rtol=0)
    for term in ("size", "offset"):
        assert float(KIND.losses[term](CELLS, CONFIG, outputs, values)) < 1e-5
    focal = partial(KIND.losses["focal"], CELLS, CONFIG)
    centres = torch.where(outputs[:, :3] > 13, outputs[:, :3], -14.0)  # the minimum: only the centres are left
    best = float(focal(torch.cat([centres, outputs[:, 3:]], 1), values))
    assert best < 1e-6
    for _ in range(5):
        other = torch.cat([centres + torch.randn_like(centres) * 10, outputs[:, 3:]], 1)
        assert float(focal(other, values)) > best


def test_losses_ignore_padding_and_have_gradients_without_boxes() -> None:
    values = torch.from_numpy(boxes_of(np.random.default_rng(3), 3, 4, 2, 32, 3))
    padded = torch.cat([values, torch.full((3, 2, 5), -1.0)], 1)
    outputs = torch.randn(3, 7, 8, 8, requires_grad=True)
    for term in KIND.losses.values():
        loss = partial(term, CELLS, CONFIG)
        torch.testing.assert_close(loss(outputs, values), loss(outputs, padded))
        for nothing in (torch.zeros(3, 0, 5), torch.full((3, 2, 5), -1.0)):
            (gradient,) = torch.autograd.grad(loss(outputs, nothing), outputs)
            assert gradient.isfinite().all()


def test_decoded_boxes_are_peaks_inside_the_map() -> None:
    outputs = torch.full((1, 5, 4, 4), -9.0)
    outputs[0, 0, 1, 1], outputs[0, 0, 1, 2], outputs[0, 0, 3, 3] = 3.0, 2.0, 1.0  # the second is no peak
    outputs[0, 1:3] = 50.0
    outputs[0, 3:] = 0.0
    decoded, scores, classes = decode(outputs)
    assert decoded.shape == (1, 16, 4)
    torch.testing.assert_close(scores[0, :2], torch.sigmoid(torch.tensor([3.0, 1.0])))
    assert (scores.diff() <= 0).all()
    assert ((classes == -1) == (scores == 0)).all()
    assert (
        decoded.isfinite().all() and (decoded[..., :2] >= 0).all() and (decoded[..., :2] + decoded[..., 2:] <= 16).all()
    )


def test_show_keeps_twenty_boxes() -> None:
    shown = show(torch.randn(2, 7, 16, 16), CELLS)
    assert shown.shape == (2, 20, 6)
    assert (np.diff(shown[..., -1]) <= 0).all()


def test_the_mean_square_of_the_factor_is_the_curvature() -> None:
    torch.manual_seed(0)
    task = Task(name="cells", kind="detection", classes="red, white, platelet", loss="2*focal + 0.1*size")
    values = torch.from_numpy(boxes_of(np.random.default_rng(5), 3, 4, 2, 32, 3)).double()
    outputs = torch.randn(3, 7, 8, 8, dtype=torch.float64)
    count = (values[..., -1] >= 0).sum(1)
    assert (count > 0).any()
    cells = boxes.assign_cells(values, (8, 8), STRIDE)
    expected = torch.zeros_like(outputs)
    p = outputs[:, :3].sigmoid()
    expected[:, :3] = 2 * p * (1 - p)
    for m, n in (values[..., -1] >= 0).nonzero().tolist():
        x, y = cells[m, n].tolist()
        expected[m, 3:5, y, x] = 0.1
    drawn = torch.stack([curvature_factor(outputs, values, task) for _ in range(100)])
    torch.testing.assert_close((drawn**2).mean(0), expected / task.weight / count.clamp_min(1).view(-1, 1, 1, 1))
    assert float(drawn.mean(0).abs().max()) < 1.5  # both signs are equally frequent


def test_the_kind_implements_what_tasks_may_name() -> None:
    kind = kind_of(CELLS)
    assert {term for _, term in CELLS.terms} <= set(kind.losses)
    assert set(CELLS.metrics) == set(kind.metrics)
