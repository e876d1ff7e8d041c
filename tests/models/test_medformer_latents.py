"""Medformer's latents: the memory that they read, the words added to them, and their positions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.medformers import images, medformer, rows, scheme, words
from mtfed.config import Form
from mtfed.models.attention import CrossAttentionBlock
from mtfed.models.medformer import LATENTS
from mtfed.models.patches import FREQUENCIES, PatchEmbedding, cell_centres, position_features, spread_points
from mtfed.models.system import MultiTaskModel

torch.set_num_threads(1)


def memory(model: MultiTaskModel, x: Tensor, *names: tuple[str, str]) -> Tensor:
    own = scheme(model)
    _, tokens = own._patches(x.ndim - 2)(x)
    return own.read(tokens, x.ndim - 2, words(*names) if names else None)


@torch.no_grad()
def test_the_memory_has_one_size_for_all_images() -> None:
    model = medformer().eval()
    sizes = {memory(model, images(*size)).shape for size in ((32, 32), (8, 64), (16, 16, 16), (8, 8, 24))}
    assert sizes == {(3, LATENTS, scheme(model).width)}


@torch.no_grad()
def test_words_change_the_output() -> None:
    model, x = medformer().eval(), images(32, 32, count=4)
    kinds = [("other-modality", "other-body-part"), ("ct", "chest"), ("x-ray", "chest"), ("ct", "brain")]
    expected = [memory(model, x[i : i + 1], kind)[0] for i, kind in enumerate(kinds)]  # one image at a time
    torch.testing.assert_close(memory(model, x, *kinds), torch.stack(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(memory(model, x), memory(model, x, *4 * [kinds[0]]))
    same = x[:1].expand(4, -1, -1, -1)
    outputs = model(same, rows(grade=[0, 1, 2, 3]), words(*kinds))["grade"]
    assert len({tuple(row.tolist()) for row in outputs}) == 4
    fresh = medformer(noise=False).eval()  # the vectors of words begin at zero
    torch.testing.assert_close(memory(fresh, same, *kinds), memory(fresh, same))


@torch.no_grad()
def test_memory_by_definition() -> None:
    """Compare with a reader of one image and one head at a time."""
    model, x = medformer().double().eval(), images(16, 16, 16, count=1).double()
    own, kind = scheme(model), ("mri", "brain")
    _, tokens = own._patches(3)(x)
    about = own.dimensionality["3d"] + own.modality["mri"] + own.body_part["brain"]
    latents = own.latents + own._patches(3).embed_positions(own.points) + about
    expected = attend(own.reader, latents, tokens[0].flatten(1).T)
    for block in own.blocks:
        expected = block(expected[None])[0]
    torch.testing.assert_close(memory(model, x, kind)[0], expected)


def attend(block: CrossAttentionBlock, tokens: Tensor, context: Tensor) -> Tensor:
    """Return tokens (N, D) after attention to a context (M, D), one head at a time, and the MLP."""
    attention, width = block.attention, tokens.shape[1]
    size = width // attention.num_heads
    queries = attention.q(block.norm(tokens))
    keys, values = attention.kv(block.context_norm(context)).split(width, 1)
    heads = []
    for i in range(attention.num_heads):
        part = slice(i * size, (i + 1) * size)
        scores = queries[:, part] @ keys[:, part].T / math.sqrt(size)
        heads.append(scores.exp() / scores.exp().sum(1, keepdim=True) @ values[:, part])
    tokens = tokens + attention.proj(torch.cat(heads, 1))
    return tokens + block.mlp(block.mlp_norm(tokens))


@pytest.mark.parametrize("size", [(3, 5), (2, 3, 4)])
def test_position_features_by_definition(size: tuple[int, ...]) -> None:
    features = position_features(cell_centres(size))
    assert features.shape == (*size, len(size) * (2 * FREQUENCIES + 1))
    for place in np.ndindex(*size):
        at = [-1 + (2 * i + 1) / side for i, side in zip(place, size, strict=True)]  # the middle of the cell
        waves = [(2 * 2.0**-k, x * math.pi * 2**k) for x in at for k in range(FREQUENCIES)]
        expected = [2 * x for x in at] + [size * wave(x) for wave in (math.sin, math.cos) for size, x in waves]
        torch.testing.assert_close(features[place], torch.tensor(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_points_are_spread_over_the_image_and_its_faces(dims: int) -> None:
    points = spread_points(32, dims)
    assert points.shape == (32, dims) and points.abs().max() < 1
    for axes in ([0], [0, 1], [1, 2]):
        if max(axes) < dims:
            nearest = torch.cdist(points[:, axes], points[:, axes]).fill_diagonal_(9).min(1).values
            cells = 2 * 32 ** (-1 / len(axes))  # the side of the cell that a point has to itself
            assert float(nearest.min()) > 0.3 * cells


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (16, 16, 16)])
def test_latents_start_by_attending_to_tokens_near_them(size: tuple[int, ...]) -> None:
    own = scheme(medformer(noise=False))
    dims = len(size)
    _, tokens = own._patches(dims)(images(*size, count=1))
    latents = own.latents + own._patches(dims).embed_positions(own.points[:, :dims])
    attention, width = own.reader.attention, own.width
    queries = attention.q(own.reader.norm(latents))
    keys = attention.kv(own.reader.context_norm(tokens[0].flatten(1).T))[:, :width]
    distances = torch.cdist(own.points[:, :dims], cell_centres(tuple(tokens.shape[2:])).reshape(-1, dims))
    weights = (queries @ keys.T / math.sqrt(width / attention.num_heads)).softmax(1)
    assert float((weights * distances).sum(1).mean()) < 0.85 * float(distances.mean())


@torch.no_grad()
def test_half_precision_leaves_tokens_where_they_are() -> None:
    embedding = PatchEmbedding(Form(2, 56), 4, 16)
    places: list[Tensor] = []
    embedding.positions.register_forward_pre_hook(lambda module, features: places.append(features[0]))
    for is_half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            embedding(torch.zeros(1, 1, 56, 56))
    assert places[1].equal(places[0])
