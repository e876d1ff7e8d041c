"""The beta-Bernoulli process: gains against explicit loops, assignments against all possible ones."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import numpy as np
import pytest

from mtfed.strategies.beta_bernoulli import Atoms, BetaBernoulli, base_measure, gather_atoms, match_growing

RNG = np.random.default_rng

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
    actual = process.gains(rows, precision, atoms, base, clients)
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
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def posterior(rows: list[np.ndarray], assignment: list[np.ndarray], base: Atoms, gamma: float) -> float:
    """Return twice the log posterior of an assignment, as far as it depends on the last client's."""
    precisions = [np.ones(rows[0].shape[1])] * len(rows)
    before = gather_atoms(assignment[:-1], rows[:-1], precisions[:-1], base)
    after = gather_atoms(assignment, rows, precisions, base)
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
    placed = match_growing(rows, [np.ones(3)] * 3, base, BetaBernoulli(gamma=1.0), [], first_order=[0, 1, 2])[0]
    width = 1 + max(columns.max() for columns in placed[:2])
    best = max(choices(3, width), key=lambda last: posterior(rows, [*placed[:2], last], base, 1.0))
    np.testing.assert_array_equal(placed[2], best)
