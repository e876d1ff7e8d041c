"""Gains against explicit loops, assignments against all of them, and planted reorderings of a multi-task ViT."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from mtfed.strategies.axes import Axis, AxisGraph, Circuit, Piece
from mtfed.strategies.matching import align, assign, circuit_rows, inner_basis, log_det_gains, map_gains, match, turn
from scipy.stats import norm
from torch import nn

from mtfed.models.mtmedformer import MTMedFormer
from mtfed.models.symmetry import derive_axes
from mtfed.tasks import Task

RNG = np.random.default_rng
Network = dict[str, np.ndarray]


def problem(seed: int, units: int = 5, atoms: int = 6, columns: int = 7) -> tuple[np.ndarray, ...]:
    """Return rows, their precision, and atoms' N and S; the last column is one that the client cannot see."""
    generator = RNG(seed)
    rows, precision = generator.standard_normal((units, columns)), generator.uniform(0.2, 2, columns)
    precision[-1] = 0.0
    return rows, precision, generator.standard_normal((atoms, columns)), generator.uniform(0.5, 3, (atoms, columns))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 1e-5)])
@pytest.mark.parametrize("shared", [False, True])
def test_gains_are_those_of_the_row_loop(dtype: Any, tolerance: float, shared: bool) -> None:
    rows, precision, weighted, certain = problem(0)
    certain = certain[:1] if shared else certain
    if shared:
        certain[0, 2] = weighted[:, 2] = 0.0  # nobody has said anything here yet
    expected = np.zeros((5, 6))
    for l, v in enumerate(rows):  # noqa: E741
        for i, n in enumerate(weighted):
            for d, s in enumerate(certain[0 if shared else i]):
                alone = n[d] ** 2 / s if s else 0.0
                expected[l, i] += (n[d] + precision[d] * v[d]) ** 2 / (s + precision[d]) - alone
    found = map_gains(rows, precision, weighted, certain, dtype)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, atol=tolerance * abs(expected).max())


def test_gain_is_the_mahalanobis_distance_to_the_predictive_density() -> None:
    rows, precision, weighted, certain = problem(1)
    rows, precision, weighted, certain = rows[:, :-1], precision[:-1], weighted[:, :-1], certain[:, :-1]
    full = map_gains(rows, precision, weighted, certain) + log_det_gains(precision, certain)
    for l, v in enumerate(rows):  # noqa: E741
        density = norm.logpdf(v, weighted / certain, np.sqrt(1 / certain + 1 / precision)).sum(axis=1)
        # Equal up to what does not depend on the atom.
        np.testing.assert_allclose(np.diff(full[l]), 2 * np.diff(density), atol=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_assignment_is_the_best_of_all(seed: int) -> None:
    gains = RNG(seed).standard_normal((4, 6 if seed % 2 else 4))
    best = max(permutations(range(gains.shape[1]), 4), key=lambda columns: gains[range(4), columns].sum())
    np.testing.assert_array_equal(assign(gains), best)
    np.testing.assert_array_equal(assign(gains[:1]), [gains[0].argmax()])


@pytest.mark.parametrize("seed", range(8))
def test_grouped_assignment_is_the_best_of_those_that_keep_groups(seed: int) -> None:
    gains, axis = RNG(seed).standard_normal((6, 6)), Axis(6, "grouped", groups=3)
    allowed = [columns for columns in permutations(range(6)) if axis.check(np.array(columns)) is None]
    assert len(allowed) == 48
    best = max(allowed, key=lambda columns: gains[range(6), columns].sum())
    np.testing.assert_array_equal(assign(gains, groups=3), best)


# Consensus on one axis.


def drifted(seed: int, clients: int = 4, units: int = 30, columns: int = 40, noise: float = 0.5) -> tuple[Any, ...]:
    """Return a frame, noisy clients in orders of their own, and those orders."""
    generator = RNG(seed)
    frame = generator.standard_normal((units, columns))
    orders = [generator.permutation(units) for _ in range(clients)]
    rows = [(frame + noise * generator.standard_normal(frame.shape))[order] for order in orders]
    return frame, rows, orders


@pytest.mark.parametrize("prior", [False, True])
def test_consensus_finds_planted_orders(prior: bool) -> None:
    frame, rows, orders = drifted(0)
    ones = np.full(40, 0.25)
    found = match(rows, [ones] * 4, prior=(frame, ones) if prior else None)
    reference = np.arange(30) if prior else orders[0][found.orders[0]]
    for planted, order in zip(orders, found.orders, strict=True):
        np.testing.assert_array_equal(planted[order], reference)
    assert prior or found.orders[0].tolist() == list(range(30))  # the first client is the frame
    assert found.moved > 0.6


@pytest.mark.parametrize("seed", range(4))
def test_objective_never_falls_and_no_single_client_can_better_it(seed: int) -> None:
    generator = RNG(seed)
    rows, precisions = generator.standard_normal((3, 4, 3)), generator.uniform(0.5, 2, (3, 3))
    found = match(list(rows), list(precisions), gate=0.0, dtype=np.float64, seed=seed, sweeps=20)
    assert all(b >= a - 1e-12 for a, b in zip(found.objective, found.objective[1:], strict=False))

    def objective(orders: list[Any]) -> float:
        weighted = sum(precisions[j] * rows[j][list(order)] for j, order in enumerate(orders))
        return float((weighted**2 / precisions.sum(axis=0)).sum())

    assert found.objective[-1] == pytest.approx(objective(found.orders))
    for j in range(3):
        for order in permutations(range(4)):
            others = [order if k == j else own for k, own in enumerate(found.orders)]
            assert objective(others) <= found.objective[-1] + 1e-9


def test_noise_alone_moves_nothing() -> None:
    generator = RNG(0)
    frame = generator.standard_normal((20, 10))
    frame[1] = frame[0] + 0.01 * generator.standard_normal(10)  # two units that any noise may exchange
    rows = [frame + 0.05 * generator.standard_normal(frame.shape) for _ in range(3)]
    ones = np.ones(10)
    still = match(rows, [ones] * 3, prior=(frame, ones))
    assert still.moved == 0 and len(still.objective) == 1  # nothing to sweep for
    assert match(rows, [ones] * 3, prior=(frame, ones), gate=0.0).moved > 0


def test_columns_without_precision_have_no_say() -> None:
    frame, rows, _ = drifted(1)
    ones, blind = np.ones(40), np.arange(40) % 2 * 1.0
    garbled = [v.copy() for v in rows]
    garbled[1][:, ::2] = 1e3 * RNG(2).standard_normal((30, 20))
    found = match(garbled, [ones, blind, ones, ones], prior=(frame, ones), dtype=np.float64)
    clean = match(rows, [ones] * 4, prior=(frame, ones))
    for a, b in zip(found.orders, clean.orders, strict=True):
        np.testing.assert_array_equal(a, b)


# The inside of heads.

HEADS = AxisGraph(
    {"q": ((3, 4, 6), ("h", None, None)), "q.bias": ((3, 4), ("h", None)), "k": (None, (None, "h", None))},
    {"h": Axis(3, "heads", circuits=(Circuit((Piece("q"), Piece("q.bias")), (Piece("k"),)),))},
)


def heads(seed: int) -> Network:
    shapes = {"q": (12, 6), "q.bias": (12,), "k": (5, 3, 4)}
    return {name: RNG(seed).standard_normal(shape) for name, shape in shapes.items()}


def products(network: Network) -> np.ndarray:
    """Return (heads, 7, 5) Q^T K, bias as the last row."""
    q = np.concatenate([network["q"].reshape(3, 4, 6), network["q.bias"].reshape(3, 4, 1)], axis=2)
    return np.einsum("hka,bhk->hab", q, network["k"])


def test_circuit_rows_lie_as_the_products_do_whatever_the_basis() -> None:
    networks = [heads(seed) for seed in range(3)]
    matrices = HEADS.random_gauge(networks[1], "h", "gl", RNG(9))
    networks[1] = HEADS.regauge(networks[1], "h", matrices)
    found = np.vstack(circuit_rows(HEADS, "h", networks))
    whole = np.vstack([products(network).reshape(3, -1) for network in networks])
    whole /= np.sqrt(np.square(whole).sum(axis=1).mean())
    np.testing.assert_allclose(found @ found.T, whole @ whole.T, atol=1e-12)


@pytest.mark.parametrize("gauge", ["none", "orth", "gl"])
def test_inner_basis_is_found(gauge: Any) -> None:
    network = heads(0)
    matrices = HEADS.random_gauge(network, "h", gauge, RNG(1))
    turned = HEADS.regauge(network, "h", matrices)
    circuit = HEADS.axes["h"].circuits[0]
    sides = [HEADS.side(net, "h", pieces) for net in (turned, network) for pieces in (circuit.left, circuit.right)]
    found = inner_basis(*sides, "gl" if gauge == "gl" else "orth")
    np.testing.assert_allclose(found @ matrices[0], np.broadcast_to(np.eye(4), (3, 4, 4)), atol=1e-10)


# All axes of a network.

TASKS = {
    "kind": Task(name="kind", kind="classification", classes=("x", "y", "z")),
    "lungs": Task(name="lungs", kind="segmentation", classes=("background", "lung")),
}


def multitask() -> tuple[AxisGraph, Network]:
    torch.manual_seed(0)
    model = MTMedFormer(TASKS, encoder="vit_mini_patch8", image_size=32, channels=1, decoder_width=16)
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
    """Return four drifted clients as they would be in the frame, as they come, and in which orders."""
    generator = RNG(seed)
    clients = [shaken(frame, noise, generator) for _ in range(4)]
    orders = [{label: axis.random_order(generator) for label, axis in graph.axes.items()} for _ in clients]
    moved = [graph.permute(client, order) for client, order in zip(clients, orders, strict=True)]
    for j, network in enumerate(moved):
        for label in graph.axes:
            network = graph.regauge(network, label, graph.random_gauge(network, label, gauge, generator))
        moved[j] = network
    return clients, moved, orders


def difference(networks: list[Network], others: list[Network]) -> float:
    """Return the largest difference of the two means, relative to the tensor's size."""
    largest = 0.0
    for name in {name for network in networks for name in network}:
        a, b = (np.mean([net[name] for net in nets if name in net], axis=0) for nets in (networks, others))
        largest = max(largest, float(abs(a - b).max() / abs(b).max()))
    return largest


@pytest.mark.parametrize("noise", [0.1, 1.0])
@pytest.mark.parametrize("framed", [True, False])
def test_planted_orders_of_all_axes_are_found_and_undone(noise: float, framed: bool) -> None:
    graph, frame = multitask()
    clients, moved, orders = plant(graph, frame, noise, "none")
    found = align(graph, moved, frame=frame if framed else None)
    assert {step.axis for step in found.log} == set(graph.axes)
    assert found.log[0].axis == "encoder.body.residual"  # what heads and MLPs are read in comes first
    for label in graph.axes:
        reference = np.arange(graph.axes[label].size) if framed else orders[0][label]
        for planted, order in zip(orders, found.orders, strict=True):
            np.testing.assert_array_equal(planted[label][order[label]], reference)
    for network, own, order in zip(found.clients, moved, found.orders, strict=True):
        again = graph.permute(own, order)
        assert all(np.array_equal(network[name], again[name]) for name in again)
    if not framed:
        clients = [graph.permute(client, orders[0]) for client in clients]
    assert difference(found.clients, clients) < 1e-12
    assert difference(moved, clients) > 0.3


@pytest.mark.parametrize("gauge", ["orth", "gl"])
@pytest.mark.parametrize(("noise", "tolerance"), [(0.0, 1e-10), (0.1, 0.05), (1.0, None)])
def test_planted_bases_inside_heads_are_found(gauge: Any, noise: float, tolerance: float | None) -> None:
    graph, frame = multitask()
    clients, moved, orders = plant(graph, frame, noise, gauge)
    found = align(graph, moved, frame=frame, inner=gauge)
    for label, axis in graph.axes.items():
        for planted, order in zip(orders, found.orders, strict=True):
            np.testing.assert_array_equal(planted[label][order[label]], np.arange(axis.size))
    assert tolerance is None or difference(found.clients, clients) < tolerance


def test_weights_as_they_are_do_not_tell_heads_of_other_bases() -> None:
    graph, frame = multitask()
    _, moved, orders = plant(graph, frame, 0.0, "orth")
    found = align(graph, moved, frame=frame, inner="none")
    label = "encoder.body.blocks.0.attn.heads"
    assert any((own[label][order[label]] != range(4)).any() for own, order in zip(orders, found.orders, strict=True))


def test_clients_with_other_tasks_share_what_they_share() -> None:
    graph, frame = multitask()
    clients, moved, _ = plant(graph, frame, 0.3, "none")
    for j in (0, 2):
        for nets in (clients, moved):
            nets[j] = {name: values for name, values in nets[j].items() if not name.startswith("decoders.lungs")}
    samples = [10.0, {name: 20.0 for name in frame}, np.int64(30), 5.0]
    found = align(graph, moved, frame=frame, weights=samples)
    assert difference(found.clients, clients) < 1e-12
    assert "decoders.lungs.fuse" not in found.orders[0] and "decoders.lungs.fuse" in found.orders[1]
    alone = align(graph, moved[1:2], frame=frame)
    assert difference(alone.clients, clients[1:2]) < 1e-12
    assert align(graph, moved[:1]).log == []  # one client and no frame: nothing to compare


def test_clients_near_the_frame_stay() -> None:
    graph, frame = multitask()
    clients = [shaken(frame, 0.05, RNG(seed)) for seed in range(3)]
    found = align(graph, clients, frame=frame)
    assert all(step.moved == 0 and step.sweep == 0 for step in found.log)  # each axis is looked at once
    assert all(np.array_equal(found.clients[0][name], clients[0][name]) for name in frame)


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
        found = align(graph, moved, frame=frame)
        assert difference(found.clients, clients) < 1e-12


def test_a_basis_is_found_where_a_head_wastes_some_of_its_width() -> None:
    network = heads(0)
    network["q"][:4] = 0.0  # rows of the first head: nothing asks, whatever the keys hold
    network["q.bias"][:4] = 0.0
    network["q"][5] = 0.0
    turned = HEADS.regauge(network, "h", HEADS.random_gauge(network, "h", "gl", RNG(1)))
    back = turn(HEADS, "h", turned, network, "gl")
    assert all(np.isfinite(values).all() for values in back.values())
    np.testing.assert_allclose(products(back), products(network), atol=1e-6)


def test_frozen_axes_stay_and_misfits_are_refused() -> None:
    graph = AxisGraph({"w": (None, ("x", None))}, {"x": Axis(3, "frozen")})
    network = {"w": RNG(0).standard_normal((3, 4))}
    moved = {"w": network["w"][::-1]}
    found = align(graph, [moved], frame=network)
    assert found.log == []
    free = AxisGraph(graph.tensors, {"x": Axis(3)})
    assert align(free, [moved], frame=network).orders[0]["x"].tolist() == [2, 1, 0]
    assert align(free.freeze("x"), [moved], frame=network).log == []
    assert np.array_equal(found.clients[0]["w"], moved["w"])
    with pytest.raises(ValueError, match="axis 'x' has 3 units"):
        align(graph, [{"w": np.zeros((4, 4))}], frame=network)
