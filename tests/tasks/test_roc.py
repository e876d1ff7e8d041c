"""The area under the ROC curve against pairs of scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.task_metrics import filled, pooled, task_of
from mtfed.learning.metrics import TaskMetrics

pytestmark = pytest.mark.filterwarnings("error")


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
    metrics = TaskMetrics(task_of("classification", 2))
    metrics.update(torch.tensor([[0.0, score] for score in scores]), torch.tensor(labels))
    assert metrics.compute()["auc"] == pytest.approx(auc)


def test_one_class_has_no_auc() -> None:
    metrics = TaskMetrics(task_of("classification", 2))
    metrics.update(torch.randn(4, 2), torch.ones(4, dtype=torch.long))
    assert math.isnan(metrics.compute()["auc"]) and 0 <= metrics.compute()["accuracy"] <= 1
