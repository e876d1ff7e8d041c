"""Git Re-Basin against the published algorithm written out, and on trained perceptrons."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from mtfed.models.symmetry import derive_axes
from mtfed.strategies.axes import Axis, AxisGraph
from mtfed.strategies.rebasin import match_many, mean_network, weight_matching

RNG = np.random.default_rng
Network = dict[str, np.ndarray]


def perceptron(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def weights_of(model: nn.Module) -> Network:
    return {name: tensor.double().numpy().copy() for name, tensor in model.state_dict().items()}


def published(target: Network, network: Network, widths: list[int], seed: int) -> tuple[dict[str, np.ndarray], int]:
    """Run Algorithm 1 on a perceptron by explicit loops; return the permutations and the number of passes."""
    layers = [str(2 * k) for k in range(len(widths) - 1)]
    permutations = {layer: np.arange(width) for layer, width in zip(layers[:-1], widths[1:-1], strict=True)}
    generator, passes, progress = RNG(seed), 0, True
    while progress:
        progress, passes = False, passes + 1
        for index in generator.permutation(len(permutations)):
            layer, above = layers[index], layers[index + 1]
            before = permutations[layers[index - 1]] if index else np.arange(widths[0])
            behind = permutations.get(above, np.arange(widths[index + 2]))
            size = widths[index + 1]
            gains = np.zeros((size, size))
            for a in range(size):
                for b in range(size):
                    gains[a, b] = target[f"{layer}.weight"][a] @ network[f"{layer}.weight"][b][before]
                    gains[a, b] += target[f"{layer}.bias"][a] * network[f"{layer}.bias"][b]
                    gains[a, b] += target[f"{above}.weight"][:, a] @ network[f"{above}.weight"][behind, b]
            columns = linear_sum_assignment(gains, maximize=True)[1]
            old = gains[np.arange(size), permutations[layer]].sum()
            progress |= gains[np.arange(size), columns].sum() > old + 1e-12
            permutations[layer] = columns
    return permutations, passes


@pytest.mark.parametrize("seed", range(4))
def test_permutations_are_those_of_the_published_algorithm(seed: int) -> None:
    widths = [5, 9, 8, 7, 3]
    torch.manual_seed(seed)
    models = [perceptron(*widths) for _ in range(2)]
    target, network = map(weights_of, models)
    expected, passes = published(target, network, widths, seed)
    actual = weight_matching(derive_axes(models[0]), target, network, seed=seed)
    assert passes > 1 and actual.keys() == expected.keys()
    for label, permutation in expected.items():
        np.testing.assert_array_equal(actual[label], permutation)


def test_planted_permutations_are_recovered_with_groups_and_frozen_axes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6),
                          nn.ReLU(), nn.Conv2d(6, 2, 1))  # fmt: skip
    graph = derive_axes(model)
    target = {name: values for name, values in weights_of(model).items() if values.ndim}
    planted = {label: axis.random_permutation(RNG(1)) for label, axis in graph.axes.items()}
    moved = graph.permute(target, planted)
    actual = weight_matching(graph, target, moved)
    for label, permutation in planted.items():
        np.testing.assert_array_equal(permutation[actual[label]], np.arange(len(permutation)))
    assert "0" not in weight_matching(graph.freeze("0"), target, moved)


def images(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw images of ten classes, each a mixture of prototypes: not linearly separable."""
    prototypes = torch.as_tensor(RNG(0).standard_normal((10, 4, 32)), dtype=torch.float32)
    generator = RNG(seed)
    labels, kinds = generator.integers(10, size=1500), generator.integers(4, size=1500)
    noise = torch.as_tensor(generator.standard_normal((1500, 32)), dtype=torch.float32)
    return prototypes[labels, kinds] + 0.9 * noise, torch.as_tensor(labels)


def trained(seed: int, x: torch.Tensor, y: torch.Tensor, hidden: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(seed)
    model = perceptron(32, *hidden, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-3)
    for _ in range(20):
        for rows in torch.randperm(len(x)).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model


def accuracy(model: nn.Module, tensors: Network, x: torch.Tensor, y: torch.Tensor) -> float:
    model.load_state_dict({name: torch.as_tensor(values) for name, values in tensors.items()})
    return float((model(x).argmax(dim=1) == y).float().mean())


@pytest.mark.parametrize("hidden", [(64,), (64, 64)])
def test_the_midpoint_of_trained_models_recovers(hidden: tuple[int, ...]) -> None:
    (x, y), test = images(1), images(2)
    models = [trained(seed, x, y, hidden) for seed in range(3)]
    networks, graph = [weights_of(model) for model in models], derive_axes(models[0])
    ends = [accuracy(models[0], network, *test) for network in networks]
    naive = accuracy(models[0], mean_network(networks[:2]), *test)
    permutation = weight_matching(graph, networks[0], networks[1])
    midpoint = mean_network([networks[0], graph.permute(networks[1], permutation)])
    matched = accuracy(models[0], midpoint, *test)
    members, _ = match_many(graph, networks)
    many = accuracy(models[0], mean_network(members), *test)
    assert min(ends) > 0.8
    assert matched > naive + 0.05 and matched > min(ends) - 0.05
    assert many > accuracy(models[0], mean_network(networks), *test) + 0.05


def test_many_permuted_copies_are_merged_into_their_original() -> None:
    torch.manual_seed(0)
    model = perceptron(6, 12, 9, 4)
    graph, frame = derive_axes(model), weights_of(model)
    clients: list[Any] = [
        {name: values + 0.02 * RNG(seed).standard_normal(values.shape) for name, values in frame.items()}
        for seed in range(4)
    ]
    permutations = [
        {label: axis.random_permutation(RNG(seed)) for label, axis in graph.axes.items()} for seed in range(4)
    ]
    moved = [graph.permute(client, permutation) for client, permutation in zip(clients, permutations, strict=True)]
    members, applied = match_many(graph, moved)
    merged = mean_network(members)
    back = weight_matching(graph, frame, merged)
    expected, actual = mean_network(clients), graph.permute(merged, back)
    assert max(abs(expected[name] - actual[name]).max() for name in expected) < 1e-12
    for network, permutation, member in zip(moved, applied, members, strict=True):
        again = graph.permute(network, permutation)
        assert all(np.array_equal(again[name], member[name]) for name in again)
    lone = AxisGraph({"w": (None, ("x", None))}, {"x": Axis(3)})
    only = {"w": RNG(0).standard_normal((3, 2))}
    assert np.array_equal(mean_network(match_many(lone, [only, only])[0])["w"], only["w"])
