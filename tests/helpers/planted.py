"""Networks with known permutations, which the tests of alignment have to undo."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from mtfed.config import Form
from mtfed.models.build import assemble
from mtfed.models.symmetry import derive_axes
from mtfed.strategies.axes import Axis, AxisGraph
from mtfed.tasks.task import Task

RNG = np.random.default_rng
Network = dict[str, np.ndarray]

TASKS = {
    "kind": Task(name="kind", kind="classification", classes=("x", "y", "z")),
    "lungs": Task(name="lungs", kind="segmentation", classes=("background", "lung")),
}


@cache
def multitask() -> tuple[AxisGraph, Network]:
    torch.manual_seed(0)
    model = assemble("mtmedformer", TASKS, (Form(2, 32),), encoder="vit_mini_patch8", decoder_width=16)
    network = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    return derive_axes(model), shaken(network, 1.0, RNG(0))


def shaken(network: Network, noise: float, generator: np.random.Generator) -> Network:
    """Return the network with noise relative to every tensor's spread."""
    return {
        name: values + noise * (values.std() or 0.1) * generator.standard_normal(values.shape)
        for name, values in network.items()
    }


def plant(
    graph: AxisGraph, frame: Network, noise: float, gauge: Any, seed: int = 0
) -> tuple[list[Network], list[Network], list[dict[str, np.ndarray]]]:
    """Return four drifted clients in the order of the frame, the same permuted, and the permutations."""
    generator = RNG(seed)
    clients = [shaken(frame, noise, generator) for _ in range(4)]
    permutations = [{label: axis.random_permutation(generator) for label, axis in graph.axes.items()} for _ in clients]
    moved = [graph.permute(client, permutation) for client, permutation in zip(clients, permutations, strict=True)]
    for j, network in enumerate(moved):
        for label in graph.axes:
            network = graph.regauge(network, label, graph.random_gauge(network, label, gauge, generator))
        moved[j] = network
    return clients, moved, permutations


def difference(networks: list[Network], others: list[Network]) -> float:
    """Return the largest difference of the two means, relative to the tensor's size."""
    largest = 0.0
    for name in {name for network in networks for name in network}:
        a, b = (np.mean([net[name] for net in nets if name in net], axis=0) for nets in (networks, others))
        largest = max(largest, float(abs(a - b).max() / abs(b).max()))
    return largest


def chain() -> tuple[AxisGraph, Network]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 12, 3), nn.GroupNorm(4, 12), nn.ReLU(),
        nn.ConvTranspose2d(12, 10, 2), nn.BatchNorm2d(10), nn.ReLU(), nn.Flatten(), nn.Linear(40, 20), nn.ReLU(),
        nn.Linear(20, 4),
    )  # fmt: skip
    weights = {name: tensor.double().numpy() for name, tensor in model.state_dict().items() if tensor.ndim}
    return derive_axes(model), shaken(weights, 0.5, RNG(3))


def perceptron() -> tuple[AxisGraph, Network]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 30), nn.GELU(), nn.Linear(30, 5))
    return derive_axes(model), {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}


def joined() -> tuple[AxisGraph, Network]:
    graph = AxisGraph(
        {"a": (None, ("a", None)), "b": (None, ("b", None)), "join": (None, (None, "a+b"))},
        {"a": Axis(6), "b": Axis(5)},
    )
    return graph, {
        name: RNG(0).standard_normal(shape) for name, shape in (("a", (6, 9)), ("b", (5, 9)), ("join", (4, 11)))
    }


NETWORKS = {"perceptron": perceptron, "chain": chain, "joined": joined, "multi-task": multitask}
