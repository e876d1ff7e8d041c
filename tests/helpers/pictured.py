"""Made-up test images of every kind of task, and a model whose predictions are almost right."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mtfed.config import Config
from mtfed.data.shard import Labels, Shard, standardise
from mtfed.tasks import boxes
from mtfed.tasks.detection import STRIDE, encode
from mtfed.tasks.dose import STEPS
from mtfed.tasks.regression import to_units
from mtfed.tasks.task import Task

KINDS = {  # a task of every kind, as keys of a config
    "task.finding.kind": "classification",
    "task.finding.classes": "normal, benign, malignant",
    "task.signs.kind": "multi-label",
    "task.signs.classes": "effusion, mass, nodule, edema, fibrosis, hernia, pneumonia",
    "task.grade.kind": "ordinal",
    "task.grade.classes": "none, mild, moderate, severe",
    "task.lesion.kind": "segmentation",
    "task.lesion.classes": "background, lesion",
    "task.organs.kind": "multi-label-segmentation",
    "task.organs.classes": "heart, left lung, right lung, aorta, liver, spine, stomach, PTV",
    "task.spots.kind": "detection",
    "task.spots.classes": "calcification, mass",
    "task.age.kind": "regression",
    "task.age.classes": "years",
    "task.age.range": "0, 100",
    "task.dose.kind": "dose",
    "task.dose.classes": "PTV, spine",
    "task.dose.range": "0, 80",
}


def made_up(task: Task, size: int, dimensions: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return images (M, 1, *S) uint8, values as in a shard, and outputs as of a decoder that is almost right."""
    drawn = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*(torch.linspace(-1, 1, size),) * dimensions, indexing="ij")
    body = torch.stack([(a / (0.55 + 0.15 * i)) ** 2 for i, a in enumerate(reversed(axes))]).sum(0)
    texture = F.interpolate(
        torch.randn(count, 1, *(max(size // 8, 2),) * dimensions, generator=drawn), body.shape, mode="nearest"
    )
    images = (20 + 120 * (body[None, None] < 2).float() + 12 * texture).clamp(0, 255).byte()
    values, outputs = MADE[task.kind](task, list(axes), count, drawn)
    return images, values, outputs


def _classes(task: Task, axes: list[Tensor], count: int, drawn: torch.Generator) -> tuple[Tensor, Tensor]:
    values = torch.arange(count) * len(task.classes) // count
    return values, 3 * F.one_hot(values, len(task.classes)) + torch.randn(count, len(task.classes), generator=drawn)


def _labels(task: Task, axes: list[Tensor], count: int, drawn: torch.Generator) -> tuple[Tensor, Tensor]:
    shape = (count, len(task.classes))
    values = (torch.rand(shape, generator=drawn) < 0.3).long()
    values[-1, 0] = -1
    return values, 4 * (values - 0.5) + 1.5 * torch.randn(shape, generator=drawn)


def _grades(task: Task, axes: list[Tensor], count: int, drawn: torch.Generator) -> tuple[Tensor, Tensor]:
    values = torch.arange(count) * len(task.classes) // count
    near = values + 0.5 * torch.randn(count, generator=drawn)
    return values, 4 * (near[:, None] - torch.arange(len(task.classes) - 1) - 0.5)


def _blobs(axes: list[Tensor], count: int, drawn: torch.Generator, wide: float) -> Tensor:
    """Return maps (count, *S) that fall from 1 at a random centre to below 0 outside a blob around it."""
    centres = torch.rand(count, len(axes), generator=drawn) - 0.5
    sides = wide * (0.6 + 0.8 * torch.rand(count, len(axes), generator=drawn))
    away = [((a - c) / s) ** 2 for a, c, s in zip(axes, _spread(centres, axes), _spread(sides, axes), strict=True)]
    return 1 - torch.stack(away).sum(0)


def _spread(numbers: Tensor, axes: list[Tensor]) -> list[Tensor]:
    return [column.reshape(-1, *(1,) * len(axes)) for column in numbers.T]


def _masks(task: Task, axes: list[Tensor], count: int, drawn: torch.Generator) -> tuple[Tensor, Tensor]:
    blobs = _blobs(axes, count, drawn, 0.3)
    blobs[:: max(count // 3, 2)] = -1  # no structure
    near = blobs + 0.3 * F.interpolate(torch.randn(count, 1, *(4,) * len(axes), generator=drawn), blobs.shape[1:])[:, 0]
    return (blobs > 0).byte(), torch.stack([-near, near], 1)


def _structures(task: Task, axes: list[Tensor], count: int, drawn: torch.Generator) -> tuple[Tensor, Tensor]:
    blobs = torch.stack([_blobs(axes, count, drawn, 0.1 + 0.04 * k) for k in range(len(task.classes))], 1)
    values = (blobs > 0).byte()
    values[0, 0] = 255
    return values, 5 * blobs + 1


def _spots(task: Task, axes: list[Tensor], count: int, drawn: torch.Generator) -> tuple[Tensor, Tensor]:
    size, dims = len(axes[0]), len(axes)
    corner = (0.1 + 0.5 * torch.rand(count, 3, dims, generator=drawn)) * size
    sides = (0.12 + 0.15 * torch.rand(count, 3, dims, generator=drawn)) * size
    classes = torch.randint(-1, len(task.classes), (count, 3, 1), generator=drawn)
    classes[0] = -1
    values = torch.cat([corner, sides, classes], -1)
    shape = (size // STRIDE,) * dims
    cells = boxes.assign_cells(values, shape, STRIDE)
    heat = boxes.centre_maps(values, cells, len(task.classes), shape, STRIDE).clamp(1e-3, 0.9).logit() - 0.5
    maps = torch.zeros(count, 2 * dims, *shape)
    index = boxes.flat_index(cells, shape)[:, None].expand(-1, 2 * dims, -1)
    targets = torch.cat(encode(values, cells), -1) + 0.1 * torch.randn(count, 3, 2 * dims, generator=drawn)
    maps.flatten(2).scatter_(2, index, targets.transpose(1, 2))
    return values, torch.cat([heat, maps], 1)


def _numbers(task: Task, axes: list[Tensor], count: int, drawn: torch.Generator) -> tuple[Tensor, Tensor]:
    low, high = task.range
    values = low + (high - low) * torch.rand(count, len(task.classes), generator=drawn)
    return values, to_units(values, task) + 0.1 * torch.randn(values.shape, generator=drawn)


def _dose(task: Task, axes: list[Tensor], count: int, drawn: torch.Generator) -> tuple[Tensor, Tensor]:
    target = _blobs(axes, count, drawn, 0.35)
    share = 0.85 * torch.sigmoid(3 * target)
    possible = torch.stack([a**2 for a in axes]).sum(0) < 0.9
    steps = torch.where(possible, (share * STEPS).round(), -1).short()
    values = torch.stack([steps, (target > 0).short(), torch.full_like(steps, 2)], 1)
    near = F.avg_pool2d(share, 5, 1, 2) if len(axes) == 2 else F.avg_pool3d(share, 5, 1, 2)
    return values, near[:, None]


MADE: dict[str, Callable[[Task, list[Tensor], int, torch.Generator], tuple[Tensor, Tensor]]] = {
    "classification": _classes,
    "multi-label": _labels,
    "ordinal": _grades,
    "segmentation": _masks,
    "multi-label-segmentation": _structures,
    "detection": _spots,
    "regression": _numbers,
    "dose": _dose,
}


class KnowingModel(torch.nn.Module):
    """A model that recognises images and returns the outputs that were made up for them."""

    def __init__(self, images: Tensor, outputs: dict[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.known = standardise(images).flatten(1)
        self.outputs = outputs  # task -> rows (M,), outputs (M, ...)
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor, rows: dict[str, Tensor], words: Tensor | None = None) -> dict[str, Tensor]:
        """Return the outputs of the images' tasks."""
        numbers = torch.cdist(images.flatten(1), self.known).argmin(1)
        predicted = {}
        for task, index in rows.items():
            labelled, outputs = self.outputs[task]
            predicted[task] = outputs[torch.stack([(labelled == number).nonzero()[0, 0] for number in numbers[index]])]
        return predicted


def pictured(config: Config, count: int = 12) -> tuple[Shard, KnowingModel]:
    """Return test images of a config's tasks, each with a label of one task, and a model that knows them."""
    images, labels, outputs = [], {}, {}
    for i, task in enumerate(config.tasks.values()):
        pixels, values, near = made_up(task, config.image_size, config.dimensions, count, seed=i)
        rows = torch.arange(count) + i * count
        images.append(pixels)
        labels[task.name], outputs[task.name] = Labels(rows, values), (rows, near)
    shard = Shard(torch.cat(images), labels)
    return shard, KnowingModel(shard.images, outputs)
