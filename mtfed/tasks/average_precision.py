"""Average precision and free-response score of boxes, from counts that add up over sites.

Hits and false alarms are counted by class, overlap and score, with scores in bins that are even in logits. The figures
of added counts are those of all sites' images together, and differ from the exact ones only by the order of scores
within a bin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .boxes import intersection_over_union
from .kind import AdditiveMetric
from .task import Task

EDGES = torch.sigmoid(torch.linspace(-8, 8, 129, dtype=torch.float64))  # edges of score bins; the outer two are open
OVERLAPS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))  # COCO's thresholds
RECALLS = torch.linspace(0, 1, 101, dtype=torch.float64)  # COCO's levels of recall
ALARMS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false alarms per image

Detections = tuple[Tensor, Tensor, Tensor]  # predicted boxes, scores and classes, see match
Decode = Callable[[Tensor], Detections]  # turns a decoder's outputs into boxes


def match(boxes: Tensor, scores: Tensor, classes: Tensor, values: Tensor, overlaps: Sequence[float]) -> Tensor:
    """Return which of the predicted boxes are hits, (M, T, P), as COCO's evaluation does.

    From the highest score down, a predicted box hits the object of its class and image with which it has the largest
    overlap, among those whose overlap reaches the threshold and that no earlier box has hit.

    Args:
        boxes: predicted, (M, P, 2d).
        scores: scores of the predicted boxes, (M, P).
        classes: classes of the predicted boxes, (M, P); -1 is padding.
        values: the objects' boxes and classes (M, N, 2d + 1); class -1 is padding.
        overlaps: T thresholds of intersection over union.
    """
    hits = torch.zeros(len(boxes), len(overlaps), boxes.shape[1], dtype=torch.bool)
    if not values.shape[1]:
        return hits
    iou = intersection_over_union(boxes.double(), values[..., :-1].double())  # (M, P, N)
    iou[(classes[:, :, None] != values[:, None, :, -1]) | (classes < 0)[:, :, None]] = 0
    thresholds = torch.tensor(overlaps, dtype=torch.float64)[:, None]
    free = torch.ones(len(boxes), len(overlaps), values.shape[1], dtype=torch.bool)
    images = torch.arange(len(boxes))
    for index in scores.argsort(dim=1, descending=True, stable=True).T:  # (M,)
        overlap_free = torch.where(free, iou[images, index][:, None], 0)  # (M, T, N)
        best, target = torch.where(overlap_free >= thresholds - 1e-10, overlap_free, 0).max(2)
        hits[images, :, index] = best > 0
        free.scatter_(2, target[..., None], free.gather(2, target[..., None]) & (best == 0)[..., None])
    return hits


def count_hits(predicted: Detections, values: Tensor, classes: int, overlaps: Sequence[float]) -> tuple[Tensor, ...]:
    """Return the sums of :func:`detection_metric` for some images.

    Args:
        predicted: boxes, scores and classes, see :func:`match`.
        values: the objects, see :func:`match`.
        classes: K.
        overlaps: T thresholds of intersection over union.

    Returns:
        Hits and false alarms by score, the lowest first, (K, T, B), objects (K,), and images ().
    """
    boxes, scores, labels = predicted
    hits = match(boxes, scores, labels, values, overlaps)  # (M, T, P)
    bins = torch.bucketize(scores.double(), EDGES, right=True)
    shape = (classes, len(overlaps), len(EDGES) + 1)
    index = (labels * shape[1])[:, None] + torch.arange(shape[1])[:, None]  # (M, T, P)
    index = index * shape[2] + bins[:, None]
    counts = []
    for chosen in (hits, ~hits):
        flat = index[chosen & (labels >= 0)[:, None]]
        counts.append(torch.bincount(flat, minlength=classes * shape[1] * shape[2]).view(shape))
    objects = values[..., -1].long()
    return *counts, torch.bincount(objects[objects >= 0], minlength=classes), torch.tensor(len(boxes))


def average_precision(hits: Tensor, alarms: Tensor, objects: Tensor) -> Tensor:
    """Return the mean, over 101 recalls, of the best precision at that recall or a higher one (COCO).

    Args:
        hits: counts (..., B) by score, the lowest first.
        alarms: false alarms, likewise.
        objects: how many objects there are (...).

    Returns:
        (...), NaN if there are no objects.
    """
    true, false = (counts.flip(-1).cumsum(-1).double() for counts in (hits, alarms))
    precision = (true / (true + false).clamp_min(1)).flip(-1).cummax(-1).values.flip(-1)
    recall = true / objects[..., None]  # (..., B), rising
    index = torch.searchsorted(recall.contiguous(), RECALLS.expand(*recall.shape[:-1], -1).contiguous())
    reached = torch.cat([precision, torch.zeros_like(precision[..., :1])], -1).gather(-1, index)
    return torch.where(objects > 0, reached.mean(-1), torch.nan)


def sensitivity(hits: Tensor, alarms: Tensor, objects: Tensor, images: Tensor) -> Tensor:
    """Return the mean, over :data:`ALARMS`, of the best sensitivity with at most that many false alarms per image.

    This is the score of a free-response ROC curve. Arguments and result are those of :func:`average_precision`.
    """
    true, false = (counts.flip(-1).cumsum(-1).double() for counts in (hits, alarms))
    allowed = torch.tensor(ALARMS, dtype=torch.float64) * images
    best = torch.where(false[..., None] <= allowed, true[..., None], 0).amax(-2)  # (..., rates)
    return torch.where(objects > 0, best.mean(-1) / objects, torch.nan)


def mean_average_precision(hits: Tensor, alarms: Tensor, objects: Tensor, images: Tensor) -> Tensor:
    """Return the mean over overlaps, and over the classes that have objects; NaN without any object."""
    return average_precision(hits, alarms, objects[:, None]).mean(1).nanmean()


def free_response(hits: Tensor, alarms: Tensor, objects: Tensor, images: Tensor) -> Tensor:
    """Return the mean sensitivity at the first overlap, over the classes that have objects; NaN without any object.

    False alarms are counted by class.
    """
    return sensitivity(hits[:, 0], alarms[:, 0], objects, images).nanmean()


def detection_metric(
    decode: Decode, compute: Callable[..., Tensor], overlaps: Sequence[float] = (0.5,)
) -> AdditiveMetric:
    """Return a metric of boxes.

    Args:
        decode: a decoder's outputs -> predicted boxes, scores and classes, see :func:`match`.
        compute: :func:`mean_average_precision` or :func:`free_response`.
        overlaps: thresholds of intersection over union at and above which a box is a hit.
    """

    def states(task: Task) -> dict[str, tuple[int, ...]]:
        counts = (len(task.classes), len(overlaps), len(EDGES) + 1)
        return {"hits": counts, "alarms": counts, "objects": (len(task.classes),), "images": ()}

    def update(task: Task, outputs: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        return count_hits(decode(outputs), values, len(task.classes), overlaps)

    return AdditiveMetric(states, update, compute)
