"""PFNM against the authors' own results and an explicit gain; SPAHM on planted atoms."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mtfed.strategies.fedma import fedma
from mtfed.strategies.pfnm import (  # fmt: skip
    IBM,
    PAPER,
    Atoms,
    BetaBernoulli,
    base_measure,
    gather,
    local_network,
    match_growing,
    pfnm,
)
from mtfed.strategies.spahm import fit_prior, spahm

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


# The authors' results.


@pytest.mark.skipif(not ORACLES, reason=f"no oracle files pfnm_*.npz in {SHARED / 'oracle'}; set MTFED_SHARED")
@pytest.mark.parametrize("path", ORACLES, ids=lambda path: path.stem)
def test_pfnm_repeats_the_authors_code(path: Path) -> None:
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


# Gains by explicit loops over rows, atoms and dimensions.

PROCESSES = {
    "paper": BetaBernoulli(gamma=3.0),
    "authors": BetaBernoulli(gamma=3.0, existing_factor=1.0, popularity_cap=2, width_cap=5, beyond_cap=1),
    "predictive": BetaBernoulli(gamma=3.0, log_det=True),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_gains_are_those_of_the_formula(name: str) -> None:
    process, generator, clients = PROCESSES[name], RNG(0), 6
    rows, precision = generator.standard_normal((3, 4)), generator.uniform(0.5, 2, 4)
    base = base_measure(generator.standard_normal(4), generator.uniform(0.5, 2, 4))
    atoms = Atoms(generator.standard_normal((4, 4)), generator.uniform(1, 3, (4, 4)), np.array([1, 2, 3, 5]))
    found = process.gains(rows, precision, atoms, base, clients)
    expected = np.zeros((3, 4 + (1 if process.width_cap else 3)))
    for l, v in enumerate(rows):  # noqa: E741
        for i in range(expected.shape[1]):
            k = i - 3  # the k-th new atom
            n, s = (atoms.weighted[i], atoms.precision[i]) if k < 1 else (base.weighted[0], base.precision[0])
            for d in range(4):
                expected[l, i] += (n[d] + precision[d] * v[d]) ** 2 / (s[d] + precision[d]) - n[d] ** 2 / s[d]
                expected[l, i] += process.log_det * (np.log(s[d]) - np.log(s[d] + precision[d]))
            m = min(atoms.count[min(i, 3)], process.popularity_cap or 99)
            old = process.existing_factor * np.log(m / (clients - m))
            expected[l, i] += old if k < 1 else 2 * np.log(3.0 / clients) - 2 * np.log(k)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def posterior(rows: list[np.ndarray], assignment: list[np.ndarray], base: Atoms, gamma: float) -> float:
    """Return twice the log posterior of an assignment, as far as it depends on the last client's."""
    precisions = [np.ones(rows[0].shape[1])] * len(rows)
    before = gather(assignment[:-1], rows[:-1], precisions[:-1], base)
    after = gather(assignment, rows, precisions, base)
    clients, width = len(rows), len(before.count)
    total = (after.weighted**2 / after.precision).sum() - (before.weighted**2 / before.precision).sum()
    total -= (len(after.count) - width) * (base.weighted**2 / base.precision).sum()
    old = [before.count[i] for i in assignment[-1] if i < width]
    new = len(assignment[-1]) - len(old)
    prior = sum(np.log(m / (clients - m)) for m in old) + new * np.log(gamma / clients)
    return total + 2 * (prior - sum(np.log(k) for k in range(1, new + 1)))


def choices(units: int, width: int) -> Iterator[np.ndarray]:
    """Yield every assignment of units to atoms below ``width`` or new ones, numbered in the order of units."""
    for columns in set(permutations([*range(width), *[-1] * units], units)):
        new = iter(range(width, width + units))
        yield np.array([next(new) if column < 0 else column for column in columns])


@pytest.mark.parametrize("seed", range(5))
def test_a_client_gets_the_best_of_all_assignments(seed: int) -> None:
    generator = RNG(seed)
    centres = 2 * generator.standard_normal((4, 3))
    rows = [centres[generator.permutation(4)[:3]] + 0.7 * generator.standard_normal((3, 3)) for _ in range(3)]
    base = base_measure(np.zeros(3), np.ones(3))
    placed = match_growing(rows, [np.ones(3)] * 3, base, BetaBernoulli(gamma=1.0), [], placed=[0, 1, 2])[0]
    width = 1 + max(columns.max() for columns in placed[:2])
    best = max(choices(3, width), key=lambda last: posterior(rows, [*placed[:2], last], base, 1.0))
    np.testing.assert_array_equal(placed[2], best)


# PFNM beyond the oracles.


def test_identical_clients_give_their_network_back() -> None:
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


def test_another_round_goes_on_from_the_assignment() -> None:
    networks = [perceptron(RNG(seed), 6, 8, 7, 4) for seed in range(3)]
    counts = RNG(9).integers(1, 50, (3, 4))
    settings = {"gamma": 5.0, "sigma": 0.5, "sigma0": 2.0}
    first = pfnm(networks, counts, **settings)
    again = pfnm(networks, counts, **settings, start=first.assignment, sweeps=0)
    for one, other in zip(first.weights, again.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)
    swept = pfnm(networks, counts, **settings, start=first.assignment, sweeps=2)
    assert [len(layer) for layer in swept.assignment] == [3, 3]
    unscaled = replace(PAPER, restart_prior_unscaled=True)
    quirk = pfnm(networks, counts, **settings, start=first.assignment, sweeps=0, quirks=unscaled)
    excess = quirk.weights[3] - first.weights[3]  # biases start at 0.1 instead of 0.1 / sigma0
    np.testing.assert_allclose(excess, 0.05 / first.precisions[3], atol=1e-12)


def test_quirks_change_the_result() -> None:
    networks = [perceptron(RNG(seed), 6, 8, 7, 4) for seed in range(3)]
    narrow = pfnm(networks, np.ones((3, 4)), gamma=50.0, quirks=replace(PAPER, width_cap=9))
    assert [width.shape[0] for width in narrow.weights[1:4:2]] == [9, 9]
    assert len(pfnm(networks, np.ones((3, 4)), gamma=50.0).weights[1]) > 9
    zeros = pfnm(networks, np.ones((3, 4)), gamma=50.0, quirks=replace(PAPER, zeros_observed=True))
    assert (zeros.precisions[2] >= pfnm(networks, np.ones((3, 4)), gamma=50.0).precisions[2].max() - 1e-9).any()


def test_a_class_that_nobody_has_keeps_its_prior() -> None:
    networks = [perceptron(RNG(seed), 3, 4, 2) for seed in range(2)]
    matched = pfnm(networks, np.array([[5, 0], [7, 0]]))
    np.testing.assert_allclose(matched.weights[3][1], 0.1)
    np.testing.assert_allclose(matched.weights[2][:, 1], 0.0)
    assert np.isfinite(matched.weights[2]).all()


# FedMA.


def test_fedma_gives_identical_clients_their_network_back_and_retrains_what_is_above() -> None:
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


def test_fedma_widens_and_keeps_what_was_frozen() -> None:
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


# SPAHM.


def planted(
    generator: np.random.Generator, clients: int = 6, atoms: int = 12, columns: int = 20, noise: float = 0.3
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Return atoms of spread 1, and per client the noisy rows of some and which they are."""
    centres = generator.standard_normal((atoms, columns))
    held = [generator.permutation(atoms)[: generator.integers(6, 11)] for _ in range(clients)]
    return centres, [centres[own] + noise * generator.standard_normal((len(own), columns)) for own in held], held


@pytest.mark.parametrize("settings", [{}, {"blocks": [5, 15]}, {"sigma": 1.0, "sigma0": 1.0}])
@pytest.mark.parametrize("seed", range(3))
def test_spahm_finds_planted_atoms(seed: int, settings: dict[str, Any]) -> None:
    centres, rows, held = planted(RNG(seed))
    found = spahm(rows, seed=seed, **settings)
    names = {}
    for own, columns in zip(held, found.assignment, strict=True):
        for atom, column in zip(own, columns, strict=True):
            assert names.setdefault(column, atom) == atom  # one true atom for each found one
    assert len(found.atoms) == len(set(np.concatenate(held)))
    truth = centres[[names[column] for column in range(len(found.atoms))]]
    assert np.sqrt(np.mean((found.atoms - truth) ** 2)) < 0.2
    assert np.mean(found.variance) == pytest.approx(0.09, rel=0.15)
    assert np.mean(found.spread) == pytest.approx(1.0, rel=0.4)


def test_spahm_keeps_a_frame_and_a_cap() -> None:
    centres, rows, held = planted(RNG(0))
    found = spahm(rows, frame=centres[:8])
    for own, columns in zip(held, found.assignment, strict=True):
        np.testing.assert_array_equal(columns[own < 8], own[own < 8])
        assert (columns[own >= 8] >= 8).all()
    assert len(spahm(rows, frame=centres[:8], width_cap=10).atoms) == 10


def test_spahm_bears_clients_that_do_not_differ() -> None:
    same = RNG(0).standard_normal((5, 4))
    found = spahm([same, same[::-1], same], floor=1e-8)
    np.testing.assert_array_equal(found.assignment[1], found.assignment[0][::-1])
    np.testing.assert_allclose(found.atoms[found.assignment[0]], same, atol=1e-6)
    assert (found.variance >= 1e-8).all() and (found.spread >= 1e-8).all()
    lone = spahm([same[:1], same[1:2] + 100.0], sigma=1.0, sigma0=1.0)  # no atom has two units: no variance to tell
    assert len(lone.atoms) == 2 and np.isfinite(lone.atoms).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("framed", [False, True])
def test_spahm_lets_no_one_speak_of_what_he_cannot_see(seed: int, framed: bool) -> None:
    centres, rows, held = planted(RNG(seed))
    shares = [np.ones(20) for _ in rows]
    for j in (1, 3):
        blind = RNG(seed + j).permutation(20)[:6]
        shares[j][blind], rows[j][:, blind] = 0.0, 1e3  # were it heard, no two units would be near each other
    frame = centres[:8] if framed else None
    found = spahm(rows, frame=frame, shares=[np.ones(20)] * framed + shares, seed=seed)
    names = {column: column for column in range(8)} if framed else {}
    for own, columns in zip(held, found.assignment, strict=True):
        for atom, column in zip(own, columns, strict=True):
            assert names.setdefault(column, atom) == atom
    assert len(set(names.values())) == len(found.atoms) and abs(found.atoms).max() < 10


def test_spahm_by_default_believes_all_the_same() -> None:
    _, rows, _ = planted(RNG(3))
    one, other = spahm(rows), spahm(rows, shares=[np.ones(20)] * len(rows))
    np.testing.assert_array_equal(one.atoms, other.atoms)


def test_the_prior_is_fitted_by_weighted_moments() -> None:
    generator = RNG(0)
    rows = [generator.standard_normal((n, 4)) for n in (3, 2, 3)]
    shares = [generator.uniform(0.5, 2, 4) for _ in rows]
    shares[1][2] = shares[0][3] = shares[2][3] = 0.0
    assignment = [np.array([0, 1, 2]), np.array([2, 0]), np.array([1, 3, 2])]
    mean, variance, spread = fit_prior(rows, shares, assignment, np.full(4, 7.0), np.full(4, 1e-9), np.arange(4))
    for d in range(4):
        seen: dict[int, list[tuple[float, float]]] = {}
        for v, share, columns in zip(rows, shares, assignment, strict=True):
            for unit, atom in enumerate(columns):
                if share[d] > 0:
                    seen.setdefault(int(atom), []).append((share[d], v[unit, d]))
        weights = {i: sum(w for w, _ in pairs) for i, pairs in seen.items()}
        centres = {i: sum(w * x for w, x in pairs) / weights[i] for i, pairs in seen.items()}
        within = sum(w * (x - centres[i]) ** 2 for i, pairs in seen.items() for w, x in pairs)
        spare = sum(map(len, seen.values())) - len(seen)
        assert mean[d] == pytest.approx(np.mean(list(centres.values())))
        assert variance[d] == pytest.approx(within / spare if spare else 7.0)
        apart = np.mean([(x - mean[d]) ** 2 for x in centres.values()])
        shrink = variance[d] * np.mean([1 / w for w in weights.values()])
        assert spread[d] == pytest.approx(max(apart - shrink, 1e-9))
