"""SPAHM on planted atoms, and its prior against explicit moments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mtfed.strategies.spahm import fit_prior, spahm

RNG = np.random.default_rng


def planted(
    generator: np.random.Generator, clients: int = 6, atoms: int = 12, columns: int = 20, noise: float = 0.3
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Return atoms of spread 1, and per client the noisy rows of some and which they are."""
    centres = generator.standard_normal((atoms, columns))
    owned = [generator.permutation(atoms)[: generator.integers(6, 11)] for _ in range(clients)]
    return centres, [centres[own] + noise * generator.standard_normal((len(own), columns)) for own in owned], owned


@pytest.mark.parametrize("settings", [{}, {"blocks": [5, 15]}, {"sigma": 1.0, "sigma0": 1.0}])
@pytest.mark.parametrize("seed", range(3))
def test_planted_atoms_are_recovered(seed: int, settings: dict[str, Any]) -> None:
    centres, rows, owned = planted(RNG(seed))
    result = spahm(rows, seed=seed, **settings)
    names = {}
    for own, columns in zip(owned, result.assignment, strict=True):
        for atom, column in zip(own, columns, strict=True):
            assert names.setdefault(column, atom) == atom  # one true atom for each estimated one
    assert len(result.atoms) == len(set(np.concatenate(owned)))
    truth = centres[[names[column] for column in range(len(result.atoms))]]
    assert np.sqrt(np.mean((result.atoms - truth) ** 2)) < 0.2
    assert np.mean(result.prior.unit_variance) == pytest.approx(0.09, rel=0.15)
    assert np.mean(result.prior.atom_variance) == pytest.approx(1.0, rel=0.4)


def test_a_frame_and_a_cap_are_kept() -> None:
    centres, rows, owned = planted(RNG(0))
    result = spahm(rows, frame=centres[:8])
    for own, columns in zip(owned, result.assignment, strict=True):
        np.testing.assert_array_equal(columns[own < 8], own[own < 8])
        assert (columns[own >= 8] >= 8).all()
    assert len(spahm(rows, frame=centres[:8], width_cap=10).atoms) == 10


def test_identical_clients_are_matched() -> None:
    same = RNG(0).standard_normal((5, 4))
    result = spahm([same, same[::-1], same], floor=1e-8)
    np.testing.assert_array_equal(result.assignment[1], result.assignment[0][::-1])
    np.testing.assert_allclose(result.atoms[result.assignment[0]], same, atol=1e-6)
    assert (result.prior.unit_variance >= 1e-8).all() and (result.prior.atom_variance >= 1e-8).all()
    lone = spahm(
        [same[:1], same[1:2] + 100.0], sigma=1.0, sigma0=1.0
    )  # no atom has two units, so the unit variance cannot be estimated
    assert len(lone.atoms) == 2 and np.isfinite(lone.atoms).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("framed", [False, True])
def test_columns_without_shares_are_ignored(seed: int, framed: bool) -> None:
    centres, rows, owned = planted(RNG(seed))
    shares = [np.ones(20) for _ in rows]
    for j in (1, 3):
        blind = RNG(seed + j).permutation(20)[:6]
        shares[j][blind], rows[j][:, blind] = 0.0, 1e3  # if these were used, no two units would be close
    frame = centres[:8] if framed else None
    result = spahm(rows, frame=frame, shares=[np.ones(20)] * framed + shares, seed=seed)
    names = {column: column for column in range(8)} if framed else {}
    for own, columns in zip(owned, result.assignment, strict=True):
        for atom, column in zip(own, columns, strict=True):
            assert names.setdefault(column, atom) == atom
    assert len(set(names.values())) == len(result.atoms) and abs(result.atoms).max() < 10


def test_all_shares_are_equal_by_default() -> None:
    _, rows, _ = planted(RNG(3))
    default, explicit = spahm(rows), spahm(rows, shares=[np.ones(20)] * len(rows))
    np.testing.assert_array_equal(default.atoms, explicit.atoms)


def test_the_prior_is_fitted_by_weighted_moments() -> None:
    generator = RNG(0)
    rows = [generator.standard_normal((n, 4)) for n in (3, 2, 3)]
    shares = [generator.uniform(0.5, 2, 4) for _ in rows]
    shares[1][2] = shares[0][3] = shares[2][3] = 0.0
    assignment = [np.array([0, 1, 2]), np.array([2, 0]), np.array([1, 3, 2])]
    prior = fit_prior(rows, shares, assignment, np.full(4, 7.0), np.full(4, 1e-9), np.arange(4))
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
        assert prior.mean[d] == pytest.approx(np.mean(list(centres.values())))
        assert prior.unit_variance[d] == pytest.approx(within / spare if spare else 7.0)
        apart = np.mean([(x - prior.mean[d]) ** 2 for x in centres.values()])
        shrink = prior.unit_variance[d] * np.mean([1 / w for w in weights.values()])
        assert prior.atom_variance[d] == pytest.approx(max(apart - shrink, 1e-9))
