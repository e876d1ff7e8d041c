"""Average precision and FROC against slow references and COCO, and their sums over sites."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers.detections import CELLS, boxes_of, truth_of
from torch import Tensor

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
