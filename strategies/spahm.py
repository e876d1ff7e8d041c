"""Matching at a growing width by the predictive density (SPAHM, Yurochkin et al., NeurIPS 2019).

Unlike :mod:`.pfnm`, it estimates the prior mean and the variances, and observers may lack some columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .beta_bernoulli import Atoms, BetaBernoulli, base_measure, gather_atoms, match_growing


@dataclass(frozen=True)
class Prior:
    """The hyper-parameters, one number per column."""

    mean: np.ndarray  # (D,) mu_0, prior mean of an atom
    unit_variance: np.ndarray  # (D,) sigma^2, of a unit around its atom
    atom_variance: np.ndarray  # (D,) sigma_0^2, of an atom around the prior mean


@dataclass(frozen=True)
class SpahmResult:
    """The atoms, the assignment, and the estimated prior."""

    atoms: np.ndarray  # (L, D)
    count: np.ndarray  # (L,) number of observers that hold each atom, including the frame
    assignment: list[np.ndarray]  # per client (L_j,); the frame's units are the first atoms, in its order
    prior: Prior


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
) -> SpahmResult:
    """Match by the predictive density; estimate mean and variances after every sweep (SPAHM, NeurIPS 2019).

    It also decides the growing width of a network's axis: its log-determinant penalises the width of the predictive
    density of a new atom, whereas the maximum a posteriori of :func:`.pfnm.pfnm` opens one whenever the prior is flat.

    Args:
        rows: per client (L_j, D) units.
        frame: (L, D) units of the last global model: one more observer, whose atoms are not removed.
        shares: per observer, the frame first, (D,) weight in each column: a unit varies around its atom by the variance
            over its share; 0 where the observer has no information. All 1 if not given.
        blocks: lengths of runs of columns with common variances; if not given, each column has its own.
        sigma: initial variance of a unit around its atom; estimated from nearest units (:func:`unit_variance_share`) if
            not given. The authors start from 1, and sweeps seldom correct what a wrong start mismatches.
        sigma0: initial variance of an atom around the mean; that of all units if not given.
        gamma: mass of the beta process.
        sweeps: number of sweeps over the clients after the first placement.
        seed: seed of the order of clients in each sweep.
        floor: minimum of every variance. The authors' code has none, and its atom variance becomes negative when
            clients share an initialisation. A millionth of a column's variance is a lower limit as well.
        popularity_cap: upper limit of an atom's popularity, as in the authors' code.
        width_cap: maximum number of atoms, unless a single client has more units.
    """
    observed = [np.asarray(v, float) for v in (*([] if frame is None else [frame]), *rows)]
    columns, first_client = observed[0].shape[1], len(observed) - len(rows)
    shares = [np.ones(columns)] * len(observed) if shares is None else [np.asarray(share, float) for share in shares]
    runs = np.repeat(np.arange(len(blocks)), blocks) if blocks else np.arange(columns)
    mean, total = _moments(observed, shares, runs)
    floors = np.maximum(floor, 1e-6 * total)  # (D,)
    within = unit_variance_share(observed, [share > 0 for share in shares]) * total if sigma is None else sigma
    prior = Prior(mean, np.maximum(within, floors), np.maximum(total if sigma0 is None else sigma0, floors))
    process = BetaBernoulli(gamma, log_det=True, popularity_cap=popularity_cap, width_cap=width_cap)
    clients = range(first_client, len(observed))
    generator = np.random.default_rng(seed)
    first_order = [*range(first_client), *sorted(clients, key=lambda j: -len(observed[j]))]
    base, precisions = _precisions(prior, shares)
    assignment, atoms = match_growing(observed, precisions, base, process, [], first_order=first_order)
    for sweep in range(sweeps + 1):
        prior = fit_prior(observed, shares, assignment, prior.unit_variance, floors, runs)
        base, precisions = _precisions(prior, shares)
        atoms = gather_atoms(assignment, observed, precisions, base)
        if sweep < sweeps:
            order = [clients[j] for j in generator.permutation(len(rows))]
            assignment, atoms = match_growing(observed, precisions, base, process, [order], start=(assignment, atoms))
    return SpahmResult(atoms.mean, atoms.count, assignment[first_client:], prior)


def _precisions(prior: Prior, shares: Sequence[np.ndarray]) -> tuple[Atoms, list[np.ndarray]]:
    """Return the base measure, and per observer the (D,) precision of its units."""
    return base_measure(prior.mean, 1 / prior.atom_variance), [share / prior.unit_variance for share in shares]


def unit_variance_share(rows: Sequence[np.ndarray], seen: Sequence[np.ndarray]) -> float:
    """Return roughly what share of the units' variance is within atoms: the start of :func:`spahm`.

    Each unit is compared with the nearest unit of another client, on the columns (D,) that both have seen. The more
    distant half is left out, because no other client may hold those atoms. Two units of one atom differ by twice the
    variance, but the nearest of many differs by less. The factor 2 is not removed, since a start that is too low opens
    atoms that are never closed again.
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
    smaller_half = np.sort(np.concatenate(nearest))[: (sum(map(len, rows)) + 1) // 2]
    _, variance = _moments(rows, [own.astype(float) for own in seen], np.arange(rows[0].shape[1]))
    total = variance.sum()
    return max(float(smaller_half.mean()), 0.0) / total if total > 0 and len(smaller_half) else 0.0


def fit_prior(
    rows: Sequence[np.ndarray],
    shares: Sequence[np.ndarray],
    assignment: Sequence[np.ndarray],
    unit_variance: np.ndarray,
    floors: np.ndarray,
    runs: np.ndarray,
) -> Prior:
    """Return the prior that fits an assignment, by the method of moments (SPAHM).

    If every atom has only one unit, the variance of units cannot be estimated and stays as given.
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
    freedom = np.bincount(runs, (number - known).sum(axis=0))[runs]  # degrees of freedom
    within = np.bincount(runs, (squares - total * centres).sum(axis=0))[runs]
    unit_variance = np.where(freedom > 0, np.maximum(within / np.maximum(freedom, 1), floors), unit_variance)
    mean = centres.sum(axis=0) / np.maximum(atoms, 1)
    between = (known * (centres - mean) ** 2).sum(axis=0) / np.maximum(atoms, 1)
    noise = unit_variance * inverse.sum(axis=0) / np.maximum(atoms, 1)
    atom_variance = _pool(between - noise, runs, atoms > 0)
    return Prior(mean, unit_variance, np.maximum(atom_variance, floors))


def _moments(
    rows: Sequence[np.ndarray], shares: Sequence[np.ndarray], runs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (D,) mean and pooled variance of all units, 0 in columns that no observer has seen."""
    weight = np.sum([len(v) * share for v, share in zip(rows, shares, strict=True)], axis=0)
    known = weight > 0
    mean = np.sum([v.sum(axis=0) * share for v, share in zip(rows, shares, strict=True)], axis=0)
    mean = np.divide(mean, weight, out=np.zeros_like(mean), where=known)
    squares = np.sum([np.square(v - mean).sum(axis=0) * share for v, share in zip(rows, shares, strict=True)], axis=0)
    return mean, _pool(np.divide(squares, weight, out=np.zeros_like(mean), where=known), runs, known)


def _pool(values: np.ndarray, runs: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return (D,) values, each replaced by the mean of the known ones in its run."""
    return (np.bincount(runs, values * known) / np.maximum(np.bincount(runs, known), 1))[runs]
