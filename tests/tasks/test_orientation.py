"""The symmetries of the square and the cube form groups, and every image is moved by the one that is its value."""

from __future__ import annotations

import pytest
import torch

from helpers.pretext import copies
from mtfed.tasks.orientation import move, symmetries


@pytest.mark.parametrize(("dims", "order"), [(2, 8), (3, 48)])
def test_the_symmetries_are_a_group(dims: int, order: int) -> None:
    image = torch.arange(3.0**dims).view(1, 1, *(3,) * dims)
    moved = {tuple(move(image, symmetry).flatten().tolist()) for symmetry in symmetries(dims)}
    assert len(symmetries(dims)) == len(moved) == order
    assert torch.equal(move(image, symmetries(dims)[0]), image)
    for first in symmetries(dims):
        of_both = {tuple(move(move(image, first), second).flatten().tolist()) for second in symmetries(dims)}
        assert of_both == moved


def test_the_symmetries_of_the_square_are_turns_and_mirror_images() -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3)
    turns = [torch.rot90(x, quarter, (2, 3)) for x in (image, image.flip(3)) for quarter in range(4)]
    moved = [move(image, symmetry) for symmetry in symmetries(2)]
    assert all(any(torch.equal(a, b) for b in moved) for a in turns)


@pytest.mark.parametrize("shape", [(40, 1, 6, 6), (100, 3, 4, 4, 4)])
def test_the_value_is_the_symmetry(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape)
    moved, values = copies("orientation", images)
    choices = symmetries(len(shape) - 2)
    for image, result, value in zip(images, moved, values, strict=True):
        assert torch.equal(move(image[None], choices[int(value)])[0], result)
    assert len(values.unique()) > len(choices) / 2
