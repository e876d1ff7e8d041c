"""Cost of augmentation: whole batches, as "mirror" transforms them, and single images by torchvision and MONAI.

The libraries do the same as "mirror": flip, zoom, shift and contrast of an image with a mask and a box. All are timed
alternately in one process, in milliseconds of processor time of one thread. ``times`` is the libraries' time relative
to that of "mirror", ``least`` and ``most`` are its range. "strong", which uses the libraries, is timed for comparison.

python -m benchmarks.augment
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from mtfed.data.shard import Batch, Labels
from mtfed.learning.affine_augment import CONTRAST, SHIFT, ZOOM
from mtfed.learning.augment import augment
from mtfed.learning.strong_augment import move_boxes
from mtfed.tasks.task import Task

SIZES = ((2, 64, 16), (2, 224, 16), (3, 64, 16), (3, 224, 2))  # dimensions, side, batch size
REPEATS = 7
TASKS = {
    "outline": Task(name="outline", kind="segmentation", classes=("background", "lesion")),
    "boxes": Task(name="boxes", kind="detection", classes=("lesion",)),
}


def measure() -> dict[str, Any]:
    """Return the milliseconds per batch, and the ratio."""
    torch.set_num_threads(1)
    figures = {}
    for dims, side, count in SIZES:
        batch = random_batch(dims, side, count)
        variants: dict[str, Callable[[], object]] = {
            "mirror": partial(augment, batch, TASKS, "mirror"),
            "libraries": by_torchvision(batch) if dims == 2 else by_monai(batch),
            "strong": partial(augment, batch, TASKS, "strong"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for repeat in range(REPEATS + 1):
            for name, run in variants.items():
                start = time.process_time()
                run()
                if repeat:  # the first is a warm-up
                    seconds[name].append(time.process_time() - start)
        milliseconds = {name: round(1e3 * median(times), 1) for name, times in seconds.items()}
        ratios = sorted(b / a for a, b in zip(seconds["mirror"], seconds["libraries"], strict=True))
        spread = {"times": round(median(ratios), 1), "least": round(ratios[0], 1), "most": round(ratios[-1], 1)}
        figures[f"{count} x {side}^{dims}"] = milliseconds | spread
    return figures


def random_batch(dims: int, side: int, count: int) -> Batch:
    """Return images of noise, each with a mask and a box."""
    rows = torch.arange(count)
    box = torch.tensor([*(side // 4,) * dims, *(side // 2,) * dims, 0]).float().expand(count, 1, -1).clone()
    masks = torch.randint(0, 2, (count, *(side,) * dims))
    images = torch.randn(count, 1, *(side,) * dims)
    return Batch(images, {"outline": Labels(rows, masks), "boxes": Labels(rows, box)})


def by_torchvision(batch: Batch) -> Callable[[], Tensor]:
    """Return a function that transforms images one by one with torchvision."""
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    def contrast(image: Tensor) -> Tensor:
        return image * (1 + CONTRAST * (2 * torch.rand(()) - 1))

    transform = v2.Compose([
        v2.RandomHorizontalFlip(),
        v2.RandomAffine(0, (SHIFT, SHIFT), (1 - ZOOM, 1 + ZOOM), interpolation=v2.InterpolationMode.BILINEAR),
        v2.Lambda(contrast, tv_tensors.Image),
    ])  # fmt: skip
    size = tuple(batch.images.shape[2:])

    def run() -> Tensor:
        images = []
        for image, mask, boxes in zip(batch.images, *(labels.values for labels in batch.labels.values()), strict=True):
            boxes = tv_tensors.BoundingBoxes(boxes[:, :4], format="XYWH", canvas_size=size)
            images.append(transform(tv_tensors.Image(image), tv_tensors.Mask(mask), boxes)[0])
        return torch.stack(images)

    return run


def by_monai(batch: Batch) -> Callable[[], Tensor]:
    """Return a function that transforms volumes one by one with MONAI."""
    from monai import transforms as monai

    keys, side = ["image", "mask"], batch.images.shape[-1]
    transform = monai.Compose([
        monai.RandFlipd(keys, prob=0.5, spatial_axis=2),
        monai.RandAffined(
            keys, prob=1.0, translate_range=(SHIFT * side,) * 3, scale_range=(ZOOM,) * 3,
            mode=["bilinear", "nearest"], padding_mode="border",
        ),
        monai.RandScaleIntensityd(["image"], factors=CONTRAST, prob=1.0),
    ])  # fmt: skip

    def run() -> Tensor:
        images = []
        for image, mask, boxes in zip(batch.images, *(labels.values for labels in batch.labels.values()), strict=True):
            moved = transform({"image": image, "mask": mask[None].float()})
            move_boxes(boxes[None], torch.linalg.inv(moved["image"].affine)[None, :3].float(), side)
            images.append(moved["image"].as_tensor())
        return torch.stack(images)

    return run


if __name__ == "__main__":
    json.dump(measure(), sys.stdout, indent=2)
