"""Medformer's embedding of the patches of images and volumes of any size."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..config import Form
from ..errors import MtfedError
from .decoders.layers import CONVOLUTIONS, block
from .encoders import FeatureInfo

STEM_STRIDE = 4
FREQUENCIES = 6  # periods of position features along an axis: 2, 1, 1/2, ... of the image's side


class PatchEmbedding(nn.Module):
    """Embed patches as tokens: (B, C, *S) to a stem (B, D/2, *S/4) and tokens (B, D, *S/P).

    Two strided convolutions come before the embedding, because a transformer trains better on their output (Xiao et
    al., Early convolutions help transformers see better, NeurIPS 2021), and because masks need outlines. Positions are
    sines and cosines of the coordinates, in sides of the image, so that the embedding serves every size.

    Raises:
        MtfedError: if the size of patches is not a multiple of 4, or does not divide the image's side.
    """

    def __init__(self, form: Form, patch: int, width: int) -> None:
        super().__init__()
        if patch % STEM_STRIDE:
            raise MtfedError(
                f"Config key encoder: medformer expects patches whose side is a multiple of {STEM_STRIDE} pixels, got "
                f"{patch}; choose an encoder with such patches."
            )
        self.patch, dims = patch, form.dimensions
        self.check(form.shape[1:])
        quarter, half = max(width // 4, 1), max(width // 2, 1)
        self.stem = nn.Sequential(
            block(form.channels, quarter, stride=2, dims=dims), block(quarter, half, stride=2, dims=dims)
        )
        side = patch // STEM_STRIDE
        self.tokens = CONVOLUTIONS[dims](half, width, side, stride=side)
        self.positions = nn.Linear(dims * (2 * FREQUENCIES + 1), width, bias=False)
        self.info = FeatureInfo(dims, form.channels, [half, *[width] * 3], [STEM_STRIDE, *[patch] * 3], width)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        self.check(image.shape[2:])
        stem = self.stem(image)
        tokens = self.tokens(stem)
        positions = self.embed_positions(cell_centres(tokens.shape[2:]).to(self.positions.weight))
        return stem, tokens + positions.movedim(-1, 0)

    def embed_positions(self, coordinates: Tensor) -> Tensor:
        """Return the embeddings (..., D) of coordinates (..., dims), which are between -1 and 1 in the image."""
        return self.positions(position_features(coordinates))

    def check(self, size: tuple[int, ...]) -> None:
        """Refuse a size that patches do not divide."""
        if any(side % self.patch for side in size):
            sides, setting = "x".join(map(str, size)), "image-size" if len(size) == 2 else "volume-size or image-size"
            raise MtfedError(
                f"Config key {setting}: medformer expects a multiple of its patches' side of {self.patch} pixels, got "
                f"{sides}; choose another size, or an encoder with other patches."
            )


def cell_centres(size: tuple[int, ...]) -> Tensor:
    """Return the coordinates (*s, dims) of the cells of a grid, along each axis between -1 and 1."""
    axes = torch.meshgrid(*((torch.arange(side) + 0.5) * (2 / side) - 1 for side in size), indexing="ij")
    return torch.stack(axes, -1)


def position_features(coordinates: Tensor) -> Tensor:
    """Return the features (..., F) of coordinates (..., dims): themselves, and their sines and cosines.

    Sines and cosines are as large as their periods, so that close positions have similar features.
    """
    periods = 2.0 / 2.0 ** torch.arange(FREQUENCIES, device=coordinates.device)
    angles = coordinates[..., None] * (2 * math.pi / periods)
    waves = [(periods * wave).flatten(-2) for wave in (angles.sin(), angles.cos())]
    return torch.cat([2 * coordinates, *waves], -1)


def spread_points(count: int, dims: int) -> Tensor:
    """Return points (N, dims) that are spread evenly over the cube from -1 to 1, as are their projections on its faces.

    They are those of Roberts' R sequence (2018), which generalises the sequence of the golden ratio to more dimensions.
    """
    ratio = 2.0
    for _ in range(64):  # the only root above 1 of x^(dims + 1) = x + 1
        ratio = (1 + ratio) ** (1 / (dims + 1))
    steps = ratio ** -torch.arange(1.0, dims + 1, dtype=torch.float64)
    return ((0.5 + torch.arange(1, count + 1)[:, None] * steps) % 1 * 2 - 1).float()
