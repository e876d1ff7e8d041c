"""Matching at a growing width by the predictive density (SPAHM, Yurochkin et al., NeurIPS 2019).

Unlike :mod:`.pfnm` it fits mean and variances on the way, and observers may be blind in some columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .pfnm import BetaBernoulli, base_measure, gather, match_growing


@dataclass(frozen=True)
class Spahm:
    """Atoms that SPAHM found, and the prior that it estimated on the way."""

    atoms: np.ndarray  # (L, D)
    count: np.ndarray  # (L,) clients that hold each atom, the frame among them
    assignment: list[np.ndarray]  # per client (L_j,); the frame's units are the first atoms, in its order
    mean: np.ndarray  # (D,) mu_0
    variance: np.ndarray  # (D,) sigma^2, of a unit around its atom
    spread: np.ndarray  # (D,) sigma_0^2, of atoms around the mean


def spahm(
    rows: Sequence[np.ndarray],
    *,
    frame: np.ndarray | None = None,
    shares: Sequence[np.ndarray] | None = None,
    blocks: Sequence[int] | None = None,
    sigma: float | None = None,
    sigma0: float | None = None,
    gamma: float = 1.0,
    sweeps: int = 5,
    seed: int = 0,
    floor: float = 1e-10,
    popularity_cap: int | None = 10,
    width_cap: int | None = None,
) -> Spahm:
    """Match by the predictive density, fitting mean and variances after every sweep (SPAHM, NeurIPS 2019).

    This is the growing width for a network's axis too: its log-determinant weighs a new atom against its width, where
    the maximum a posteriori of :func:`pfnm` opens one whenever the prior is flat.

    Args:
        rows: per client (L_j, D) units.
        frame: (L, D) the last global model's units: one more observer, whose atoms stay.
        shares: per observer, the frame first, (D,) what it counts in each column: a unit varies around its atom by
            the variance over its share; 0 where the observer has nothing to say. All 1 if not given.
        blocks: columns that share their variances, as lengths of runs; each column has its own if not given.
        sigma: variance of a unit around its atom, to start from; read off nearest units (:func:`near_share`) if not
            given. The authors start from 1, and what a wrong start mismatches, the sweeps seldom mend.
        sigma0: variance of an atom around the mean, to start from; that of all units if not given.
        gamma: mass of the beta process.
        sweeps: passes over the clients after the first placement.
        seed: of the clients' order in each sweep.
        floor: least variance of any kind. The authors' code has none, and its spread turns negative when clients
            share an initialisation; a millionth of a column's variance bounds it as well.
        popularity_cap: as in the authors' code.
        width_cap: most atoms, unless a client alone has more units.
    """
    pinned = [] if frame is None else [0]
    observed = [np.asarray(v, float) for v in (*([] if frame is None else [frame]), *rows)]
    columns = observed[0].shape[1]
    shares = [np.ones(columns)] * len(observed) if shares is None else [np.asarray(share, float) for share in shares]
    runs = np.repeat(np.arange(len(blocks)), blocks) if blocks else np.arange(columns)
    mean, whole = _moments(observed, shares, runs)
    floors = np.maximum(floor, 1e-6 * whole)
    variance = near_share(observed, [share > 0 for share in shares]) * whole
    variance = variance if sigma is None else np.full(columns, sigma)
    spread = whole if sigma0 is None else np.full(columns, sigma0)
    variance, spread = np.maximum(variance, floors), np.maximum(spread, floors)
    process = BetaBernoulli(gamma, log_det=True, popularity_cap=popularity_cap, width_cap=width_cap)
    free = range(len(pinned), len(observed))
    generator = np.random.default_rng(seed)
    placed = [*pinned, *sorted(free, key=lambda j: -len(observed[j]))]
    base, precisions = base_measure(mean, 1 / spread), [share / variance for share in shares]
    assignment, atoms = match_growing(observed, precisions, base, process, [], placed=placed)
    for sweep in range(sweeps + 1):
        mean, variance, spread = fit_prior(observed, shares, assignment, variance, floors, runs)
        base, precisions = base_measure(mean, 1 / spread), [share / variance for share in shares]
        atoms = gather(assignment, observed, precisions, base)
        if sweep < sweeps:
            order = [free[j] for j in generator.permutation(len(rows))]
            assignment, atoms = match_growing(observed, precisions, base, process, [order], start=(assignment, atoms))
    return Spahm(atoms.mean, atoms.count, assignment[len(pinned) :], mean, variance, spread)


def near_share(rows: Sequence[np.ndarray], seen: Sequence[np.ndarray]) -> float:
    """Return about what share of units' variance lies between units of one atom: where :func:`spahm` starts from.

    Each unit is compared with its nearest of another client, on the columns (D,) that both have seen; the farther half,
    whose atoms perhaps no one else holds, is left out. Two units of one atom differ by twice the variance, but the
    nearest of many by less: the factor stays in, since a start that is too tight opens atoms that are never closed
    again.
    """
    nearest = []
    for j, v in enumerate(rows):
        closest = np.full(len(v), np.inf)
        for k, other in enumerate(rows):
            both = seen[j] & seen[k]
            if both.any() and (k != j or len(rows) == 1):
                a, b = v[:, both], other[:, both]
                distance = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
                closest = np.minimum(closest, distance.min(axis=1) * len(both) / both.sum())
        nearest.append(closest[np.isfinite(closest)])
    joined = np.sort(np.concatenate(nearest))[: (sum(map(len, rows)) + 1) // 2]
    _, variance = _moments(rows, [own.astype(float) for own in seen], np.arange(rows[0].shape[1]))
    total = variance.sum()
    return max(float(joined.mean()), 0.0) / total if total > 0 and len(joined) else 0.0


def fit_prior(
    rows: Sequence[np.ndarray],
    shares: Sequence[np.ndarray],
    assignment: Sequence[np.ndarray],
    variance: np.ndarray,
    floors: np.ndarray,
    runs: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, variance and spread, (D,) each, of an assignment by moments (SPAHM).

    Where every atom has one unit, nothing tells the variance: it stays as given.
    """
    width = 1 + max(int(columns.max()) for columns in assignment)
    weight, number, total, squares = np.zeros((4, width, rows[0].shape[1]))
    for columns, v, share in zip(assignment, rows, shares, strict=True):
        weight[columns] += share
        number[columns] += share > 0
        total[columns] += share * v
        squares[columns] += share * v**2
    known = weight > 0
    inverse = np.divide(1.0, weight, out=np.zeros_like(weight), where=known)
    centres, atoms = total * inverse, known.sum(axis=0)
    spare = np.bincount(runs, (number - known).sum(axis=0))[runs]
    within = np.bincount(runs, (squares - total * centres).sum(axis=0))[runs]
    variance = np.where(spare > 0, np.maximum(within / np.maximum(spare, 1), floors), variance)
    mean = centres.sum(axis=0) / np.maximum(atoms, 1)
    apart = (known * (centres - mean) ** 2).sum(axis=0) / np.maximum(atoms, 1)
    spread = _pool(apart - variance * inverse.sum(axis=0) / np.maximum(atoms, 1), runs, atoms > 0)
    return mean, variance, np.maximum(spread, floors)


def _moments(
    rows: Sequence[np.ndarray], shares: Sequence[np.ndarray], runs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (D,) mean and pooled variance of all units, as far as somebody has seen the column."""
    weight = np.sum([len(v) * share for v, share in zip(rows, shares, strict=True)], axis=0)
    known = weight > 0
    mean = np.sum([v.sum(axis=0) * share for v, share in zip(rows, shares, strict=True)], axis=0)
    mean = np.divide(mean, weight, out=np.zeros_like(mean), where=known)
    squares = np.sum([np.square(v - mean).sum(axis=0) * share for v, share in zip(rows, shares, strict=True)], axis=0)
    return mean, _pool(np.divide(squares, weight, out=np.zeros_like(mean), where=known), runs, known)


def _pool(values: np.ndarray, runs: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return (D,) values replaced by the mean of those known in their run."""
    return (np.bincount(runs, values * known) / np.maximum(np.bincount(runs, known), 1))[runs]
