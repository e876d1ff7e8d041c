"""Strong augmentation: pictures by torchvision's transforms, volumes by MONAI's, each image by itself.

What may change, how far and how often follows nnU-Net (Isensee et al., Nature Methods 18:203, 2021), but all turn a
little instead of some a lot, as patients do. As there, nothing is bent out of shape: elastic deformation is left out.

What comes into the image from beyond its edge is as bright as the edge is on average, so that images keep their mean
and deviation, by and large, as models expect them. Labels say that nothing is there.

A box that turns stays upright. torchvision takes the one around its corners, which is too wide, as lesions have none
(of lesions in ultrasound, turned by 10 degrees, it overlaps with the true one by 0.76), and MONAI that around two of
them only. Here it becomes the box around the ellipse in it (0.90), as Kalra et al. advise (Towards Rotation Invariance
in Object Detection, ICCV 2021).
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
from .augment import KEPT, SHIFT, ZOOM

TURN = 10.0  # degrees, either way; of volumes around each axis
SHEAR = 5.0  # degrees, either way, of pictures; volumes are zoomed by another factor along each axis instead
BRIGHTNESS = CONTRAST = 0.25  # up or down
COLOUR = (0.2, 0.02)  # of pictures that have any: saturation up or down, and how far around the circle of hues
GAMMA = (0.7, 1.5)
BLUR = (0.5, 1.0)  # deviation in pixels
COARSE = (0.5, 1.0)  # of the resolution
NOISE = 0.3  # most, in deviations of the image
CHANCE = {"brightness": 0.15, "contrast": 0.15, "gamma": 0.3, "gamma-inverted": 0.1, "colour": 0.15}
CHANCE |= {"blur": 0.2, "coarse": 0.25, "noise": 0.1}
LEAST = -(2**15)  # of all values of maps, as bits of a dose's structures have it

# An image (C, *S) and planes (P, *S) of maps, counted so that the least value is 1 -> both turned, 0 where they come
# from beyond the edge, and (d, d + 1) where points of the image went, x first, in pixels from its corner.
Turn = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
# An image (C, *S) whose darkest pixel is 0 -> what it may look like as well.
Look = Callable[[Tensor], Tensor]


def strong(batch: Batch, tasks: dict[str, Task]) -> Batch:
    """Return a batch with images and labels changed at random, by torch's default generator.

    Args:
        batch: on the CPU; left as it is.
        tasks: by name; a task's kind says whether its labels lie in the image.
    """
    size = batch.images.shape[2:]
    dims, side = len(size), size[0]
    turn, look = (pictures if dims == 2 else volumes)(side)
    rim = torch.ones(size, dtype=torch.bool)
    rim[(slice(1, -1),) * dims] = False
    geometry = {name: tasks[name].spec.geometry for name in batch.labels}
    maps = {
        name: Labels(held.rows, held.values.clone()) for name, held in batch.labels.items() if geometry[name] == "map"
    }
    images = torch.empty_like(batch.images)
    moves = torch.empty(len(images), dims, dims + 1)
    for row, image in enumerate(batch.images):
        here = {name: held.values[held.rows == row].reshape(-1, *size) for name, held in maps.items()}  # (P, *S)
        planes = torch.cat([image.new_empty(0, *size), *(found - LEAST + 1 for found in here.values())])
        edge = image[:, rim].mean(1).reshape(-1, *[1] * dims)
        turned, planes, moves[row] = turn(image - edge, planes)
        turned = turned + edge
        darkest = turned.min()
        images[row] = look(turned - darkest) + darkest
        for (name, found), plane in zip(here.items(), planes.split([len(x) for x in here.values()]), strict=True):
            if len(found):
                beyond = kind_of(tasks[name]).outside(found.flatten(1)[:, 0]).reshape(-1, *[1] * dims)
                values = torch.where(plane > 0, plane.round().to(found.dtype) + LEAST - 1, beyond)
                maps[name].values[maps[name].rows == row] = values.reshape(1, *maps[name].values.shape[1:])
    labels = {}
    for name, held in batch.labels.items():
        boxes = geometry[name] == "boxes"
        labels[name] = Labels(held.rows, move(held.values, moves[held.rows], side)) if boxes else maps.get(name, held)
    return Batch(images, labels)


def move(values: Tensor, moves: Tensor, side: int) -> Tensor:
    """Return boxes (M, N, 2d + 1) around where the ellipses in them went, cut off at the edge.

    One of which too little is left becomes padding.

    Args:
        values: corners and sizes in pixels, x first, and classes.
        moves: (M, d, d + 1), where points went.
        side: of the image, in pixels.
    """
    dims = moves.shape[1]
    low, size, classes = values[..., :dims], values[..., dims : 2 * dims], values[..., 2 * dims :]
    turn, shift = moves[..., :dims].transpose(1, 2), moves[:, None, :, dims]
    centre = (low + size / 2) @ turn + shift
    half = ((size / 2).square() @ turn.square()).sqrt()
    ends = torch.stack([centre - half, centre + half]).clamp(0, side)
    left = (ends[1] - ends[0]).prod(-1, keepdim=True) / (2 * half).prod(-1, keepdim=True).clamp_min(1e-9)
    return torch.cat([ends[0], ends[1] - ends[0], torch.where(left >= KEPT, classes, -1.0)], dim=-1)


def pictures(side: int) -> tuple[Turn, Look]:
    """Return how pictures of this side change. The import takes seconds, as torchvision brings torch's compiler."""
    import_torchvision()
    with garbage_collection_paused():
        from torchvision import tv_tensors
        from torchvision.transforms import v2

    def coarse(image: Tensor) -> Tensor:
        small = [max(1, round(side * uniform(*COARSE)))] * 2
        return v2.functional.resize(v2.functional.resize(image, small, antialias=True), [side, side], antialias=True)

    geometry = v2.Compose([
        v2.RandomHorizontalFlip(),
        v2.RandomAffine(
            TURN, (SHIFT, SHIFT), (1 - ZOOM, 1 + ZOOM), [-SHEAR, SHEAR] * 2, v2.InterpolationMode.BILINEAR
        ),
    ])  # fmt: skip
    looks: dict[str, Look] = {
        "brightness": v2.ColorJitter(brightness=BRIGHTNESS),
        "contrast": v2.ColorJitter(contrast=CONTRAST),
        "colour": v2.ColorJitter(saturation=COLOUR[0], hue=COLOUR[1]),
        "gamma": gamma,
        "gamma-inverted": lambda image: 1 - gamma(1 - image),
        "blur": v2.GaussianBlur(5, BLUR),
        "coarse": coarse,
        "noise": lambda image: image + uniform(0, NOISE) * image.std() * torch.randn_like(image),
    }
    # Three points are enough to know where all went; boxes without a size stand for them.
    middle, step = torch.full((2,), side / 2), side / 4
    points = torch.cat([middle + step * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.zeros(3, 2)], 1)

    def turn(image: Tensor, planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sample = {
            "image": tv_tensors.Image(image),
            "points": tv_tensors.BoundingBoxes(points, format="XYWH", canvas_size=(side, side)),
        }
        moved = geometry(sample | ({"planes": tv_tensors.Mask(planes)} if len(planes) else {}))
        found = moved["points"].as_subclass(Tensor)[:, :2]
        matrix = (found[1:] - found[0]).T / step
        where = torch.cat([matrix, (found[0] - matrix @ middle)[:, None]], 1)
        return moved["image"].as_subclass(Tensor), moved.get("planes", planes).as_subclass(Tensor), where

    def look(image: Tensor) -> Tensor:
        brightest = image.max().clamp_min(1e-6)
        image = image / brightest  # torchvision takes images to be of 0 to 1
        for drawn, (name, change) in zip(torch.rand(len(looks)).tolist(), looks.items(), strict=True):
            if drawn < CHANCE[name]:
                image = change(image)
        return image * brightest

    return turn, look


def volumes(side: int) -> tuple[Turn, Look]:
    """Return how volumes of this side change."""
    import_torchvision()
    from monai import transforms as monai

    both: Any = {"keys": ["image", "planes"], "allow_missing_keys": True}
    geometry = monai.Compose([
        monai.RandFlipd(**both, prob=0.5, spatial_axis=2),
        monai.RandAffined(
            **both,
            prob=1.0,
            rotate_range=(radians(TURN),) * 3,
            translate_range=(SHIFT * side,) * 3,
            scale_range=(ZOOM,) * 3,
            mode=["bilinear", "nearest"],
            padding_mode="zeros",
        ),
    ])  # fmt: skip
    looks = monai.Compose([
        monai.RandScaleIntensity(prob=CHANCE["brightness"], factors=BRIGHTNESS),
        monai.RandScaleIntensityFixedMean(prob=CHANCE["contrast"], factors=CONTRAST, preserve_range=True),
        monai.RandAdjustContrast(prob=CHANCE["gamma"], gamma=GAMMA, retain_stats=True),
        monai.RandAdjustContrast(prob=CHANCE["gamma-inverted"], gamma=GAMMA, retain_stats=True, invert_image=True),
        monai.RandGaussianSmooth(prob=CHANCE["blur"], sigma_x=BLUR, sigma_y=BLUR, sigma_z=BLUR),
        # Taking the nearest on the way down, as by default, would move the image by up to half a voxel.
        monai.RandSimulateLowResolution(
            prob=CHANCE["coarse"], zoom_range=COARSE, downsample_mode="area", upsample_mode="trilinear"
        ),
        monai.RandGaussianNoise(prob=CHANCE["noise"], std=NOISE),
    ])  # fmt: skip
    for part in (geometry, looks):
        part.set_random_state(int(torch.randint(2**31, ())))  # MONAI draws from numpy

    def turn(volume: Tensor, planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        moved = geometry({"image": volume} | ({"planes": planes} if len(planes) else {}))
        forward = torch.linalg.inv(moved["image"].affine).float()  # MONAI says where indices z, y, x came from
        matrix, shift = forward[:3, :3].flip(0, 1), forward[:3, 3].flip(0)
        half = torch.full((3,), 0.5)  # from a voxel's corner to its middle, which has its index
        where = torch.cat([matrix, (shift + half - matrix @ half)[:, None]], 1)
        return plain(moved["image"]), plain(moved.get("planes", planes)), where

    def plain(image: Tensor) -> Tensor:
        return image.as_tensor() if hasattr(image, "as_tensor") else image

    return turn, lambda volume: plain(looks(volume))


def gamma(image: Tensor) -> Tensor:
    """Return an image of values from 0 to 1 to the power of some gamma, with its mean and deviation as they were."""
    changed = image.clamp(0, 1) ** uniform(*GAMMA)
    return (changed - changed.mean()) * (image.std() / changed.std().clamp_min(1e-6)) + image.mean()


def uniform(low: float, high: float) -> float:
    """Return a number between two."""
    return float(torch.empty(()).uniform_(low, high))
