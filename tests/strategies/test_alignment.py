"""Planted permutations of whole networks, all clients at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.planted import RNG, difference, multitask, plant, shaken
from mtfed.models.symmetry import derive_axes
from mtfed.strategies.alignment import align
from mtfed.strategies.axes import Axis, AxisGraph


@pytest.mark.parametrize("noise", [0.1, 1.0])
@pytest.mark.parametrize("framed", [True, False])
def test_planted_permutations_of_all_axes_are_recovered(noise: float, framed: bool) -> None:
    graph, frame = multitask()
    clients, moved, permutations = plant(graph, frame, noise, "none")
    result = align(graph, moved, frame=frame if framed else None)
    assert {step.axis for step in result.log} == set(graph.axes)
    assert result.log[0].axis == "encoder.body.residual"  # heads and MLPs read it, so it comes first
    for label in graph.axes:
        reference = np.arange(graph.axes[label].size) if framed else permutations[0][label]
        for planted, permutation in zip(permutations, result.permutations, strict=True):
            np.testing.assert_array_equal(planted[label][permutation[label]], reference)
    for network, own, permutation in zip(result.clients, moved, result.permutations, strict=True):
        again = graph.permute(own, permutation)
        assert all(np.array_equal(network[name], again[name]) for name in again)
    if not framed:
        clients = [graph.permute(client, permutations[0]) for client in clients]
    assert difference(result.clients, clients) < 1e-12
    assert difference(moved, clients) > 0.3


@pytest.mark.parametrize("gauge", ["orth", "gl"])
@pytest.mark.parametrize(("noise", "tolerance"), [(0.0, 1e-10), (0.1, 0.05), (1.0, None)])
def test_planted_bases_inside_heads_are_recovered(gauge: Any, noise: float, tolerance: float | None) -> None:
    graph, frame = multitask()
    clients, moved, permutations = plant(graph, frame, noise, gauge)
    result = align(graph, moved, frame=frame, gauge=gauge)
    for label, axis in graph.axes.items():
        for planted, permutation in zip(permutations, result.permutations, strict=True):
            np.testing.assert_array_equal(planted[label][permutation[label]], np.arange(axis.size))
    assert tolerance is None or difference(result.clients, clients) < tolerance


def test_plain_weights_cannot_match_heads_of_other_bases() -> None:
    graph, frame = multitask()
    _, moved, permutations = plant(graph, frame, 0.0, "orth")
    result = align(graph, moved, frame=frame, gauge="none")
    label = "encoder.body.blocks.0.attn.heads"
    pairs = zip(permutations, result.permutations, strict=True)
    assert any((planted[label][own[label]] != range(4)).any() for planted, own in pairs)


def test_clients_with_other_tasks_are_aligned_on_common_parts() -> None:
    graph, frame = multitask()
    clients, moved, _ = plant(graph, frame, 0.3, "none")
    for j in (0, 2):
        for nets in (clients, moved):
            nets[j] = {name: values for name, values in nets[j].items() if not name.startswith("decoders.lungs")}
    samples = [10.0, {name: 20.0 for name in frame}, np.int64(30), 5.0]
    result = align(graph, moved, frame=frame, weights=samples)
    assert difference(result.clients, clients) < 1e-12
    assert "decoders.lungs.fuse" not in result.permutations[0] and "decoders.lungs.fuse" in result.permutations[1]
    alone = align(graph, moved[1:2], frame=frame)
    assert difference(alone.clients, clients[1:2]) < 1e-12
    assert align(graph, moved[:1]).log == []  # one client and no frame: nothing to compare


def test_clients_near_the_frame_are_not_permuted() -> None:
    graph, frame = multitask()
    clients = [shaken(frame, 0.05, RNG(seed)) for seed in range(3)]
    result = align(graph, clients, frame=frame)
    assert all(step.moved == 0 and step.sweep == 0 for step in result.log)  # each axis is matched once
    assert all(np.array_equal(result.clients[0][name], clients[0][name]) for name in frame)


def test_groups_and_concatenations_are_aligned() -> None:
    torch.manual_seed(0)
    chain = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 2, 1),
    )  # fmt: skip
    joined = AxisGraph(
        {"a": (None, ("a", None)), "b": (None, ("b", None)), "join": (None, (None, "a+b"))},
        {"a": Axis(6), "b": Axis(5)},
    )
    weights = {name: tensor.double().numpy() for name, tensor in chain.state_dict().items() if tensor.ndim}
    networks = [
        (derive_axes(chain), weights),
        (joined, {"a": RNG(0).standard_normal((6, 9)), "b": RNG(1).standard_normal((5, 9)), "join": np.ones((4, 11))}),
    ]
    for graph, network in networks:
        frame = shaken(network, 0.5, RNG(3))
        clients, moved, _ = plant(graph, frame, 0.1, "none")
        result = align(graph, moved, frame=frame)
        assert difference(result.clients, clients) < 1e-12


def test_frozen_axes_are_not_permuted_and_misfits_are_refused() -> None:
    graph = AxisGraph({"w": (None, ("x", None))}, {"x": Axis(3, "frozen")})
    network = {"w": RNG(0).standard_normal((3, 4))}
    moved = {"w": network["w"][::-1]}
    result = align(graph, [moved], frame=network)
    assert result.log == []
    free = AxisGraph(graph.tensors, {"x": Axis(3)})
    assert align(free, [moved], frame=network).permutations[0]["x"].tolist() == [2, 1, 0]
    assert align(free.freeze("x"), [moved], frame=network).log == []
    assert np.array_equal(result.clients[0]["w"], moved["w"])
    with pytest.raises(ValueError, match="axis 'x' has 3 units"):
        align(graph, [{"w": np.zeros((4, 4))}], frame=network)


@pytest.mark.parametrize("form", ["number", "by name", "array"])
def test_a_precision_of_every_weight_counts_by_its_mean_over_units(form: str) -> None:
    graph, frame = multitask()
    clients, moved, _ = plant(graph, frame, 0.3, "none")
    weights: dict[str, Any] = {
        "number": [2.0, 3.0, 4.0, 5.0],
        "by name": [{name: 2.0 + j for name in frame} for j in range(4)],
        "array": [{name: np.full(values.shape, 2.0 + j) for name, values in frame.items()} for j in range(4)],
    }
    by_number, by_form = (align(graph, moved, frame=frame, weights=weights[kind]) for kind in ("number", form))
    objectives = [[step.objective for step in result.log] for result in (by_number, by_form)]
    assert objectives[0] == pytest.approx(objectives[1], rel=1e-6)
    assert difference(by_form.clients, clients) < 1e-12


def test_weights_without_precision_are_ignored() -> None:
    graph = AxisGraph({"w": (None, ("x", "y"))}, {"x": Axis(12), "y": Axis(10)})
    frame = {"w": RNG(0).standard_normal((12, 10))}
    permutations = {"x": RNG(1).permutation(12), "y": RNG(2).permutation(10)}
    garbled, precision = {"w": frame["w"].copy()}, {"w": np.ones((12, 10))}
    garbled["w"][:, :4], precision["w"][:, :4] = 10 * RNG(3).standard_normal((12, 4)), 0.0
    fixed = graph.freeze("y")
    moved, weights = (graph.permute(network, {"x": permutations["x"]}) for network in (garbled, precision))
    result = align(fixed, [moved], frame=frame, weights=[weights])
    np.testing.assert_array_equal(permutations["x"][result.permutations[0]["x"]], np.arange(12))
    assert (align(fixed, [moved], frame=frame).permutations[0]["x"] != result.permutations[0]["x"]).any()
    # The precision moves with the weights: x is matched after y and uses it in the order that y has brought it to.
    free = AxisGraph(graph.tensors | {"b": (None, ("y", None))}, graph.axes)
    frame["b"] = RNG(4).standard_normal((10, 30))
    moved, weights = (free.permute(network | {"b": frame["b"]}, permutations) for network in (garbled, precision))
    result = align(free, [moved], frame=frame, weights=[weights | {"b": 1.0}], max_sweeps=1)
    assert [step.axis for step in result.log] == ["y", "x"]
    np.testing.assert_array_equal(permutations["x"][result.permutations[0]["x"]], np.arange(12))
