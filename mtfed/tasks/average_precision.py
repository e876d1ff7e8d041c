"""How well boxes are found, from counts that add up over sites.

What is counted are hits and false alarms by class, overlap and score, the scores in bins that are even in logits; so
the figures of added-up counts are those of all sites' images together, and differ from the exact ones only by the order
of scores within a bin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..lean import lean_import
from .boxes import overlap

if TYPE_CHECKING:
    from torchmetrics import Metric
else:
    Metric = lean_import("torchmetrics.metric").Metric

EDGES = torch.sigmoid(torch.linspace(-8, 8, 129, dtype=torch.float64))  # of the bins of scores; the outer two are open
OVERLAPS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))  # of COCO
RECALLS = torch.linspace(0, 1, 101, dtype=torch.float64)  # of COCO
ALARMS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false ones an image


def match(boxes: Tensor, scores: Tensor, classes: Tensor, values: Tensor, overlaps: Sequence[float]) -> Tensor:
    """Say which of the predicted boxes are hits, (M, T, P), as COCO's evaluation does.

    From the highest score down, a predicted box hits the object of its class and image that it overlaps most, of those
    that it overlaps by the threshold and that no box before it has hit.

    Args:
        boxes: predicted, (M, P, 2d).
        scores: of them, (M, P).
        classes: of them, (M, P); -1 is padding.
        values: the objects' boxes and classes (M, N, 2d + 1); class -1 is padding.
        overlaps: T thresholds of intersection over union.
    """
    hits = torch.zeros(len(boxes), len(overlaps), boxes.shape[1], dtype=torch.bool)
    if not values.shape[1]:
        return hits
    iou = overlap(boxes.double(), values[..., :-1].double())  # (M, P, N)
    iou[(classes[:, :, None] != values[:, None, :, -1]) | (classes < 0)[:, :, None]] = 0
    least = torch.tensor(overlaps, dtype=torch.float64)[:, None]
    free = torch.ones(len(boxes), len(overlaps), values.shape[1], dtype=torch.bool)
    images = torch.arange(len(boxes))
    for turn in scores.argsort(dim=1, descending=True, stable=True).T:  # (M,)
        found = torch.where(free, iou[images, turn][:, None], 0)  # (M, T, N)
        best, which = torch.where(found >= least - 1e-10, found, 0).max(2)
        hits[images, :, turn] = best > 0
        free.scatter_(2, which[..., None], free.gather(2, which[..., None]) & (best == 0)[..., None])
    return hits


def average_precision(hits: Tensor, alarms: Tensor, objects: Tensor) -> Tensor:
    """Return the mean, over 101 recalls, of the best precision at that recall or a higher one (COCO).

    Args:
        hits: counts (..., B) by score, the lowest first.
        alarms: false ones, likewise.
        objects: how many there are to find (...).

    Returns:
        (...), NaN where there is nothing to find.
    """
    found, false = (counts.flip(-1).cumsum(-1).double() for counts in (hits, alarms))
    precision = (found / (found + false).clamp_min(1)).flip(-1).cummax(-1).values.flip(-1)
    recall = found / objects[..., None]  # (..., B), rising
    index = torch.searchsorted(recall.contiguous(), RECALLS.expand(*recall.shape[:-1], -1).contiguous())
    reached = torch.cat([precision, torch.zeros_like(precision[..., :1])], -1).gather(-1, index)
    return torch.where(objects > 0, reached.mean(-1), torch.nan)


def sensitivity(hits: Tensor, alarms: Tensor, objects: Tensor, images: Tensor) -> Tensor:
    """Return the mean, over :data:`ALARMS`, of the best sensitivity at that many false alarms an image or fewer.

    This is the score of a free-response ROC curve. Arguments and result are those of :func:`average_precision`.
    """
    found, false = (counts.flip(-1).cumsum(-1).double() for counts in (hits, alarms))
    allowed = torch.tensor(ALARMS, dtype=torch.float64) * images
    best = torch.where(false[..., None] <= allowed, found[..., None], 0).amax(-2)  # (..., rates)
    return torch.where(objects > 0, best.mean(-1) / objects, torch.nan)


class AveragePrecision(Metric):
    """Average precision of detection, the mean over overlaps and over the classes that there are objects of.

    Args:
        classes: how many there are.
        overlaps: thresholds of intersection over union.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    def __init__(self, classes: int, overlaps: Sequence[float]) -> None:
        super().__init__()
        self.overlaps = tuple(overlaps)
        shape = (classes, len(self.overlaps), len(EDGES) + 1)
        for name, zero in {
            "hits": torch.zeros(shape, dtype=torch.long),
            "alarms": torch.zeros(shape, dtype=torch.long),
            "objects": torch.zeros(classes, dtype=torch.long),
            "images": torch.zeros((), dtype=torch.long),
        }.items():
            self.add_state(name, zero, dist_reduce_fx="sum")
        self.hits: Tensor
        self.alarms: Tensor
        self.objects: Tensor
        self.images: Tensor

    def update(self, boxes: Tensor, scores: Tensor, classes: Tensor, values: Tensor) -> None:
        """Take in some images' predicted boxes and objects; see :func:`match`."""
        hits = match(boxes, scores, classes, values, self.overlaps)
        bins = torch.bucketize(scores.double(), EDGES, right=True)
        count, thresholds, size = self.hits.shape
        for threshold in range(thresholds):
            for state, chosen in ((self.hits, hits[:, threshold]), (self.alarms, ~hits[:, threshold])):
                chosen = chosen & (classes >= 0)
                index = classes[chosen] * size + bins[chosen]
                state[:, threshold] += torch.bincount(index, minlength=count * size).view(count, size)
        objects = values[..., -1].long()
        self.objects += torch.bincount(objects[objects >= 0], minlength=count)
        self.images += len(boxes)

    def compute(self) -> Tensor:
        """Return the average precision, NaN without any object."""
        return average_precision(self.hits, self.alarms, self.objects[:, None]).mean(1).nanmean()


class FreeResponse(AveragePrecision):
    """Score of the free-response ROC curve, the mean over the classes that there are objects of.

    False alarms are counted by class, and a hit is an overlap of at least .5.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes, (0.5,))

    def compute(self) -> Tensor:
        """Return the mean sensitivity at 1/4 to 8 false alarms an image, NaN without any object."""
        return sensitivity(self.hits[:, 0], self.alarms[:, 0], self.objects, self.images).nanmean()
