"""Feature shift: make the images of simulated sites differ like images from different scanners.

Each site gets a response (gain, offset, gamma), a resolution and noise of its own, drawn from ``partition-seed`` and
its key; ``feature-shift`` is the size of the differences, from 0 for none. The shift applies to the images that
simulated sites train and validate with. The server's test images never change, so a model is tested on images from none
of the scanners. A site's normalisation undoes gain and offset, except for values that were cut off.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import Config

# The largest differences at feature-shift 1.
GAIN, GAMMA = 0.3, 0.6  # logarithms, in both directions
OFFSET = 0.12  # fraction of the range, in both directions
BLUR = 0.02  # standard deviation, fraction of the image's side
NOISE = 0.05  # standard deviation, fraction of the range
SEED_STEP = 0x9E3779B1  # between the seeds of two rows; odd, so that no two rows have the same seed


@dataclass(frozen=True)
class Scanner:
    """How the images of a simulated site are changed."""

    gain: float  # gain of contrast, around the middle of the range
    offset: float  # fraction of the range
    gamma: float
    blur: float  # standard deviation, fraction of the image's side
    noise: float  # standard deviation, fraction of the range
    seed: int


Scanners = Scanner | Mapping[int, Scanner]  # one scanner for all images, or one per row number


def site_shift(config: Config, key: str) -> Scanner | None:
    """Return the scanner of a simulated site; ``None`` if sites do not differ."""
    if not (strength := config.feature_shift):
        return None
    rng = random.Random(f"{config.partition_seed}/{key}/scanner")
    gain, offset, gamma = (strength * rng.uniform(-limit, limit) for limit in (GAIN, OFFSET, GAMMA))
    blur, noise = (strength * rng.uniform(0, limit) for limit in (BLUR, NOISE))
    return Scanner(math.exp(gain), offset, math.exp(gamma), blur, noise, rng.getrandbits(32))


def shift(images: Tensor, rows: Tensor, scanners: Scanners) -> Tensor:
    """Return images as a site's scanner would have taken them.

    The result for an image does not depend on its batch: its noise is drawn from the number of its row. Zeros stay 0,
    because most of them are the padding around an image.

    Args:
        images: (B, C, *S) uint8; they are not changed.
        rows: (B,) the numbers of their rows, :attr:`.manifest.Row.number`.
        scanners: the scanner of :func:`site_shift`, or in a pool the scanner of each image.
    """
    if isinstance(scanners, Scanner):
        return _shift(images, rows, scanners)
    out = images.clone()
    by_scanner: dict[Scanner, list[int]] = {}
    for i, row in enumerate(rows.tolist()):
        by_scanner.setdefault(scanners[row], []).append(i)
    for scanner, index in by_scanner.items():
        out[index] = _shift(images[index], rows[index], scanner)
    return out


def _shift(images: Tensor, rows: Tensor, scanner: Scanner) -> Tensor:
    import torch

    values = _blur(images.float() / 255, scanner.blur * images.shape[-1])
    values = values.pow_(scanner.gamma).sub_(0.5).mul_(scanner.gain).add_(0.5 + scanner.offset)
    if scanner.noise:
        noise = torch.empty_like(values[:, :1])  # all channels of a grey image are the same
        for of_image, row in zip(noise, rows.tolist(), strict=True):
            seed = (scanner.seed + row * SEED_STEP) % 2**32  # a generator on the CPU uses no more bits
            of_image.normal_(generator=torch.Generator().manual_seed(seed))
        values += noise * scanner.noise
    return values.clamp_(0, 1).mul_(255).round_().to(images.dtype) * (images > 0)


def _blur(values: Tensor, deviation: float) -> Tensor:
    """Return images (B, C, *S) blurred with a Gaussian of a standard deviation in pixels, one axis after the other."""
    import torch
    import torch.nn.functional as F

    radius = math.ceil(3 * deviation)
    if deviation < 0.2:  # the neighbours would contribute less than a grey level
        return values
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / deviation) ** 2)
    kernel /= kernel.sum()
    dims = values.ndim - 2
    convolve = F.conv2d if dims == 2 else F.conv3d
    flat = values.flatten(0, 1)[:, None]
    for axis in range(dims):
        padding = [0, 0] * dims
        padding[2 * (dims - 1 - axis)] = padding[2 * (dims - 1 - axis) + 1] = radius
        shape = [1, 1] + [len(kernel) if i == axis else 1 for i in range(dims)]
        flat = convolve(F.pad(flat, padding, mode="replicate"), kernel.reshape(shape))
    return flat.reshape(values.shape)
