"""Strong augmentation: images by torchvision's transforms, volumes by MONAI's, one at a time.

What may change, how far and how often follows nnU-Net (Isensee et al., Nature Methods 18:203, 2021), with one
difference: all images are rotated a little, as patients are, instead of some images a lot. As in nnU-Net's default,
there is no elastic deformation.

Pixels that come from beyond the edge of an image are as bright as its edge is on average. Images therefore roughly keep
their mean and deviation, which models expect. Labels are empty there.

A rotated box must become an upright box. torchvision takes the bounding box of the rotated corners, which is too large
because lesions have no corners (of lesions in ultrasound, rotated by 10 degrees, it overlaps with the true box by
0.76). MONAI takes the bounding box of only two corners. Here it becomes the bounding box of the rotated ellipse that
the box contains (0.90), as Kalra et al. recommend (Towards Rotation Invariance in Object Detection, ICCV 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from math import radians
from typing import Any

import torch
from torch import Tensor

from ..data.shard import Batch, Labels
from ..startup import garbage_collection_paused, import_torchvision
from ..tasks.kind import kind_of
from ..tasks.task import Task
from .affine_augment import SHIFT, ZOOM, clip_boxes

import_torchvision()  # repaired, before the functions below or MONAI import it

ROTATION = 10.0  # degrees in either direction; of volumes around each axis
SHEAR = 5.0  # degrees in either direction, of images; volumes are zoomed by different factors along their axes instead
BRIGHTNESS = CONTRAST = 0.25  # more or less, as a share
COLOUR = (0.2, 0.02)  # colour images: change of saturation, as a share, and rotation of hues, as part of the circle
GAMMA = (0.7, 1.5)
BLUR = (0.5, 1.0)  # deviation in pixels
RESOLUTION = (0.5, 1.0)  # shares of the original resolution
MAX_NOISE = 0.3  # in standard deviations of the image
PROBABILITIES = {"brightness": 0.15, "contrast": 0.15, "gamma": 0.3, "gamma-inverted": 0.1, "colour": 0.15}
PROBABILITIES |= {"blur": 0.2, "low-resolution": 0.25, "noise": 0.1}
MIN_VALUE = -(2**15)  # smallest value of a map, reached by the bit masks of a dose's structures

# Moves an image (C, *S) and the planes (P, *S) of its maps, whose values are at least 1. Returns both (the planes are 0
# beyond the edge of the image) and the affine transform (d, d + 1) of points, x first, in pixels from the corner.
Movement = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
# Changes the appearance of an image (C, *S) whose darkest pixel is 0.
Appearance = Callable[[Tensor], Tensor]


def augment_strongly(batch: Batch, tasks: dict[str, Task]) -> Batch:
    """Return a batch with images and labels changed at random; see :func:`~.augment.augment` for the arguments."""
    size = batch.images.shape[2:]
    dims, side = len(size), size[0]
    move, change_appearance = (image_transforms if dims == 2 else volume_transforms)(side)
    edge = torch.ones(size, dtype=torch.bool)
    edge[(slice(1, -1),) * dims] = False
    geometry = {name: tasks[name].spec.geometry for name in batch.labels}
    maps = {name: Labels(own.rows, own.values.clone()) for name, own in batch.labels.items() if geometry[name] == "map"}
    images = torch.empty_like(batch.images)
    affines = torch.empty(len(images), dims, dims + 1)
    for row, image in enumerate(batch.images):
        own_maps = {name: labels.values[labels.rows == row].reshape(-1, *size) for name, labels in maps.items()}
        planes = torch.cat([image.new_empty(0, *size), *(values - MIN_VALUE + 1 for values in own_maps.values())])
        edge_mean = image[:, edge].mean(1).reshape(-1, *[1] * dims)
        moved, planes, affines[row] = move(image - edge_mean, planes)
        moved = moved + edge_mean
        darkest = moved.min()
        images[row] = change_appearance(moved - darkest) + darkest
        counts = [len(values) for values in own_maps.values()]
        for (name, before), plane in zip(own_maps.items(), planes.split(counts), strict=True):
            if len(before):
                outside = kind_of(tasks[name]).outside(before.flatten(1)[:, 0]).reshape(-1, *[1] * dims)
                after = torch.where(plane > 0, plane.round().to(before.dtype) + MIN_VALUE - 1, outside)
                maps[name].values[maps[name].rows == row] = after.reshape(1, *maps[name].values.shape[1:])
    labels = batch.labels | maps
    for name, own in batch.labels.items():
        if geometry[name] == "boxes":
            labels[name] = Labels(own.rows, move_boxes(own.values, affines[own.rows], side))
    return Batch(images, labels, batch.words)


def move_boxes(values: Tensor, affines: Tensor, side: int) -> Tensor:
    """Return the clipped bounding boxes (M, N, 2d + 1) of the transformed ellipses in the given boxes.

    ``values`` are corners and sizes in pixels, x first, and classes; ``affines`` (M, d, d + 1) transform points. A box
    becomes padding if too little of it remains in the image, whose side is in pixels.
    """
    dims = affines.shape[1]
    low, size, classes = values[..., :dims], values[..., dims : 2 * dims], values[..., 2 * dims :]
    matrix, shift = affines[..., :dims].transpose(1, 2), affines[:, None, :, dims]
    centre = (low + size / 2) @ matrix + shift
    half = ((size / 2).square() @ matrix.square()).sqrt()
    ends = torch.stack([centre - half, centre + half])
    return clip_boxes(ends, (2 * half).prod(-1, keepdim=True), classes, side)


def image_transforms(side: int) -> tuple[Movement, Appearance]:
    """Return the transforms of images of a side. The import takes seconds: torchvision's v2 loads torch's compiler."""
    with garbage_collection_paused():
        from torchvision import tv_tensors
        from torchvision.transforms import v2

    def lower_resolution(image: Tensor) -> Tensor:
        small = [max(1, round(side * uniform(*RESOLUTION)))] * 2
        return v2.functional.resize(v2.functional.resize(image, small, antialias=True), [side, side], antialias=True)

    geometry = v2.Compose([
        v2.RandomHorizontalFlip(),
        v2.RandomAffine(ROTATION, (SHIFT, SHIFT), (1 - ZOOM, 1 + ZOOM), [-SHEAR, SHEAR] * 2,
                        v2.InterpolationMode.BILINEAR),
    ])  # fmt: skip
    changes: dict[str, Appearance] = {
        "brightness": v2.ColorJitter(brightness=BRIGHTNESS),
        "contrast": v2.ColorJitter(contrast=CONTRAST),
        "colour": v2.ColorJitter(saturation=COLOUR[0], hue=COLOUR[1]),
        "gamma": change_gamma,
        "gamma-inverted": lambda image: 1 - change_gamma(1 - image),
        "blur": v2.GaussianBlur(5, BLUR),
        "low-resolution": lower_resolution,
        "noise": lambda image: image + uniform(0, MAX_NOISE) * image.std() * torch.randn_like(image),
    }
    # Three points determine the affine transform; boxes of size 0 represent them.
    middle, step = torch.full((2,), side / 2), side / 4
    points = torch.cat([middle + step * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.zeros(3, 2)], 1)

    def move(image: Tensor, planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        boxes = tv_tensors.BoundingBoxes(points, format="XYWH", canvas_size=(side, side))
        sample = {"image": tv_tensors.Image(image), "points": boxes}
        moved = geometry(sample | ({"planes": tv_tensors.Mask(planes)} if len(planes) else {}))
        targets = moved["points"].as_subclass(Tensor)[:, :2]
        matrix = (targets[1:] - targets[0]).T / step
        affine = torch.cat([matrix, (targets[0] - matrix @ middle)[:, None]], 1)
        return moved["image"].as_subclass(Tensor), moved.get("planes", planes).as_subclass(Tensor), affine

    def change_appearance(image: Tensor) -> Tensor:
        brightest = image.max().clamp_min(1e-6)
        image = image / brightest  # torchvision expects values from 0 to 1
        for number, (name, change) in zip(torch.rand(len(changes)).tolist(), changes.items(), strict=True):
            if number < PROBABILITIES[name]:
                image = change(image)
        return image * brightest

    return move, change_appearance


def volume_transforms(side: int) -> tuple[Movement, Appearance]:
    """Return the transforms of volumes of a side."""
    from monai import transforms as monai

    both: Any = {"keys": ["image", "planes"], "allow_missing_keys": True}
    geometry = monai.Compose([
        monai.RandFlipd(**both, prob=0.5, spatial_axis=2),
        monai.RandAffined(**both, prob=1.0, rotate_range=(radians(ROTATION),) * 3, translate_range=(SHIFT * side,) * 3,
                          scale_range=(ZOOM,) * 3, mode=["bilinear", "nearest"], padding_mode="zeros"),
    ])  # fmt: skip
    odds = PROBABILITIES
    appearance = monai.Compose([
        monai.RandScaleIntensity(prob=odds["brightness"], factors=BRIGHTNESS),
        monai.RandScaleIntensityFixedMean(prob=odds["contrast"], factors=CONTRAST, preserve_range=True),
        monai.RandAdjustContrast(prob=odds["gamma"], gamma=GAMMA, retain_stats=True),
        monai.RandAdjustContrast(prob=odds["gamma-inverted"], gamma=GAMMA, retain_stats=True, invert_image=True),
        monai.RandGaussianSmooth(prob=odds["blur"], sigma_x=BLUR, sigma_y=BLUR, sigma_z=BLUR),
        # The default, nearest neighbours on the way down, would move the image by up to half a voxel.
        monai.RandSimulateLowResolution(prob=odds["low-resolution"], zoom_range=RESOLUTION, downsample_mode="area",
                                        upsample_mode="trilinear"),
        monai.RandGaussianNoise(prob=odds["noise"], std=MAX_NOISE),
    ])  # fmt: skip
    for transform in (geometry, appearance):
        transform.set_random_state(int(torch.randint(2**31, ())))  # MONAI draws from numpy's generator

    def move(volume: Tensor, planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        moved: Any = geometry({"image": volume} | ({"planes": planes} if len(planes) else {}))
        # MONAI's affine maps new indices z, y, x to old ones.
        forward = torch.linalg.inv(moved["image"].affine).float()
        matrix, shift = forward[:3, :3].flip(0, 1), forward[:3, 3].flip(0)
        half = torch.full((3,), 0.5)  # from a voxel's corner to its centre, which has its index
        affine = torch.cat([matrix, (shift + half - matrix @ half)[:, None]], 1)
        return as_plain(moved["image"]), as_plain(moved.get("planes", planes)), affine

    def as_plain(image: Any) -> Tensor:
        return image.as_tensor() if hasattr(image, "as_tensor") else image

    return move, lambda volume: as_plain(appearance(volume))


def change_gamma(image: Tensor) -> Tensor:
    """Return an image of values from 0 to 1 to the power of a random gamma, with its mean and deviation preserved."""
    changed = image.clamp(0, 1) ** uniform(*GAMMA)
    return (changed - changed.mean()) * (image.std() / changed.std().clamp_min(1e-6)) + image.mean()


def uniform(low: float, high: float) -> float:
    """Return a random number between two."""
    return float(torch.empty(()).uniform_(low, high))
