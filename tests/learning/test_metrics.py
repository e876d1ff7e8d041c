"""Metrics against slow references in numpy, outputs that are refused, and the sums that a site sends."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtfed.errors import MtfedError
from mtfed.learning.metrics import TaskMetrics, pool
from mtfed.tasks import mean_metric
from mtfed.tasks.specs import KIND_SPECS
from mtfed.tasks.task import Task

pytestmark = pytest.mark.filterwarnings("error")


def task_of(kind: str, classes: int = 3) -> Task:
    given: dict[str, Any] = {"range": (0, 10)} if KIND_SPECS[kind].has_range else {}
    return Task(name="t", kind=kind, classes=tuple("abcdefgh"[:classes]), **given)


def filled(task: Task, *batches: tuple[Tensor, Tensor]) -> TaskMetrics:
    metrics = TaskMetrics(task)
    for outputs, values in batches:
        metrics.update(outputs, values)
    return metrics


def pooled(task: Task, *sites: TaskMetrics) -> dict[str, float]:
    """Return the figures of the added sums that sites send."""
    sent = [site.sums() for site in sites]
    return pool([task], {name: np.add.reduce([sums[name] for sums in sent]).tolist() for name in sent[0]})[
        "t"
    ].compute()


# Area under the ROC curve.


@pytest.mark.parametrize("scale", [0.05, 0.2, 1.0, 4.0])
def test_the_area_hardly_depends_on_the_scale_of_logits(scale: float) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, 2000)
    logits = scale * (rng.normal(size=2000) + 1.7 * values)
    outputs = torch.from_numpy(np.stack([-logits / 2, logits / 2], 1))
    auc = filled(task_of("classification", 2), (outputs, torch.from_numpy(values))).compute()["auc"]
    assert auc == pytest.approx(slow_auc(outputs.numpy(), values), abs=0.01)


def slow_auc(scores: np.ndarray, values: np.ndarray) -> float:
    """Return the share of pairs in order, mean over classes with positives and negatives; ties count half.

    Scores (M, K) of two classes are those of the second.
    """
    areas = []
    for k in (1,) if scores.shape[1] == 2 else range(scores.shape[1]):
        own, other = scores[values == k, k], scores[values != k, k]
        if len(own) and len(other):
            pairs = own[:, None] - other[None]
            areas.append(np.mean((pairs > 0) + 0.5 * (pairs == 0)))
    return float(np.mean(areas)) if areas else np.nan


def on_grid(classes: int, images: int, seed: int) -> Tensor:
    """Return logits whose scores are equal or separated by a threshold."""
    scores = torch.linspace(-6, 6, 25)[torch.randint(25, (images,), generator=torch.Generator().manual_seed(seed))]
    logits = torch.zeros(images, classes)
    logits[torch.arange(images), torch.arange(images) % classes] = scores
    return logits


PRESENT = [  # number of a task's classes, and the classes that images have
    (2, [0, 1]),
    (2, [1]),
    (2, [0]),
    (3, [0, 1, 2]),
    (3, [0, 2]),
    (3, [1]),
    (5, [0, 1, 2, 3, 4]),
    (5, [1, 4]),
    (5, [0, 2, 3, 4]),
]


@pytest.mark.parametrize(("classes", "present"), PRESENT)
@pytest.mark.parametrize("seed", [0, 1])
def test_auc_is_the_mean_over_classes_that_can_be_judged(classes: int, present: list[int], seed: int) -> None:
    task, drawn = task_of("classification", classes), torch.Generator().manual_seed(seed)
    values = torch.tensor(present)[torch.randint(len(present), (60,), generator=drawn)]
    values[: len(present)] = torch.tensor(present)
    outputs = on_grid(classes, 60, seed)
    expected = slow_auc(outputs.double().softmax(1).numpy().round(9), values.numpy())
    assert np.isnan(expected) == (len(present) == 1)
    whole = filled(task, (outputs, values))
    assert whole.compute()["auc"] == pytest.approx(expected, abs=0.02, nan_ok=True)  # scores within a bin are ties
    split = [filled(task, (outputs[part], values[part])) for part in torch.arange(60).split(25)]
    assert pooled(task, *split) == pytest.approx(whole.compute(), abs=1e-9, nan_ok=True)


def test_an_absent_class_changes_no_other() -> None:
    """The areas of the two classes that are present are 1; a mean over three classes would be a third less."""
    outputs = torch.tensor([[4.0, 0, -1], [3, 0, -1], [0, 3, -1], [0, 4, -1]])
    assert filled(task_of("classification"), (outputs, torch.tensor([0, 0, 1, 1]))).compute()["auc"] == 1


# Outputs that are not finite.


def outputs_of(task: Task) -> tuple[Tensor, Tensor]:
    """Return outputs and labels of two images of 8 x 8 pixels."""
    k, plane = len(task.classes), (2, 1, 8, 8)
    drawn = {
        "classification": ((2, k), torch.tensor([0, 1])),
        "multi-label": ((2, k), torch.tensor([[0, 1, -1], [1, 0, 1]])),
        "ordinal": ((2, k - 1), torch.tensor([0, 2])),
        "segmentation": ((2, k, 8, 8), torch.zeros(2, 8, 8).long()),
        "multi-label-segmentation": ((2, k, 8, 8), torch.zeros(2, k, 8, 8).long()),
        "detection": ((2, k + 4, 8, 8), torch.tensor([[[8.0, 8, 8, 8, 1]], [[8.0, 8, 8, 8, -1]]])),
        "regression": ((2, k), torch.tensor([[1.0, 2, 3], [4, 5, float("nan")]])),
        "dose": (plane, torch.ones(2, 3, 8, 8).long()),
    }
    shape, values = drawn[task.kind]
    return torch.zeros(shape), values


@pytest.mark.parametrize("kind", KIND_SPECS)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_outputs_that_are_not_finite_are_refused(kind: str, wrong: float) -> None:
    outputs, values = outputs_of(task_of(kind))
    metrics = filled(task_of(kind), (outputs, values))
    assert metrics.count == 2
    before = metrics.sums()
    outputs.view(-1)[-1] = wrong
    message = (
        "The model's outputs of task t are not finite; its training diverged: lower learning-rate or set clip-norm."
    )
    with pytest.raises(MtfedError, match=re.escape(message)):
        metrics.update(outputs, values)
    assert metrics.sums() == before  # the sums contain nothing of the batch


def test_nan_is_left_out_of_a_mean() -> None:
    metric, task = mean_metric(lambda task, outputs, values: outputs), task_of("segmentation")
    sums = metric.update(task, torch.tensor([0.25, float("nan"), 0.75]), torch.zeros(3))
    assert float(metric.compute(*sums)) == 0.5


# Sums that a site sends.


def numbers(known: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return outputs and labels of a regression; each quantity is known for the given number of images."""
    drawn = torch.Generator().manual_seed(seed)
    values = 10 * torch.rand(max(known), len(known), generator=drawn)
    for k, count in enumerate(known):
        values[count:, k] = torch.nan
    return torch.rand(values.shape, generator=drawn), values


LEAVES = [  # number of images with each quantity, and whether the sums of R² are sent
    ([1], [False]),
    ([4], [False]),
    ([5], [True]),
    ([7, 4, 5], [True, False, True]),
]


@pytest.mark.parametrize(("known", "sent"), LEAVES)
def test_sums_that_would_reveal_single_labels_stay_at_the_site(known: list[int], sent: list[bool]) -> None:
    task = task_of("regression", len(known))
    outputs, values = numbers(known)
    metrics = filled(task, *((outputs[part], values[part]) for part in torch.arange(len(values)).split(3)))
    sums = metrics.sums()
    for state in ("count", "total", "squares", "residual"):
        assert [number != 0 for number in np.array(sums[f"t.r2.{state}"])] == sent
    assert sums["t.count"] == max(known) and sums["t.mae.count"] == [sum(known)]
    # The values computed at the site use all labels.
    units = values.double().numpy() / 10
    residual = np.nansum((outputs.numpy() - units) ** 2, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.nansum((units - np.nanmean(units, 0)) ** 2, 0)
        expected = np.where(spread > 0, 1 - residual / spread, np.nan)
    if np.isfinite(expected).any():
        assert metrics.compute()["r2"] == pytest.approx(np.nanmean(expected), rel=1e-5)


def test_pooled_figures_are_of_the_sites_that_send_sums() -> None:
    task = task_of("regression", 2)
    first, second, third = (filled(task, numbers(known, seed)) for seed, known in enumerate(([4, 9], [6, 3], [8, 3])))
    # The first quantity is sent by the second and third site, the other by the first only.
    sent = [site.sums() for site in (first, second, third)]
    count = np.add.reduce([sums["t.r2.count"] for sums in sent])
    assert count.tolist() == [14, 9]
    parts = [numbers([6, 3], 1), numbers([8, 3], 2)], [numbers([4, 9], 0)]
    expected = []
    for k, own in enumerate(parts):
        outputs, values = (torch.cat([pair[i][:, k] for pair in own]).double().numpy() for i in (0, 1))
        known = np.isfinite(values)
        units = values[known] / 10
        expected.append(1 - np.sum((outputs[known] - units) ** 2) / np.sum((units - units.mean()) ** 2))
    assert pooled(task, first, second, third)["r2"] == pytest.approx(np.mean(expected), rel=1e-5)
    alone = [filled(task, numbers([3, 2], seed)) for seed in (3, 4)]
    assert np.isnan(pooled(task, *alone)["r2"]) and pooled(task, *alone)["mae"] > 0
