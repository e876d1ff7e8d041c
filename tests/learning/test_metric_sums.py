"""Metrics of added-up sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from helpers.two_tasks import config
from mtfed.learning.metrics import TaskMetrics, pool

torch.set_num_threads(1)


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
    pooled = pool(tasks.values(), sums)
    for task, metrics in whole.items():
        assert pooled[task].compute() == pytest.approx(metrics.compute(), abs=1e-6)
    # Slow references: every positive against every negative, and overlaps image by image.
    score = logits[:, 1] - logits[:, 0]
    pairs = score[values == 1][:, None] - score[values == 0][None]
    assert whole["pneumonia"].compute()["auc"] == pytest.approx(float((pairs > 0).float().mean()), abs=0.01)
    predicted = masks.argmax(1)
    predicted_and_true = [((p == 1), (y == 1)) for p, y in zip(predicted, truth, strict=True)]
    dice = [2 * float((p & y).sum()) / float(p.sum() + y.sum()) for p, y in predicted_and_true]  # 0 for the false alarm
    assert whole["lungs"].compute()["dice"] == pytest.approx(np.mean(dice), abs=1e-6)


@pytest.mark.parametrize(
    "scores, labels, auc",
    [
        ([4.0, 5.0, 6.0, 7.0], [0, 0, 1, 1], 1.0),  # all above .98
        ([-13.0, -11.0, -12.0, -10.0], [0, 0, 1, 1], 0.75),  # all below 2e-5
        ([-30.0, -30.0, 9.0, 9.0], [0, 0, 1, 1], 1.0),  # beyond every threshold but 0
        ([-30.0, 30.0, -30.0, 30.0], [0, 0, 1, 1], 0.5),
    ],
)
def test_confident_scores_keep_their_order(scores: list[float], labels: list[int], auc: float) -> None:
    metrics = TaskMetrics(config().tasks["pneumonia"])
    metrics.update(torch.tensor([[0.0, score] for score in scores]), torch.tensor(labels))
    assert metrics.compute()["auc"] == pytest.approx(auc)


def test_an_empty_mask_found_empty_counts_one() -> None:
    metrics = TaskMetrics(config().tasks["lungs"])
    metrics.update(
        torch.tensor([1.0, 0.0])[None, :, None, None].expand(1, 2, 8, 8), torch.zeros(1, 8, 8, dtype=torch.long)
    )
    assert metrics.compute() == {"dice": 1.0, "iou": 1.0}


def test_one_class_has_no_auc() -> None:
    metrics = TaskMetrics(config().tasks["pneumonia"])
    metrics.update(torch.randn(4, 2), torch.ones(4, dtype=torch.long))
    assert math.isnan(metrics.compute()["auc"]) and 0 <= metrics.compute()["accuracy"] <= 1
