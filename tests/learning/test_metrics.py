"""Metrics against slow references in numpy, outputs that are refused, and the sums that a site sends."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.task_metrics import filled, pooled, task_of
from helpers.two_tasks import config
from mtfed.errors import MtfedError
from mtfed.learning.metrics import TaskMetrics, pool
from mtfed.tasks import mean_metric
from mtfed.tasks.specs import KIND_SPECS
from mtfed.tasks.task import Task

pytestmark = pytest.mark.filterwarnings("error")


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
        "reconstruction": (plane, torch.ones(2, 2, 8, 8)),
        "orientation": ((2, 8), torch.tensor([0, 5])),
        "views": ((2, 128), torch.tensor([0, 0])),
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


def test_pooled_sums_equal_the_metrics_of_all_images() -> None:
    tasks = config().tasks
    torch.manual_seed(0)
    logits, values = torch.randn(90, 2), torch.randint(0, 2, (90,))
    masks, truth = torch.randn(9, 2, 16, 16), torch.randint(0, 2, (9, 16, 16))
    truth[4] = 0  # an image without the structure
    whole = {"pneumonia": TaskMetrics(tasks["pneumonia"]), "lungs": TaskMetrics(tasks["lungs"])}
    whole["pneumonia"].update(logits, values)
    whole["lungs"].update(masks, truth)
    sums: dict = {}
    for start, end in ((0, 2), (2, 5), (5, 9)):
        for task, x, y, step in (("pneumonia", logits, values, 10), ("lungs", masks, truth, 1)):
            part = TaskMetrics(tasks[task])
            part.update(x[start * step : end * step], y[start * step : end * step])
            for name, value in part.sums().items():
                sums[name] = (
                    value
                    if name not in sums
                    else (
                        [a + b for a, b in zip(sums[name], value, strict=True)]
                        if isinstance(value, list)
                        else sums[name] + value
                    )
                )
    results = pool(tasks.values(), sums)
    for task, metrics in whole.items():
        assert results[task].compute() == pytest.approx(metrics.compute(), abs=1e-6)
    # Slow references: every positive against every negative, and overlaps image by image.
    score = logits[:, 1] - logits[:, 0]
    pairs = score[values == 1][:, None] - score[values == 0][None]
    assert whole["pneumonia"].compute()["auc"] == pytest.approx(float((pairs > 0).float().mean()), abs=0.01)
    predicted = masks.argmax(1)
    predicted_and_true = [((p == 1), (y == 1)) for p, y in zip(predicted, truth, strict=True)]
    dice = [2 * float((p & y).sum()) / float(p.sum() + y.sum()) for p, y in predicted_and_true]  # 0 for the false alarm
    assert whole["lungs"].compute()["dice"] == pytest.approx(np.mean(dice), abs=1e-6)
