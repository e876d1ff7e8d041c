"""Dose prediction: files, losses, curvature and metrics."""

from __future__ import annotations

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
    computed,
    over_known,
    shown,
)
from helpers.kinds import (
    DOSE,
    examples,
    patients,
    plan,
    sigmoid,
    slow_dvh,
    write_arrays,
)
from mtfed.errors import MtfedError
from mtfed.tasks import dose
from mtfed.tasks.kind import kind_of
from mtfed.tasks.task import Task

SHAPES = [(6, 6), (6, 6, 6)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_dose_is_read_and_unpacked(tmp_path: Path, shape: tuple[int, ...]) -> None:
    arrays = plan(shape) | {"Larynx": np.zeros(shape, bool)}
    values = kind_of(DOSE).read("a.npz", DOSE, write_arrays(tmp_path, shape, arrays))
    assert (values.dtype, values.shape) == (np.int16, (3, *shape))
    (read,) = dose.plans(torch.from_numpy(values[None]).long(), DOSE)
    np.testing.assert_allclose(read.dose * 80, arrays["dose"], atol=80 / dose.STEPS)
    np.testing.assert_array_equal(read.possible, arrays["possible"])
    assert list(read.structures) == ["PTV70"]  # a structure without voxels has no dose
    np.testing.assert_array_equal(read.structures["PTV70"], arrays["PTV70"])
    assert read.tenth == round(100 / 12)


def test_a_dose_keeps_its_volume_when_it_is_resized(tmp_path: Path) -> None:
    big = plan((12, 12, 12))
    values = kind_of(DOSE).read("a.npz", DOSE, write_arrays(tmp_path, (12, 12, 12), big))
    (read,) = dose.plans(torch.from_numpy(values[None]).long(), DOSE)
    assert read.tenth == max(1, round(100 / (12 * 8)))
    means = (big["dose"] * big["possible"]).reshape(6, 2, 6, 2, 6, 2).mean((1, 3, 5))
    np.testing.assert_allclose(read.dose[1:] * 80, means[1:], atol=80 / dose.STEPS)
    slice_ = kind_of(DOSE).read(
        "a.npz", DOSE, write_arrays(tmp_path, (12, 6), plan((12, 6)))
    )  # no dose is possible outside the image
    assert (slice_[0][:, [0, 1, 5]] == -1).all() and slice_[2, 0, 0] == round(100 / (12 * 4))


def test_all_sixteen_structures_have_a_bit(tmp_path: Path) -> None:
    names = tuple(f"organ{i}" for i in range(17))
    masks = {name: np.random.default_rng(i).random((6, 6)) < 0.5 for i, name in enumerate(names)}
    site = write_arrays(tmp_path, (6, 6), plan() | masks)
    task = DOSE.model_copy(update={"classes": names[:16]})
    (read,) = dose.plans(torch.from_numpy(kind_of(task).read("a.npz", task, site)[None]).long(), task)
    for name in names[:16]:
        np.testing.assert_array_equal(read.structures[name], masks[name])
    with pytest.raises(MtfedError, match="Task dose should have at most 16 structures, it has 17"):
        kind_of(DOSE).read("a.npz", DOSE.model_copy(update={"classes": names}), site)


def test_a_path_that_is_not_an_npz_file_is_refused() -> None:
    check_invalid_cell(DOSE, "p.npy", r"label 'p\.npy' of dose should be the path of an \.npz file")


INVALID_ARRAYS = [  # changes of a valid file, message
    ({"dose": None}, r"Expected an array 'dose' of numbers in a\.npz of site north, found none"),
    ({"possible": None}, "Expected an array 'possible'"),
    ({"spacing": np.array(["wide"])}, "Expected an array 'spacing' of numbers"),
    (
        {"spacing": np.array([2.0, 2.0])},
        r"Spacing in a\.npz of site north should be three numbers above 0, in mm",
    ),
    ({"spacing": np.array([2.0, 2.0, 0.0])}, "should be three numbers above 0"),
    ({"dose": np.full((6, 6), 81)}, r"in the range of task dose, 0 to 80 Gy; .* is 81 to 81 Gy"),
    ({"dose": np.full((6, 6), np.nan)}, "possible it is nan to nan Gy"),
    ({"dose": np.zeros((5, 6))}, r"should have the same shape, .* are \[5, 6\] and \[6, 6\]"),
    ({"possible": np.zeros((6, 6), bool)}, "some voxel where dose is possible"),
    ({"dose": np.zeros((5, 5)), "possible": np.ones((5, 5))}, r"^Dose in a\.npz of site north should be 6 x 6"),
    ({"cord": np.full((6, 6), 3)}, "Mask cord in a"),
]


@pytest.mark.parametrize(("changes", "message"), INVALID_ARRAYS)
def test_an_invalid_file_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arrays = {name: array for name, array in (plan() | changes).items() if array is not None}
    site = write_arrays(tmp_path, (6, 6), arrays)
    with pytest.raises(MtfedError, match=message):
        kind_of(DOSE).read("a.npz", DOSE, site)


def histogram(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    high, total = task.range[1], []
    for predicted, planned, _, masks, _ in patients(outputs, values, task):
        each = []
        for mask in masks.values():
            for level in (np.arange(32) + 0.5) / 32:
                shares = [np.mean(sigmoid(32 * (gray[mask] / high - level))) for gray in (predicted, planned)]
                each.append((shares[0] - shares[1]) ** 2)
        total.append(np.mean(each))
    return float(np.mean(total))


LOSSES = {"l1": over_known(abs), "mse": over_known(lambda d: d * d), "dvh": histogram}


@pytest.mark.parametrize("term", DOSE.spec.losses)
def test_losses_agree_with_their_definitions(term: str) -> None:
    check_loss(DOSE, term, LOSSES[term])


def test_the_square_of_the_factor_is_the_curvature() -> None:
    check_curvature(DOSE, "mse", 2)


def slow_dose(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    return float(
        np.mean([abs(a - b)[possible].sum() / possible.sum() for a, b, possible, *_ in patients(outputs, values, task)])
    )


def slow_dvh_score(outputs: np.ndarray, values: np.ndarray, task: Task) -> float:
    differences = []
    for predicted, planned, _, masks, tenth in patients(outputs, values, task):
        for name, mask in masks.items():
            a, b = (slow_dvh(gray, name, mask, tenth) for gray in (predicted, planned))
            differences += [abs(a[metric] - b[metric]) for metric in a]
    return float(np.mean(differences))


METRICS: dict[str, Reference] = {"dose-score": slow_dose, "dvh-score": slow_dvh_score}


def test_metrics_of_two_sites_add_up_to_the_pooled_reference() -> None:
    check_metrics(DOSE, METRICS)


def test_the_spec_contains_the_direction_of_every_metric() -> None:
    check_directions(DOSE)


def test_the_dvh_score_without_structures_is_nan() -> None:
    outputs, values = examples(DOSE)
    values[:, 1] = 0
    metrics = computed(DOSE, outputs, values)
    assert np.isnan(metrics["dvh-score"]) and metrics["dose-score"] > 0


def test_the_record_contains_a_dose_map() -> None:
    assert shown(DOSE).shape == (9, 4, 5)
