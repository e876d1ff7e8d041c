"""Augmentation: masks and boxes move with what they mark, and a seed gives the same images."""

from __future__ import annotations

import sys

import pytest
import torch

from mtfed.config import Augment, read_config
from mtfed.data.shard import Batch, Labels
from mtfed.learning.affine_augment import MIN_BOX_SHARE
from mtfed.learning.augment import augment
from mtfed.tasks.task import Task

TASKS = {
    "blob": Task(name="blob", kind="segmentation", classes="background, blob"),
    "parts": Task(name="parts", kind="multi-label-segmentation", classes="blob, rest"),
    "boxes": Task(name="boxes", kind="detection", classes="blob"),
    "grade": Task(name="grade", kind="classification", classes="no, yes"),
}


def batch(dims: int, side: int = 48, count: int = 24) -> Batch:
    """Return images of a bright block each, with labels of every task; of the first four there is a mask only."""
    generator = torch.Generator().manual_seed(3)
    low = torch.randint(side // 4, side // 3, (count, dims), generator=generator)
    size = torch.randint(side // 6, side // 3, (count, dims), generator=generator)
    images, boxes = torch.zeros(count, 1, *[side] * dims), torch.zeros(count, 2, 2 * dims + 1)
    for i in range(count):
        inside = tuple(slice(int(a), int(a + n)) for a, n in zip(low[i].flip(0), size[i].flip(0), strict=True))
        images[i, 0][inside] = 1
        boxes[i, 0] = torch.tensor([*low[i], *size[i], 0.0])
        boxes[i, 1, -1] = -1
    mask = images[:, 0].long()
    every, rest = torch.arange(count), torch.arange(4, count)
    return Batch(images, {
        "blob": Labels(every, mask), "parts": Labels(rest, torch.stack([mask, 1 - mask], 1)[rest]),
        "boxes": Labels(rest, boxes[rest]), "grade": Labels(rest, torch.ones(len(rest)).long()),
    })  # fmt: skip


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("mode", ["shift", "mirror"])
def test_labels_stay_with_what_they_mark(dims: int, mode: str) -> None:
    torch.manual_seed(0)
    given = batch(dims)
    moved = augment(given, TASKS, mode)
    bright = moved.images[:, 0] > moved.images.flatten(1).amax(1).reshape(-1, *[1] * dims) / 2
    blob = moved.labels["blob"].values
    assert blob.dtype == torch.int64 and not torch.equal(blob, given.labels["blob"].values)
    assert (bright != blob.bool()).float().mean() < 0.01
    rows = moved.labels["parts"].rows
    assert torch.equal(moved.labels["parts"].values[:, 0], blob[rows])
    for row, (box, padding) in zip(rows, moved.labels["boxes"].values, strict=True):
        places = blob[row].nonzero().flip(1).float()  # x first
        assert (places.amin(0) - box[:dims]).abs().max() <= 1
        assert (places.amax(0) + 1 - box[:dims] - box[dims : 2 * dims]).abs().max() <= 1
        assert box[-1] == 0 and padding[-1] == -1
    assert torch.equal(moved.labels["grade"].values, given.labels["grade"].values)


def test_mirror_flips_half_of_the_images_and_shift_none() -> None:
    ramp = torch.linspace(-1, 1, 32).expand(400, 1, 32, 32)
    for mode, low, high in (("shift", 0, 0), ("mirror", 150, 250)):
        torch.manual_seed(1)
        images = augment(Batch(ramp, {}), TASKS, mode).images
        mirrored = images[..., :16].mean((1, 2, 3)) > images[..., 16:].mean((1, 2, 3))
        assert low <= mirrored.sum() <= high
        assert (images[..., :16, :].mean((1, 2, 3)) - images[..., 16:, :].mean((1, 2, 3))).abs().max() < 1e-5


def test_a_box_that_is_nearly_outside_becomes_padding() -> None:
    boxes = torch.tensor([[[0.0, 10.0, 3.0, 6.0, 0.0]]]).repeat(200, 1, 1)
    torch.manual_seed(0)
    moved = augment(Batch(torch.zeros(200, 1, 32, 32), {"boxes": Labels(torch.arange(200), boxes)}), TASKS, "shift")
    boxes_after = moved.labels["boxes"].values[:, 0]
    assert {float(c) for c in boxes_after[:, -1]} == {0.0, -1.0}
    remaining = boxes_after[boxes_after[:, -1] == 0]
    assert (remaining[:, 2] * remaining[:, 3] >= MIN_BOX_SHARE * 18 * 0.85**2 - 1e-4).all()
    assert (remaining[:, 0] >= 0).all()


def test_none_changes_nothing_and_a_seed_gives_the_same() -> None:
    given = batch(2)
    assert augment(given, TASKS, "none") is given
    first, second = (seeded(given) for _ in range(2))
    assert torch.equal(first.images, second.images)


def seeded(given: Batch) -> Batch:
    torch.manual_seed(5)
    return augment(given, TASKS, "mirror")


def test_the_config_accepts_all_modes_and_only_strong_loads_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mtfed.learning.strong_augment", None)  # importing it now fails
    modes: tuple[Augment, ...] = ("none", "shift", "mirror", "strong")
    for mode in modes:
        declared = {"task.a.kind": "classification", "task.a.classes": "no, yes"}
        assert read_config(declared | {"augment": mode}).augment == mode
        if mode != "strong":
            augment(Batch(torch.zeros(1, 1, 8, 8), {}), {}, mode)
