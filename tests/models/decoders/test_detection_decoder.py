"""The decoder of boxes: shape, symmetry, and a small model that learns to detect."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.detections import CELLS
from mtfed.config import Config
from mtfed.learning.metrics import TaskMetrics
from mtfed.models.axes.decoders import label_centre_decoder
from mtfed.models.decoders.detection import CentreDecoder
from mtfed.models.decoders.layers import CONVOLUTIONS
from mtfed.models.encoders import Features
from mtfed.strategies.axes import Axis
from mtfed.tasks.detection import KIND, stack_boxes
from mtfed.tasks.task import Task

CONFIG = Config(tasks={"cells": CELLS})


class TinyEncoder(nn.Module):
    """A stand-in for an encoder: four maps from two convolutions of strides ``first`` and 2."""

    def __init__(self, dims: int, first: int, width: int = 16) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[dims]
        self.fine = nn.Sequential(convolution(1, width, first + 1, first, padding=first // 2), nn.ReLU())
        self.coarse = nn.Sequential(convolution(width, width, 3, 2, padding=1), nn.ReLU())
        self.channels, self.strides, self.dim = [width] * 4, [first, first, 2 * first, 2 * first], width
        self.dims, self.image_channels = dims, 1

    def forward(self, image: Tensor) -> Features:
        fine = self.fine(image)
        coarse = self.coarse(fine)
        return Features(image, [fine, fine, coarse, coarse], coarse.flatten(2).mean(2))


class Tiny(nn.Module):
    """An encoder and a decoder of boxes."""

    def __init__(self, task: Task, dims: int = 2, first: int = 4, width: int = 16) -> None:
        super().__init__()
        self.encoder = TinyEncoder(dims, first)
        self.decoder = CentreDecoder(task, self.encoder, width)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        return self.decoder(self.encoder(image))


@pytest.mark.parametrize(
    ("dims", "first", "size", "side"),
    [(2, 2, 32, 8), (2, 4, 64, 16), (2, 8, 64, 16), (2, 16, 64, 16), (2, 4, 50, 13), (3, 2, 16, 4), (3, 8, 32, 8)],
)
def test_outputs_have_stride_4(dims: int, first: int, size: int, side: int) -> None:
    model = Tiny(CELLS, dims, first, width=4)
    outputs = model(torch.randn(2, 1, *(size,) * dims))
    assert outputs.shape == (2, 3 + 2 * dims, *(side,) * dims)
    assert 0.03 < float(outputs[:, :3].detach().sigmoid().mean()) < 0.3  # about the prior


@pytest.mark.parametrize(("dims", "first"), [(2, 2), (2, 16), (3, 8)])
def test_units_of_the_decoder_may_be_reordered(dims: int, first: int) -> None:
    symmetry = pytest.importorskip("mtfed.models.symmetry")
    from mtfed.models.axes.builder import AxisGraphBuilder
    from mtfed.models.axes.chains import label_chain

    model = Tiny(CELLS, dims, first, width=6)
    builder = AxisGraphBuilder(model)
    fine, coarse = (builder.add_axis(f"encoder.{name}", Axis(16)) for name in ("fine", "coarse"))
    label_chain(builder, "encoder.fine", model.encoder.fine, None, fine)
    label_chain(builder, "encoder.coarse", model.encoder.coarse, fine, coarse)
    label_centre_decoder(builder, "decoder", model.decoder, [fine, fine, coarse, coarse], coarse)
    graph = builder.build()
    changes = symmetry.check_symmetry(model, graph, [torch.randn(2, 1, *(32,) * dims)])
    steps = len(model.decoder.up)
    assert sum(label.startswith("decoder.") for label in changes) == 5 + steps  # sum, detail, fuse, two heads, steps up
    assert set(graph.tensors) == set(model.state_dict())


def test_a_small_model_learns_to_find_bright_rectangles() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    task = Task(name="spots", kind="detection", classes="wide, tall")

    def images(count: int) -> tuple[Tensor, Tensor]:
        values = []
        pixels = rng.normal(0, 0.3, (count, 1, 64, 64)).astype(np.float32)
        for m in range(count):
            long, short = rng.integers(14, 24, 3), rng.integers(6, 11, 3)
            tall = rng.integers(0, 2, 3)
            corners = np.array([[2, 2], [34, 2], [18, 34]]) + rng.integers(0, 7, (3, 2))
            labels = []
            for (x, y), a, b, k in zip(corners, long, short, tall, strict=True):
                w, h = (b, a) if k else (a, b)
                pixels[m, 0, y : y + h, x : x + w] += 2
                labels.append([x, y, w, h, k])
            values.append(np.array(labels, np.float32)[: int(rng.integers(1, 4))])
            for x, y, w, h, _ in labels[len(values[-1]) :]:
                pixels[m, 0, y : y + h, x : x + w] -= 2
        return torch.from_numpy(pixels), torch.from_numpy(stack_boxes(values))

    seen, labels = images(256)
    model = Tiny(task)
    optimiser = torch.optim.AdamW(model.parameters(), 4e-3)
    terms = [(weight, partial(KIND.losses[term], task, CONFIG)) for weight, term in task.terms]
    for _ in range(100):
        rows = torch.randperm(256)[:16]
        outputs = model(seen[rows])
        loss = sum((weight * term(outputs, labels[rows]) for weight, term in terms), start=torch.zeros(()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    unseen, labels = images(64)
    metrics = TaskMetrics(task)
    with torch.no_grad():
        metrics.update(model.eval()(unseen), labels)
    assert metrics.compute()["ap50"] > 0.8, json.dumps(metrics.compute())
