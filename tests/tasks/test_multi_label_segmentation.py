"""Multi-label segmentation: files, losses, curvature and metrics."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.kind_checks import (
    Reference,
    check_curvature,
    check_directions,
    check_invalid_cell,
    check_loss,
    check_metrics,
    check_no_loss,
    entropy,
    shown,
    slow_overlap,
)
from helpers.kinds import (
    PARTS,
    plan,
    sigmoid,
    write_arrays,
)
from helpers.references import compute, compute_dice, compute_iou, declare
from mtfed.errors import MtfedError
from mtfed.tasks.kind import kind_of
from mtfed.tasks.task import Task

SHAPES = [(6, 6), (6, 6, 6)]


@pytest.mark.parametrize("shape", SHAPES)
def test_unmarked_structures_differ_from_empty_ones(tmp_path: Path, shape: tuple[int, ...]) -> None:
    lung = np.zeros(shape, bool)
    lung[1:3] = True
    site = write_arrays(tmp_path, shape, {"lung": lung, "rib": np.zeros(shape, np.uint8), "other": np.zeros(3)})
    values = kind_of(PARTS).read("a.npz", PARTS, site)
    assert values.dtype == np.uint8
    np.testing.assert_array_equal(values, np.stack([np.full(shape, 255), lung, np.zeros(shape)]))


def test_a_path_that_is_not_an_npz_file_is_refused() -> None:
    check_invalid_cell(PARTS, "p.png", r"label 'p\.png' of parts should be the path of an \.npz file")


INVALID_ARRAYS = [  # changes of a valid file, message
    (
        {"heart": np.full((6, 6), 2)},
        r"Mask heart in a\.npz of site north should contain false and true, .* up to 2",
    ),
    ({"heart": np.zeros((6, 6))}, "it has type float64"),
    ({"heart": np.zeros((5, 6), bool)}, r"Mask heart in a\.npz of site north should be 6 x 6 pixels"),
    ({}, r"Expected arrays called heart, lung, rib in a\.npz of site north, found none"),
    ({"heart": np.full((6, 6), "yes")}, "it has type <U3; save it as such"),
]


@pytest.mark.parametrize(("changes", "message"), INVALID_ARRAYS)
def test_an_invalid_file_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arrays = {name: array for name, array in (plan() | changes).items() if array is not None}
    site = write_arrays(tmp_path, (6, 6), arrays)
    with pytest.raises(MtfedError, match=message):
        kind_of(PARTS).read("a.npz", PARTS, site)


def soft_dice(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    images = []
    for output, value in zip(outputs, values, strict=True):
        each = []
        for p, v in zip(sigmoid(output), value, strict=True):
            if v[0, 0] != 255:
                each.append(1 - (2 * (p * v).sum() + 1e-5) / (p.sum() + v.sum() + 1e-5))
        images.append(np.mean(each))
    return float(np.mean(images))


LOSSES = {"cross-entropy": entropy, "focal": partial(entropy, gamma=1.5), "dice": soft_dice}


@pytest.mark.parametrize("term", PARTS.spec.losses)
def test_losses_agree_with_their_definitions(term: str) -> None:
    check_loss(PARTS, term, LOSSES[term])


def test_the_square_of_the_factor_is_the_curvature() -> None:
    check_curvature(PARTS, "cross-entropy", 1)


def test_a_confident_correct_prediction_has_no_loss() -> None:
    outputs, values = torch.full((1, 3, 2, 2), -100.0), torch.zeros(1, 3, 2, 2)  # neither present nor predicted
    check_no_loss(PARTS, "dice", outputs, values)


METRICS: dict[str, Reference] = {
    "dice": slow_overlap(lambda both, a, b: 2 * both / (a + b)),
    "iou": slow_overlap(lambda both, a, b: both / (a + b - both)),
}


def test_metrics_of_two_sites_add_up_to_the_pooled_reference() -> None:
    check_metrics(PARTS, METRICS)


def test_the_spec_contains_the_direction_of_every_metric() -> None:
    check_directions(PARTS)


def test_the_record_contains_a_map_for_each_structure() -> None:
    assert shown(PARTS).shape == (9, 3, 4, 5)


@pytest.mark.parametrize("shape", [(7, 9), (4, 5, 6)])
def test_metrics_agree_with_monai(shape: tuple[int, ...]) -> None:
    logits, values = torch.randn(5, 3, *shape) - 1, torch.randint(2, (5, 3, *shape))
    values[0], logits[0, 0] = 0, -1
    maps = (logits > 0).long(), values
    expected = {
        name: float(overlap(*maps, include_background=True, ignore_empty=False).mean())
        for name, overlap in (("dice", compute_dice), ("iou", compute_iou))
    }
    assert compute(declare("multi-label-segmentation", 3), logits, values) == pytest.approx(expected, abs=1e-6)
