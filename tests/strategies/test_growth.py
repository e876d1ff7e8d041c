"""Growing width: functions are averaged, planted units are recovered, and clients get their part back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import nn

from helpers.growing import CHAIN, forward, multitask, numbers, perceptron
from helpers.planted import RNG, Network
from mtfed.models.symmetry import derive_axes
from mtfed.models.width import resize
from mtfed.strategies.axes import Axis, AxisError, AxisGraph
from mtfed.strategies.growth import Growth, expand, grow
from mtfed.strategies.widths import submodel, widen


def random_weights(graph: AxisGraph, model: nn.Module, seed: int = 0) -> Network:
    """Return weights with spread 1 over a tensor's size, and positive variances."""
    generator = RNG(seed)
    weights = {}
    for name, values in numbers(model).items():
        noise = generator.standard_normal(values.shape) / np.sqrt(max(np.prod(values.shape[1:]), 4))
        weights[name] = abs(noise) + 0.5 if name.endswith("running_var") else noise
        if name.endswith("num_batches_tracked"):
            weights[name] = values
    graph.validate(weights)
    return weights


def merge(growth: Growth, clients: list[Network], precisions: list[Any]) -> Network:
    """Return sum_j P_j v_j / sum_j P_j."""
    wide = [expand(growth, j, client, precisions[j]) for j, client in enumerate(clients)]
    merged = {}
    for name in {name for v, _ in wide for name in v}:
        total = sum(p[name] * v[name] for v, p in wide if name in v)
        sure = np.broadcast_to(sum(p[name] for v, p in wide if name in v), np.shape(total))
        merged[name] = np.divide(
            total, sure, out=np.zeros(np.shape(total)), where=sure > 0
        )  # 0 if no client has the unit
    return merged


# The merge.


def one_layer(seed: int = 0, clients: int = 3) -> tuple[AxisGraph, list[Network], list[np.ndarray]]:
    """Return clients of 8 units each, from a pool of 12 whose incoming weights they share."""
    generator = RNG(seed)
    pool, bias = generator.standard_normal((12, 6)), generator.standard_normal(12)
    owned = [generator.permutation(12)[:8] for _ in range(clients)]
    networks = [
        {"0.weight": pool[own], "0.bias": bias[own], "2.weight": generator.standard_normal((4, 8)),
         "2.bias": generator.standard_normal(4)} for own in owned
    ]  # fmt: skip
    return derive_axes(perceptron(6, 8, 4)), networks, owned


def by_pool(owned: list[np.ndarray], graph: AxisGraph) -> Growth:
    return Growth(graph.resize({"0": 12}), [{"0": own} for own in owned])


def test_the_merge_is_the_mean_of_the_clients_functions() -> None:
    graph, networks, owned = one_layer()
    assert graph.axes["0"].readers == ("2.weight",)
    assert (by_pool(owned, graph).count_holders("0") == sum(np.isin(range(12), own) for own in owned)).all()
    x = RNG(9).standard_normal((50, 6))
    merged = merge(by_pool(owned, graph), networks, [1.0] * 3)
    mean = np.mean([forward(network, x) for network in networks], axis=0)
    used = np.isin(range(12), np.concatenate(owned))
    np.testing.assert_allclose(forward(merged, x), mean, atol=1e-12)
    assert used.sum() > 8
    # A mean over the holders alone overestimates outgoing weights.
    wide = [expand(by_pool(owned, graph), j, network) for j, network in enumerate(networks)]
    over = np.sum([v["2.weight"] for v, _ in wide], axis=0) / np.maximum(by_pool(owned, graph).count_holders("0"), 1)
    assert abs(forward(merged | {"2.weight": over}, x) - mean).max() > 0.5


def test_weights_of_clients_scale_the_mean() -> None:
    graph, networks, owned = one_layer(1)
    x, weights = RNG(9).standard_normal((50, 6)), [1.0, 2.0, 5.0]
    merged = merge(by_pool(owned, graph), networks, weights)
    mean = sum(weight * forward(network, x) for weight, network in zip(weights, networks, strict=True)) / 8
    np.testing.assert_allclose(forward(merged, x), mean, atol=1e-12)


def test_precision_of_units_that_a_client_lacks() -> None:
    graph, networks, owned = one_layer(2)
    growth, own = by_pool(owned, graph), owned[0]
    local = {name: RNG(5).uniform(1, 2, values.shape) for name, values in networks[0].items() if name != "2.bias"}
    wide, precision = expand(growth, 0, networks[0], local | {"2.bias": 3.0})
    missing = np.setdiff1d(np.arange(12), own)
    assert not precision["0.weight"][missing].any() and not precision["0.bias"][missing].any()
    np.testing.assert_array_equal(precision["0.weight"][own], local["0.weight"])
    np.testing.assert_array_equal(precision["2.weight"][:, own], local["2.weight"])
    usual = local["2.weight"].mean(axis=1, keepdims=True)
    np.testing.assert_allclose(precision["2.weight"][:, missing], np.repeat(usual, len(missing), axis=1))
    assert not wide["2.weight"][:, missing].any()
    assert precision["2.bias"] == 3.0 and wide["2.bias"] is networks[0]["2.bias"]
    partial, precision = expand(growth, 0, {"0.bias": networks[0]["0.bias"]}, {})
    assert partial["0.bias"].shape == (12,) and not precision["0.bias"].any()


def test_a_tensor_between_two_growing_axes_belongs_to_the_units_that_it_writes() -> None:
    """A client that lacks a unit has precision 0 for all of its incoming weights."""
    graph = derive_axes(perceptron(3, 2, 2, 2))
    assert (graph.axes["0"].readers, graph.axes["2"].readers) == (("2.weight",), ("4.weight",))
    growth = Growth(graph.resize({"0": 3, "2": 3}), [{"0": np.array([0, 2]), "2": np.array([1, 2])}])
    network = {name: np.ones(shape) for name, shape in {"2.weight": (2, 2), "2.bias": (2,), "4.weight": (2, 2)}.items()}
    wide, precision = expand(growth, 0, network, 2.0)
    np.testing.assert_array_equal(wide["2.weight"], [[0, 0, 0], [1, 0, 1], [1, 0, 1]])
    np.testing.assert_array_equal(precision["2.weight"], [[0, 0, 0], [2, 2, 2], [2, 2, 2]])
    np.testing.assert_array_equal(precision["2.bias"], [0, 2, 2])
    np.testing.assert_array_equal(precision["4.weight"], np.full((2, 3), 2))


# Growing.


def drifted(
    graph: AxisGraph, pool: Network, owned: list[dict[str, np.ndarray]], noise: float, seed: int = 0
) -> list[Network]:
    """Return clients that have these units of a pool, with noise relative to each tensor's spread."""
    generator = RNG(seed)
    clients = []
    for own in owned:
        part = submodel(graph, pool, own)
        clients.append({
            name: values + noise * (values.std() or 0.1) * generator.standard_normal(values.shape)
            if values.dtype.kind == "f" and values.ndim else values for name, values in part.items()
        })  # fmt: skip
    return clients


def check_recovery(growth: Growth, owned: list[dict[str, np.ndarray]]) -> None:
    """Require that two clients' units meet if and only if they are the same of the pool."""
    for label in owned[0]:
        names: dict[int, int] = {}
        for own, units in zip(owned, growth.units, strict=True):
            for unit, atom in zip(own[label], units[label], strict=True):
                assert names.setdefault(atom, unit) == unit, label
        assert len(names) == len(set(names.values())) == growth.graph.axes[label].size, label


GROWING = {
    "perceptron": (lambda: perceptron(10, 18, 6), {"0": 12}),
    "two layers": (lambda: perceptron(10, 18, 18, 6), {"0": 12, "2": 12}),
    "chain": (lambda: CHAIN, {"0": 10, "3": 12, "8": 9}),
    "multi-task": (
        lambda: resize_heads(multitask(), 6),
        {
            f"encoder.body.blocks.{k}.{axis}": n
            for k in range(4)
            for axis, n in (("attn.heads", 4), ("mlp.hidden", 200))
        },
    ),
}


def resize_heads(model: nn.Module, heads: int) -> nn.Module:
    """Return the model with so many heads in every block, of random weights."""
    graph = derive_axes(model)
    wide = graph.resize({label: heads for label, axis in graph.axes.items() if axis.axis_type == "heads"})
    units = {label: np.arange(axis.size) for label, axis in graph.axes.items() if axis.axis_type == "heads"}
    network = {
        name: widen(wide, name, values, units) if name in graph.tensors else values
        for name, values in numbers(model).items()
    }
    return resize(model, network)


def planted(
    name: str, noise: float, seed: int = 0
) -> tuple[AxisGraph, Network, list[dict[str, np.ndarray]], list[Network]]:
    build, widths = GROWING[name]
    model = build()
    graph = derive_axes(model)
    pool, generator = random_weights(graph, model, seed), RNG(seed)
    owned = [
        {label: generator.permutation(graph.axes[label].size)[:width] for label, width in widths.items()}
        for _ in range(3)
    ]
    return graph, pool, owned, drifted(graph, pool, owned, noise, seed)


@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("noise", [0.01, 0.15])
def test_planted_units_are_recovered_and_clients_get_their_part_back(name: str, noise: float) -> None:
    graph, _, owned, clients = planted(name, noise)
    growth = grow(graph.resize(GROWING[name][1]), clients, width_cap=2.0)
    assert growth.graph.axes.keys() == graph.axes.keys()
    check_recovery(growth, owned)
    for j, client in enumerate(clients):
        wide, precision = expand(growth, j, client)
        growth.graph.validate(wide)
        assert all(np.shape(precision[key]) in ((), wide[key].shape) for key in wide)
        back = submodel(growth.graph, wide, growth.units[j])
        assert all(np.array_equal(back[key], values) for key, values in client.items())
        sub = submodel(growth.graph, merge(growth, clients, [1.0] * 3), growth.units[j])
        assert all(sub[key].shape == values.shape for key, values in client.items())
    merged = merge(growth, clients, [1.0] * 3)
    assert all(np.isfinite(values).all() for values in merged.values())


@pytest.mark.parametrize("name", ["perceptron", "chain"])
def test_a_frame_keeps_its_units_first_and_a_cap_holds(name: str) -> None:
    graph, pool, owned, clients = planted(name, 0.05)
    widths = GROWING[name][1]
    first = {label: np.arange(width) for label, width in widths.items()}
    frame = submodel(graph, pool, first)
    growth = grow(graph, clients, frame=frame, width_cap=2.0)
    for own, units in zip(owned, growth.units, strict=True):
        for label, width in widths.items():
            known = own[label] < width
            np.testing.assert_array_equal(units[label][known], own[label][known])
            assert (units[label][~known] >= width).all()
    capped = grow(graph, clients, frame=frame, width_cap=1.0)
    assert {label: capped.graph.axes[label].size for label in widths} == widths
    again = grow(graph, [frame, frame], frame=frame)
    assert all((own == first[label]).all() for units in again.units for label, own in units.items())


def test_clients_without_some_parts_grow_the_others() -> None:
    graph, _, owned, clients = planted("multi-task", 0.05)
    clients[1] = {key: values for key, values in clients[1].items() if key.startswith("decoders")}
    weights: list[Any] = [
        3.0,
        {key: 1.0 for key in clients[1]},
        {key: np.ones(v.shape) for key, v in clients[2].items()},
    ]
    growth = grow(graph, clients, weights=weights, width_cap=2.0)
    assert growth.units[1] == {} and growth.units[0].keys() == owned[0].keys()
    check_recovery(Growth(growth.graph, [growth.units[0], growth.units[2]]), [owned[0], owned[2]])
    alone = grow(graph, clients[:1])
    assert all((own == np.arange(len(own))).all() for own in alone.units[0].values())


def test_an_axis_without_readers_is_refused() -> None:
    graph = AxisGraph({"w": (None, ("x", None))}, {"x": Axis(3, growable=True)})
    with pytest.raises(AxisError, match="Axis 'x' may grow, but the graph names no tensor that reads it"):
        grow(graph, [{"w": np.ones((3, 2))}] * 2)
    with pytest.raises(AxisError, match="Axis 'x': its reader v does not carry it"):
        AxisGraph({"w": (None, ("x", None)), "v": (None, (None,))}, {"x": Axis(3, growable=True, readers=("v",))})
