"""Decoders: outputs for every kind of task in two and three dimensions, and initial predictions."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.decoders import ENCODERS, PAIRS, declare
from mtfed.models.decoders import DECODERS
from mtfed.models.decoders.heads import OrdinalDecoder, RegressionDecoder
from mtfed.models.decoders.layers import resize
from mtfed.models.encoders import Encoder
from mtfed.tasks.kind import kind_of
from mtfed.tasks.specs import KIND_SPECS


@lru_cache
def encoder(name: str) -> Encoder:
    torch.manual_seed(0)
    dimensions, size = ENCODERS[name]
    return Encoder(name, size, 1, dimensions).eval()


@lru_cache
def features(name: str) -> Any:
    dimensions, size = ENCODERS[name]
    with torch.no_grad():
        return encoder(name)(torch.randn(2, 1, *(size,) * dimensions, generator=torch.Generator().manual_seed(0)))


def expected_shape(kind: str, dimensions: int, size: int) -> tuple[int, ...]:
    whole = (size,) * dimensions
    return {
        "classification": (3,), "multi-label": (3,), "ordinal": (2,), "regression": (3,), "dose": (1, *whole),
        "segmentation": (3, *whole), "multi-label-segmentation": (3, *whole),
        "detection": (3 + 2 * dimensions, *(size // 4,) * dimensions), "reconstruction": (1, *whole),
        "orientation": ({2: 8, 3: 48}[dimensions],), "views": (128,),
    }[kind]  # fmt: skip


def test_every_kind_has_its_declared_decoders() -> None:
    assert {kind: tuple(row) for kind, row in DECODERS.items()} == {
        kind: row.decoders for kind, row in KIND_SPECS.items()
    }


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(("kind", "decoder"), PAIRS)
def test_outputs_have_their_shape_and_every_weight_a_gradient(name: str, kind: str, decoder: str) -> None:
    torch.manual_seed(0)
    made = DECODERS[kind][decoder](declare(kind, decoder), encoder(name), 8)
    outputs = made(features(name))
    assert outputs.shape == (2, *expected_shape(kind, *ENCODERS[name]))
    outputs.square().sum().backward()
    for path, weight in made.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any(), path


@pytest.mark.parametrize("decoder", ["mlp", "unet"])
def test_outputs_have_the_size_of_the_image(decoder: str) -> None:
    made = DECODERS["segmentation"][decoder](declare("segmentation", decoder), encoder("pvt_v2_b0"), 8)
    image = torch.zeros(1, 1, 36, 52)
    assert made(encoder("pvt_v2_b0")(image)).shape == (1, 3, 36, 52)


def test_predictions_start_in_the_middle() -> None:
    torch.manual_seed(0)
    made = RegressionDecoder(declare("regression"), encoder("vit_nano_patch8"), 8)
    outputs = made(features("vit_nano_patch8"))
    assert (outputs - 0.5).abs().max() < 0.5
    task = declare("ordinal")
    ordinal = OrdinalDecoder(task, encoder("vit_nano_patch8"), 8)
    nn.init.zeros_(ordinal.head.weight)
    with torch.no_grad():
        shown = kind_of(task).show(ordinal(features("vit_nano_patch8")), task)
    torch.testing.assert_close(torch.from_numpy(shown), torch.full((2, 3), 1 / 3))


def test_thresholds_of_an_ordinal_task_share_their_weights() -> None:
    made = OrdinalDecoder(declare("ordinal"), encoder("vit_nano_patch8"), 8)
    outputs = made(features("vit_nano_patch8"))
    torch.testing.assert_close(outputs[:, 0] - outputs[:, 1], (made.thresholds[0] - made.thresholds[1]).expand(2))


def test_resizing_interpolates_and_averages_where_it_shrinks_by_half() -> None:
    for dims, mode in ((2, "bilinear"), (3, "trilinear")):
        x = torch.randn(2, 3, *(8,) * dims, generator=torch.Generator().manual_seed(dims))
        assert resize(x, x.shape[2:]) is x
        for side in (5, 7, 16):
            torch.testing.assert_close(resize(x, [side] * dims), F.interpolate(x, [side] * dims, mode=mode))
        means = x
        for axis in range(2, 2 + dims):
            means = means.unflatten(axis, (2, 4)).mean(axis + 1)
        torch.testing.assert_close(resize(x, [2] * dims), means)
