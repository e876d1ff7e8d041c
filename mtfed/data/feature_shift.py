"""Feature shift: simulated sites whose images differ as those of different scanners do.

For studies of what such differences cost. Each site is given a response (gain, offset, gamma), a resolution and a noise
of its own, by ``partition-seed`` and its key; ``feature-shift`` says how far apart sites are, 0 being none. It reaches
the images that simulated sites train and validate on. The server's test images are never changed, so a model is tested
on images of none of the scanners; and a site's normalisation undoes gain and offset, as far as nothing is cut off.
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

# How far a site can be from the others where feature-shift is 1.
GAIN, GAMMA = 0.3, 0.6  # logarithms, either way
OFFSET = 0.12  # of the range, either way
BLUR = 0.02  # deviation, of the image's side
NOISE = 0.05  # deviation, of the range
SPREAD = 0x9E3779B1  # odd, so that no two rows have one seed


@dataclass(frozen=True)
class Scanner:
    """How a simulated site's images come out."""

    gain: float  # of contrast, around the middle of the range
    offset: float  # of the range
    gamma: float
    blur: float  # deviation, of the image's side
    noise: float  # deviation, of the range
    seed: int


Scanners = Scanner | Mapping[int, Scanner]  # of all images, or of each by its row's number


def site_shift(config: Config, key: str) -> Scanner | None:
    """Return what a simulated site's images are taken with; ``None`` if sites do not differ."""
    if not (strength := config.feature_shift):
        return None
    drawn = random.Random(f"{config.partition_seed}/{key}/scanner")
    gain, offset, gamma = (strength * drawn.uniform(-most, most) for most in (GAIN, OFFSET, GAMMA))
    blur, noise = (strength * drawn.uniform(0, most) for most in (BLUR, NOISE))
    return Scanner(math.exp(gain), offset, math.exp(gamma), blur, noise, drawn.getrandbits(32))


def shift(images: Tensor, rows: Tensor, scanners: Scanners) -> Tensor:
    """Return images as a site's scanner would have taken them.

    An image comes out the same in whatever batch it is: its noise is drawn by its row's number. What is 0 stays 0, as
    most of it is the frame around an image.

    Args:
        images: (B, C, *S) uint8, left as they are.
        rows: (B,) their rows' numbers, :attr:`.manifest.Row.number`.
        scanners: of :func:`site_shift`, or of a pool's images each its own.
    """
    if isinstance(scanners, Scanner):
        return _shift(images, rows, scanners)
    out = images.clone()
    by_scanner: dict[Scanner, list[int]] = {}
    for i, row in enumerate(rows.tolist()):
        by_scanner.setdefault(scanners[row], []).append(i)
    for scanner, places in by_scanner.items():
        out[places] = _shift(images[places], rows[places], scanner)
    return out


def _shift(images: Tensor, rows: Tensor, scanner: Scanner) -> Tensor:
    import torch

    values = _blur(images.float() / 255, scanner.blur * images.shape[-1])
    values = values.pow_(scanner.gamma).sub_(0.5).mul_(scanner.gain).add_(0.5 + scanner.offset)
    if scanner.noise:
        noise = torch.empty_like(values[:, :1])  # the channels of a grey image are one
        for drawn, row in zip(noise, rows.tolist(), strict=True):
            seed = (scanner.seed + row * SPREAD) % 2**32  # which is all that a generator of the CPU takes
            drawn.normal_(generator=torch.Generator().manual_seed(seed))
        values += noise * scanner.noise
    return values.clamp_(0, 1).mul_(255).round_().to(images.dtype) * (images > 0)


def _blur(values: Tensor, deviation: float) -> Tensor:
    """Return images (B, C, *S) under a Gaussian of a deviation in pixels, along one axis after the other."""
    import torch
    import torch.nn.functional as F

    reach = math.ceil(3 * deviation)
    if deviation < 0.2:  # the neighbours would count less than a grey level
        return values
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation) ** 2)
    line /= line.sum()
    dims = values.ndim - 2
    convolve = F.conv2d if dims == 2 else F.conv3d
    flat = values.flatten(0, 1)[:, None]
    for axis in range(dims):
        around = [0, 0] * dims
        around[2 * (dims - 1 - axis)] = around[2 * (dims - 1 - axis) + 1] = reach
        shape = [1, 1] + [len(line) if i == axis else 1 for i in range(dims)]
        flat = convolve(F.pad(flat, around, mode="replicate"), line.reshape(shape))
    return flat.reshape(values.shape)
