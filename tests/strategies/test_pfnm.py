"""PFNM against the results of the authors' code and on networks whose matching is known; FedMA."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mtfed.strategies.beta_bernoulli import BetaBernoulli
from mtfed.strategies.pfnm import IBM, PAPER, fedma, local_network, pfnm

SHARED = Path(os.environ.get("MTFED_SHARED") or Path(__file__).resolve().parents[3] / "shared")
ORACLES = sorted((SHARED / "oracle").glob("pfnm_*.npz"))
RNG = np.random.default_rng


def perceptron(generator: np.random.Generator, *widths: int) -> list[np.ndarray]:
    shapes = [shape for a, b in pairwise(widths) for shape in ((a, b), (b,))]
    return [generator.standard_normal(shape) for shape in shapes]


def predict(network: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    for layer in range(0, len(network) - 2, 2):
        x = np.maximum(x @ network[layer] + network[layer + 1], 0)
    return x @ network[-2] + network[-1]


@pytest.mark.skipif(not ORACLES, reason=f"no oracle files pfnm_*.npz in {SHARED / 'oracle'}; set MTFED_SHARED")
@pytest.mark.parametrize("path", ORACLES, ids=lambda path: path.stem)
def test_pfnm_reproduces_the_authors_code(path: Path) -> None:
    with np.load(path) as oracle:
        clients, tensors = int(oracle["J"]), 2 * len(oracle["dims"]) - 2
        networks = [[oracle[f"in_{j}_{i}"] for i in range(tensors)] for j in range(clients)]
        settings = {name: float(oracle[name]) for name in ("sigma", "sigma0", "gamma")}
        given = pfnm(networks, oracle["freqs"], **settings, orders=oracle["orders"], quirks=IBM)
        drawn = pfnm(
            networks, oracle["freqs"], **settings, sweeps=int(oracle["it"]), seed=int(oracle["np_seed"]), quirks=IBM
        )
        for matched in (given, drawn):
            for layer, assignment in enumerate(matched.assignment):
                for j, columns in enumerate(assignment):
                    np.testing.assert_array_equal(columns, oracle[f"assign_{layer}_{j}"])
            for i, weights in enumerate(matched.weights):
                np.testing.assert_allclose(weights, oracle[f"out_{i}"], rtol=0, atol=1e-12)


def test_identical_clients_are_merged_to_their_network() -> None:
    network = perceptron(RNG(0), 6, 8, 7, 4)
    shuffled, orders = [network], []
    for seed in (1, 2):
        first, second = RNG(seed).permutation(8), RNG(seed).permutation(7)
        orders.append((first, second))
        w1, b1, w2, b2, w3, b3 = network
        shuffled.append([w1[:, first], b1[first], w2[first][:, second], b2[second], w3[second], b3])
    matched = pfnm(shuffled, np.ones((3, 4)), sigma=1.0, sigma0=1e9, gamma=1e-6)
    x = RNG(3).standard_normal((5, 6))
    np.testing.assert_allclose(predict(matched.weights, x), predict(network, x), rtol=1e-5)
    for j, (first, second) in enumerate(orders, 1):
        np.testing.assert_array_equal(matched.assignment[0][j], matched.assignment[0][0][first])
        np.testing.assert_array_equal(matched.assignment[1][j], matched.assignment[1][0][second])
        for own, local in zip(shuffled[j], local_network(matched.weights, matched.assignment, j), strict=True):
            np.testing.assert_allclose(local, own, atol=1e-6)


def test_another_round_continues_from_the_assignment() -> None:
    networks = [perceptron(RNG(seed), 6, 8, 7, 4) for seed in range(3)]
    counts = RNG(9).integers(1, 50, (3, 4))
    settings = {"gamma": 5.0, "sigma": 0.5, "sigma0": 2.0}
    first = pfnm(networks, counts, **settings)
    again = pfnm(networks, counts, **settings, start=first.assignment, sweeps=0)
    for expected, actual in zip(first.weights, again.weights, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-12)
    swept = pfnm(networks, counts, **settings, start=first.assignment, sweeps=2)
    assert [len(layer) for layer in swept.assignment] == [3, 3]
    unscaled = replace(PAPER, restart_prior_unscaled=True)
    quirk = pfnm(networks, counts, **settings, start=first.assignment, sweeps=0, quirks=unscaled)
    excess = quirk.weights[3] - first.weights[3]  # biases start at 0.1 instead of 0.1 / sigma0
    np.testing.assert_allclose(excess, 0.05 / first.precisions[3], atol=1e-12)


def test_quirks_change_the_result() -> None:
    networks = [perceptron(RNG(seed), 6, 8, 7, 4) for seed in range(3)]
    narrow = pfnm(networks, np.ones((3, 4)), gamma=50.0, quirks=replace(PAPER, process=BetaBernoulli(width_cap=9)))
    assert [width.shape[0] for width in narrow.weights[1:4:2]] == [9, 9]
    assert len(pfnm(networks, np.ones((3, 4)), gamma=50.0).weights[1]) > 9
    zeros = pfnm(networks, np.ones((3, 4)), gamma=50.0, quirks=replace(PAPER, zeros_observed=True))
    assert (zeros.precisions[2] >= pfnm(networks, np.ones((3, 4)), gamma=50.0).precisions[2].max() - 1e-9).any()


def test_a_class_without_samples_keeps_its_prior() -> None:
    networks = [perceptron(RNG(seed), 3, 4, 2) for seed in range(2)]
    matched = pfnm(networks, np.array([[5, 0], [7, 0]]))
    np.testing.assert_allclose(matched.weights[3][1], 0.1)
    np.testing.assert_allclose(matched.weights[2][:, 1], 0.0)
    assert np.isfinite(matched.weights[2]).all()


# FedMA.


def test_fedma_returns_the_network_of_identical_clients_and_retrains_the_layers_above() -> None:
    network = perceptron(RNG(0), 6, 8, 7, 4)
    w1, b1, w2, b2, w3, b3 = network
    first, second = RNG(1).permutation(8), RNG(2).permutation(7)
    shuffled = [w1[:, first], b1[first], w2[first][:, second], b2[second], w3[second], b3]
    calls = []

    def retrain(client: int, local: list[np.ndarray], frozen: int) -> list[np.ndarray]:
        calls.append((client, frozen, [tensor.shape for tensor in local]))
        return local

    process = BetaBernoulli(gamma=1e-6)
    merged = fedma([network, shuffled], np.ones((2, 4)), retrain, process=process, sigma0=1e9)
    x = RNG(3).standard_normal((5, 6))
    np.testing.assert_allclose(predict(merged.weights, x), predict(network, x), rtol=1e-6)
    np.testing.assert_array_equal(merged.assignment[0][1], merged.assignment[0][0][first])
    assert [call[:2] for call in calls] == [(0, 1), (1, 1), (0, 2), (1, 2)]
    for own, local in zip(shuffled, local_network(merged.weights, merged.assignment, 1), strict=True):
        np.testing.assert_allclose(local, own, atol=1e-6)


def test_fedma_widens_and_keeps_frozen_layers() -> None:
    networks = [perceptron(RNG(seed), 6, 8, 7, 4) for seed in range(3)]
    frozen: dict[int, np.ndarray] = {}

    def retrain(client: int, local: list[np.ndarray], layers: int) -> list[np.ndarray]:
        assert local[2 * layers].shape[0] == local[2 * layers - 1].shape[0] > 8 - layers  # wider than the client's own
        np.testing.assert_array_equal(frozen.setdefault(layers, local[0].copy()), local[0])  # the same for all
        return [tensor + 1.0 for tensor in local]

    merged = fedma(networks, np.array([[1, 2, 0, 5], [3, 2, 0, 5], [0, 2, 0, 1]]), retrain)
    np.testing.assert_array_equal(merged.weights[0], frozen[1])
    np.testing.assert_allclose(merged.weights[-1][2], np.mean([network[-1][2] + 2 for network in networks]))
    np.testing.assert_allclose(merged.weights[-1][0], 0.25 * networks[0][-1][0] + 0.75 * networks[1][-1][0] + 2)
