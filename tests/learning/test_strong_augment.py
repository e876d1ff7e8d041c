"""Strong augmentation of images by torchvision and of volumes by MONAI."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from math import cos, radians, sin
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from helpers import ROOT
from mtfed.data.shard import Batch, Labels, standardise
from mtfed.learning.augment import augment
from mtfed.learning.strong_augment import (
    PROBABILITIES,
    Appearance,
    Movement,
    change_gamma,
    image_transforms,
    move_boxes,
    volume_transforms,
)
from mtfed.tasks.task import Task

TASKS = {
    "blob": Task(name="blob", kind="segmentation", classes="background, blob"),
    "parts": Task(name="parts", kind="multi-label-segmentation", classes="blob, rest"),
    "boxes": Task(name="boxes", kind="detection", classes="blob"),
    "grade": Task(name="grade", kind="classification", classes="no, yes"),
}

STRONG = TASKS | {
    "parts": Task(name="parts", kind="multi-label-segmentation", classes="blob, rest, unseen"),
    "dose": Task(name="dose", kind="dose", classes="blob", range="0, 80"),
    "findings": Task(name="findings", kind="multi-label", classes="a, b"),
    "age": Task(name="age", kind="regression", classes="years", range="0, 100"),
}

LEVELS = torch.tensor([-1, 0, 20_000, 32_000])  # of the dose: impossible, none, around the blob, in it

TENTH = 37  # voxels of 0.1 cm^3


def ellipses(dims: int, side: int, count: int, channels: int = 1) -> Batch:
    """Return images of a bright ellipse each on a darker ground, standardised, with labels of every kind.

    Of the first two there is a mask only. The third of the parts is unmarked; dose is impossible on the left.
    """
    generator = torch.Generator().manual_seed(3)
    place = torch.stack(torch.meshgrid(*[torch.arange(side) + 0.5] * dims, indexing="ij")[::-1])  # x first
    middle = side * (0.4 + 0.2 * torch.rand(count, dims, generator=generator))
    half = side * (0.12 + 0.08 * torch.rand(count, dims, generator=generator))
    wide = (-1, dims, *[1] * dims)
    blob = ((place - middle.reshape(wide)) / half.reshape(wide)).square().sum(1) < 1  # (B, *S)
    images = (60 + 140 * blob[:, None].float()).expand(-1, channels, *[-1] * dims)
    mask, every, rest = blob.long(), torch.arange(count), torch.arange(2, count)
    boxes = torch.zeros(count, 3, 2 * dims + 1)
    boxes[..., -1] = -1
    boxes[:, 1] = torch.cat([middle - half, 2 * half, torch.ones(count, 1)], 1)  # between two that are padding
    steps = LEVELS[torch.where(place[0] < 3, 0, torch.where(blob, 3, torch.where(place[0] < side / 2, 1, 2)))]
    dose = torch.stack([steps, mask * -32768 + 1, torch.full_like(mask, TENTH)], 1)
    return Batch(standardise(images), {
        "grade": Labels(rest, torch.arange(len(rest)) % 2), "blob": Labels(every, mask),
        "parts": Labels(rest, torch.stack([mask, 1 - mask, torch.full_like(mask, 255)], 1)[rest]),
        "boxes": Labels(rest, boxes[rest]), "dose": Labels(rest.flip(0), dose[rest.flip(0)]),
        "findings": Labels(rest, torch.tensor([[0, 1]]).repeat(len(rest), 1)),
        "age": Labels(every, every[:, None] / 10),
    })  # fmt: skip


def strongly(given: Batch, seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    return augment(given, STRONG, "strong")


def centres(inside: Tensor) -> Tensor:
    """Return the middle (B, d) of what is inside of each image."""
    return torch.stack([mask.nonzero().float().mean(0) for mask in inside])


@pytest.mark.parametrize(("dims", "channels"), [(2, 1), (2, 3), (3, 1)])
def test_strong_moves_image_masks_dose_and_boxes_together(dims: int, channels: int) -> None:
    given, original = (ellipses(dims, 48 if dims == 2 else 36, 12 if dims == 2 else 6, channels) for _ in range(2))
    moved = strongly(given)
    assert torch.equal(given.images, original.images)  # what came is left as it was
    assert all(torch.equal(given.labels[name].values, original.labels[name].values) for name in original.labels)
    assert list(moved.labels) == list(given.labels)
    assert all(torch.equal(moved.labels[name].rows, given.labels[name].rows) for name in given.labels)
    assert all(moved.labels[name].values.dtype == own.values.dtype for name, own in given.labels.items())
    assert moved.images.dtype == torch.float32 and moved.images.shape == given.images.shape

    blob = moved.labels["blob"].values
    grey = moved.images.mean(1)
    low, high = (grey.flatten(1).quantile(q, 1).reshape(-1, *[1] * dims) for q in (0.5, 0.99))
    bright = grey > (low + high) / 2
    assert blob.unique().tolist() == [0, 1] and not (blob == given.labels["blob"].values).flatten(1).all(1).any()
    both, either = (bright & blob.bool()).flatten(1).sum(1), (bright | blob.bool()).flatten(1).sum(1)
    assert (both / either).mean() > 0.8 and (both / either).min() > 0.65  # a small blob is mostly edge
    assert (centres(bright) - centres(blob.bool())).mean(0).abs().max() < 0.2  # no half pixel apart

    parts, rows = moved.labels["parts"].values, moved.labels["parts"].rows
    assert torch.equal(parts[:, 0], blob[rows])
    inside = parts[:, :2].sum(1)
    assert inside.unique().tolist() == [0, 1]  # 0 beyond the edge
    assert (parts[:, 2] == 255).all()

    steps, bits, tenth = moved.labels["dose"].values.unbind(1)
    rows = moved.labels["dose"].rows
    assert torch.equal(steps.unique(), LEVELS) and torch.equal(steps == 32_000, blob[rows] == 1)
    assert (steps[inside.flip(0) == 0] == -1).all() and (bits[inside.flip(0) == 0] == 0).all()
    assert torch.equal(bits[inside.flip(0) == 1], 1 - 32_768 * blob[rows][inside.flip(0) == 1])
    assert (tenth == TENTH).all()

    marked = moved.labels["boxes"].values[:, 1]
    middles = (marked[:, :dims] + marked[:, dims : 2 * dims] / 2 - 0.5).flip(1)
    assert (middles - centres(blob[moved.labels["boxes"].rows].bool())).mean(0).abs().max() < 0.2
    for row, (before, box, after) in zip(moved.labels["boxes"].rows, moved.labels["boxes"].values, strict=True):
        places = blob[row].nonzero().flip(1).float()  # x first
        assert (places.amin(0) - box[:dims]).abs().max() <= 1.5
        assert (places.amax(0) + 1 - box[:dims] - box[dims : 2 * dims]).abs().max() <= 1.5
        assert (before[-1], box[-1], after[-1]) == (-1, 1, -1)
    for name in ("grade", "findings", "age"):
        assert torch.equal(moved.labels[name].values, given.labels[name].values)


@pytest.mark.parametrize("dims", [2, 3])
def test_strong_augmentation_depends_only_on_the_seed(dims: int) -> None:
    given = ellipses(dims, side=24, count=4)
    first = strongly(given)
    strongly(ellipses(dims, side=16, count=3), seed=9)  # another site in between
    np.random.seed(5)
    second, other = strongly(given), strongly(given, seed=1)
    assert torch.equal(first.images, second.images) and not torch.equal(first.images, other.images)
    for name, own in first.labels.items():
        assert torch.equal(own.values, second.labels[name].values)
    torch.manual_seed(0)
    batches = [augment(given, STRONG, "strong").images for _ in range(2)]
    assert not torch.equal(*batches)  # nor does every batch go one way
    assert not torch.equal(batches[0][0] > 0, batches[0][1] > 0)


@pytest.mark.parametrize("dims", [2, 3])
def test_strong_accepts_empty_labels(dims: int) -> None:
    flat = torch.zeros(2, 1, *[16] * dims)
    assert all(strongly(Batch(flat, {}), seed).images.isfinite().all() for seed in range(8))
    none = Labels(torch.tensor([1]), torch.zeros(1, 0, 2 * dims + 1))
    moved = strongly(Batch(flat, {"boxes": none, "grade": Labels(torch.arange(2), torch.ones(2).long())}))
    assert moved.labels["boxes"].values.shape == none.values.shape
    full = Labels(torch.tensor([0]), torch.full((1, 3, *[16] * dims), 255))  # nothing marked at all
    assert (strongly(Batch(flat, {"parts": full})).labels["parts"].values == 255).all()


def test_strong_mirrors_half_of_the_time_and_keeps_what_is_up() -> None:
    down, right = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    images = strongly(Batch(standardise((down + 2 * right).expand(200, 1, 16, 16)), {}), seed=2).images[:, 0]
    assert 70 <= (images[:, :, 4:8].mean((1, 2)) > images[:, :, 8:12].mean((1, 2))).sum() <= 130
    assert (images[:, 4:8].mean((1, 2)) < images[:, 8:12].mean((1, 2))).float().mean() > 0.8  # turned by little


def turned(degrees: float, shift: tuple[float, float] = (0.0, 0.0), side: float = 40) -> Tensor:
    """Return where points of a picture go that is turned around its middle, and then shifted: (1, 2, 3)."""
    c, s = cos(radians(degrees)), sin(radians(degrees))
    turn = torch.tensor([[c, -s], [s, c]])
    return torch.cat([turn, (torch.full((2,), side / 2) - turn @ torch.full((2,), side / 2))[:, None]], 1)[None] + (
        torch.tensor([[0.0, 0.0, shift[0]], [0.0, 0.0, shift[1]]])
    )


@pytest.mark.parametrize(
    ("box", "degrees", "shift", "expected"),
    [
        ((10, 16, 20, 8, 1), 0, (0, 0), (10, 16, 20, 8, 1)),
        ((10, 16, 20, 8, 1), 90, (0, 0), (16, 10, 8, 20, 1)),
        ((14, 14, 12, 12, 0), 33, (2, 1), (16, 15, 12, 12, 0)),  # a circle stays one
        ((10, 16, 20, 8, 1), 0, (15, 0), (25, 16, 15, 8, 1)),
        ((10, 16, 20, 8, 1), 0, (24.5, 0), (34.5, 16, 5.5, 8, -1)),  # 0.28 of it is left
        ((10, 16, 20, 8, 1), 0, (23.5, 0), (33.5, 16, 6.5, 8, 1)),
        ((0, 0, 0, 0, -1), 0, (0, 0), (0, 0, 0, 0, -1)),
    ],
)
def test_boxes_move_with_the_ellipses_in_them(
    box: tuple[float, ...], degrees: float, shift: tuple[float, float], expected: tuple[float, ...]
) -> None:
    result = move_boxes(torch.tensor([[box]]).float(), turned(degrees, shift), 40)
    torch.testing.assert_close(result, torch.tensor([[expected]]).float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("make", [image_transforms, volume_transforms])
@pytest.mark.parametrize("name", PROBABILITIES)
def test_changes_of_appearance_move_nothing(
    make: Callable[[int], tuple[Movement, Appearance]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dims = 2 if make is image_transforms else 3
    image = torch.zeros(1, *[24] * dims)
    image[(0, *[slice(8, 16)] * dims)] = 2
    for other in PROBABILITIES:
        monkeypatch.setitem(PROBABILITIES, other, float(other == name))
    torch.manual_seed(0)
    change_appearance = make(24)[1]
    for _ in range(4):
        result = change_appearance(image.clone())
        assert result.shape == image.shape and result.isfinite().all()
        assert (centres(result > 1) - 11.5).abs().max() < 0.25
        assert name not in ("blur", "low-resolution", "noise") or not torch.equal(result, image)


def test_gamma_keeps_mean_and_deviation() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 32, 32)
    changed = change_gamma(image)
    assert not torch.allclose(changed, image, atol=0.01)
    torch.testing.assert_close(torch.stack(torch.std_mean(changed)), torch.stack(torch.std_mean(image)))
    assert torch.equal(changed.flatten().argsort(), image.flatten().argsort())


def test_real_images_stay_images(monkeypatch: pytest.MonkeyPatch) -> None:
    with ZipFile(ROOT / "mtfed/data/sample/cxr.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("images/"))[:16]
        films = [np.array(Image.open(BytesIO(archive.read(name))).convert("L").resize((64, 64))) for name in names]
    given = Batch(standardise(torch.from_numpy(np.stack(films))[:, None]), {})
    for chance in (None, 1.0):  # as it is, and with all changes of looks at once
        for name in PROBABILITIES:
            monkeypatch.setitem(PROBABILITIES, name, chance or PROBABILITIES[name])
        deviation, mean = torch.std_mean(strongly(given).images, dim=(1, 2, 3))
        assert mean.abs().max() < 1.2 and mean.median().abs() < 0.3  # about as they came
        assert deviation.min() > 0.4 and deviation.max() < 1.5
