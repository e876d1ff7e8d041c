"""Gains against explicit loops, and assignments against all of them."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from mtfed.strategies.axes import Axis
from mtfed.strategies.matching import assign, log_det_gains, map_gains, match

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
        certain[0, 2] = weighted[:, 2] = 0.0  # no client has information on this column
    expected = np.zeros((5, 6))
    for l, v in enumerate(rows):  # noqa: E741
        for i, n in enumerate(weighted):
            for d, s in enumerate(certain[0 if shared else i]):
                alone = n[d] ** 2 / s if s else 0.0
                expected[l, i] += (n[d] + precision[d] * v[d]) ** 2 / (s + precision[d]) - alone
    result = map_gains(rows, precision, weighted, certain, dtype)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, expected, atol=tolerance * abs(expected).max())


def test_gain_is_the_log_predictive_density() -> None:
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
    """Return a frame, noisy clients in permutations of their own, and those permutations."""
    generator = RNG(seed)
    frame = generator.standard_normal((units, columns))
    permutations = [generator.permutation(units) for _ in range(clients)]
    rows = [(frame + noise * generator.standard_normal(frame.shape))[permutation] for permutation in permutations]
    return frame, rows, permutations


@pytest.mark.parametrize("prior", [False, True])
def test_consensus_recovers_planted_permutations(prior: bool) -> None:
    frame, rows, permutations = drifted(0)
    ones = np.full(40, 0.25)
    result = match(rows, [ones] * 4, prior=(frame, ones) if prior else None)
    reference = np.arange(30) if prior else permutations[0][result.permutations[0]]
    for planted, permutation in zip(permutations, result.permutations, strict=True):
        np.testing.assert_array_equal(planted[permutation], reference)
    assert prior or result.permutations[0].tolist() == list(range(30))  # the first client is the frame
    assert result.moved > 0.6


@pytest.mark.parametrize("seed", range(4))
def test_the_objective_never_decreases_and_no_single_client_can_improve_it(seed: int) -> None:
    generator = RNG(seed)
    rows, precisions = generator.standard_normal((3, 4, 3)), generator.uniform(0.5, 2, (3, 3))
    result = match(list(rows), list(precisions), gate=0.0, dtype=np.float64, seed=seed, max_sweeps=20)
    assert all(b >= a - 1e-12 for a, b in zip(result.objective, result.objective[1:], strict=False))

    def objective(permutations: list[Any]) -> float:
        weighted = sum(precisions[j] * rows[j][list(permutation)] for j, permutation in enumerate(permutations))
        return float((weighted**2 / precisions.sum(axis=0)).sum())

    assert result.objective[-1] == pytest.approx(objective(result.permutations))
    for j in range(3):
        for permutation in permutations(range(4)):
            others = [permutation if k == j else own for k, own in enumerate(result.permutations)]
            assert objective(others) <= result.objective[-1] + 1e-9


def test_noise_alone_moves_nothing() -> None:
    generator = RNG(0)
    frame = generator.standard_normal((20, 10))
    frame[1] = frame[0] + 0.01 * generator.standard_normal(10)  # two units that any noise may exchange
    rows = [frame + 0.05 * generator.standard_normal(frame.shape) for _ in range(3)]
    ones = np.ones(10)
    still = match(rows, [ones] * 3, prior=(frame, ones))
    assert still.moved == 0 and len(still.objective) == 1  # no sweep is needed
    assert match(rows, [ones] * 3, prior=(frame, ones), gate=0.0).moved > 0


def test_columns_without_precision_are_ignored() -> None:
    frame, rows, _ = drifted(1)
    ones, blind = np.ones(40), np.arange(40) % 2 * 1.0
    garbled = [v.copy() for v in rows]
    garbled[1][:, ::2] = 1e3 * RNG(2).standard_normal((30, 20))
    result = match(garbled, [ones, blind, ones, ones], prior=(frame, ones), dtype=np.float64)
    clean = match(rows, [ones] * 4, prior=(frame, ones))
    for a, b in zip(result.permutations, clean.permutations, strict=True):
        np.testing.assert_array_equal(a, b)


# The inside of heads.
