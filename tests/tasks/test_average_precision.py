"""Average precision and FROC against slow references and COCO, and their sums over sites."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.detections import CELLS, boxes_of, truth_of
from mtfed.learning.metrics import TaskMetrics, pool
from mtfed.tasks.average_precision import (
    ALARMS,
    EDGES,
    OVERLAPS,
    count_hits,
    free_response,
    match,
    mean_average_precision,
)


def random_finds(seed: int, images: int = 12, classes: int = 3) -> tuple[Tensor, ...]:
    """Return predicted boxes near some of the objects and elsewhere, each score in a bin of its own."""
    rng = np.random.default_rng(seed)
    values = boxes_of(rng, images, 5, 2, 64, classes)
    max_boxes = 9
    predicted = np.zeros((images, max_boxes, 4))
    kinds = np.full((images, max_boxes), -1)
    for m in range(images):
        for p in range(int(rng.integers(0, max_boxes + 1))):
            objects = values[m][values[m][:, -1] >= 0]
            near = len(objects) and rng.random() < 0.7
            box = (
                objects[rng.integers(len(objects))] if near else boxes_of(rng, 1, 1, 2, 64, classes, min_boxes=1)[0, 0]
            )
            predicted[m, p] = box[:4] + rng.normal(0, 0.08 if near else 0.0, 4) * np.tile(box[2:4], 2)
            kinds[m, p] = box[-1] if rng.random() < 0.9 else rng.integers(classes)
    predicted[..., 2:] = predicted[..., 2:].clip(0.5)
    middle = torch.logit(EDGES[:-1]) + 0.0625
    scores = torch.sigmoid(middle[torch.from_numpy(rng.permutation(len(middle)))[: images * max_boxes]]).view(
        images, max_boxes
    )
    scores = scores.masked_fill(torch.from_numpy(kinds) < 0, 0)
    return torch.from_numpy(predicted), scores, torch.from_numpy(kinds), torch.from_numpy(values)


def slow_hits(finds: tuple[Tensor, ...], k: int, min_overlap: float) -> tuple[list[tuple[float, bool]], int]:
    """Return score and hit of each predicted box of a class, and the number of objects, in a plain loop."""
    listed: list[tuple[float, bool]] = []
    objects = 0
    for predicted, scores, kinds, values in zip(*(x.double().tolist() for x in finds), strict=True):
        truth = [row[:4] for row in values if row[4] == k]
        objects += len(truth)
        hit: set[int] = set()
        for score, box in sorted(
            ((s, b) for s, b, c in zip(scores, predicted, kinds, strict=True) if c == k), reverse=True
        ):
            best, target = min_overlap, -1
            for i, (x, y, w, h) in enumerate(truth):
                across = min(x + w, box[0] + box[2]) - max(x, box[0])
                down = min(y + h, box[1] + box[3]) - max(y, box[1])
                shared = max(across, 0) * max(down, 0)
                iou = shared / (w * h + box[2] * box[3] - shared)
                if i not in hit and iou >= best:
                    best, target = iou, i
            hit |= {target} - {-1}
            listed.append((score, target >= 0))
    return sorted(listed, reverse=True), objects


def slow_average_precision(finds: tuple[Tensor, ...], overlaps: tuple[float, ...], classes: int = 3) -> float:
    of_class = []
    for k in range(classes):
        values = []
        for min_overlap in overlaps:
            listed, objects = slow_hits(finds, k, min_overlap)
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
            max_hits = 0
            for n in range(len(listed) + 1):
                hits = sum(hit for _, hit in listed[:n])
                if n - hits <= rate * len(finds[0]):
                    max_hits = max(max_hits, hits)
            best.append(max_hits / objects)
        of_class.append(np.mean(best))
    return float(np.mean(of_class))


@pytest.mark.parametrize("seed", range(4))
def test_metrics_are_exact_if_every_score_has_a_bin_of_its_own(seed: int) -> None:
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
    for m, (predicted, scores, kinds, values) in enumerate(zip(*(x.double().tolist() for x in finds), strict=True)):
        for x, y, w, h, k in values:
            if k >= 0:
                place = {"image_id": m, "category_id": int(k), "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
                annotations.append({"id": len(annotations) + 1, **place})
        for box, score, k in zip(predicted, scores, kinds, strict=True):
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


def test_an_object_is_hit_once_at_every_threshold() -> None:
    values = torch.tensor([[[0.0, 0, 10, 10, 0], [0, 2, 10, 10, 0]]])
    predicted = torch.tensor([[[0.0, 1.1, 10, 10], [0, 1.1, 10, 10], [0, 1.1, 10, 10]]])
    hits = match(
        predicted, torch.tensor([[0.9, 0.8, 0.7]]), torch.zeros(1, 3, dtype=torch.long), values, (0.5, 0.82, 0.99)
    )
    assert hits.tolist() == [[[True, True, False], [True, False, False], [False, False, False]]]


def outputs_and_values(seed: int, images: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(boxes_of(rng, images, 4, 2, 64, 3))
    return truth_of(values, 3, (16, 16)) + 0.2 * torch.randn(images, 7, 16, 16), values


def test_sums_of_two_sites_give_the_pooled_metric() -> None:
    torch.manual_seed(0)
    sites = [outputs_and_values(0, 9), outputs_and_values(1, 4)]
    together, sums = TaskMetrics(CELLS), []
    for outputs, values in sites:
        site = TaskMetrics(CELLS)
        for rows in torch.arange(len(values)).split(3):
            site.update(outputs[rows], values[rows])
        together.update(outputs, values)
        sums.append(site.sums())
    added = {name: np.add(sums[0][name], sums[1][name]).tolist() for name in sums[0]}
    figures = pool([CELLS], added)["cells"].compute()
    assert figures == pytest.approx(together.compute())
    assert set(figures) == set(CELLS.metrics) == {"ap50", "map", "froc"}
    assert 0.2 < figures["map"] < figures["ap50"] < 1


def test_without_objects_metrics_are_nan_and_a_class_without_objects_does_not_count() -> None:
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
