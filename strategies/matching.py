"""Neuron matching on one axis at a fixed width: gains, assignment, consensus.

Unit l of client j is a vector v_jl in R^D: the concatenation of all tensor slices that its axis ties together. Global
unit (atom) i is a Gaussian over R^D in natural parameters: precision S_i and weighted sum N_i = S_i * mean_i, one
number per dimension. Client j has a precision lambda_j of its own, one number per dimension; 0 where it has no
information.

All gains are twice a log density, to be maximised, up to a constant that no assignment of a client changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FloatDtype = type[np.float32] | type[np.float64]


def map_gains(
    rows: np.ndarray,
    precision: np.ndarray,
    weighted: np.ndarray,
    atom_precision: np.ndarray,
    dtype: FloatDtype = np.float64,
) -> np.ndarray:
    """Return what each row adds to sum N^2 / S when it joins each atom (PFNM, Yurochkin et al., ICML 2019).

    This is sum_d (N + lambda v)^2 / (S + lambda) - N^2 / S, expanded so that it takes two matrix products instead of a
    pass over (L_j, L, D). If S is the same for all atoms, one row of it is enough.

    Args:
        rows: (L_j, D) units v.
        precision: (D,) lambda.
        weighted: (L, D) N.
        atom_precision: (L, D) or (1, D) S.
        dtype: type of the products; float32 is twice as fast, with an error of about 2e-6 of the gain.

    Returns:
        (L_j, L) gains.
    """
    joined = atom_precision + precision
    inverse = np.divide(1.0, joined, out=np.zeros_like(joined), where=joined > 0)
    alone = np.divide(1.0, atom_precision, out=np.zeros_like(joined), where=atom_precision > 0)
    scaled = (rows * precision).astype(dtype)
    gains = (2.0 * scaled) @ (weighted * inverse).astype(dtype).T
    gains += np.square(scaled) @ inverse.astype(dtype).T
    gains += (np.square(weighted) * (inverse - alone)).sum(axis=1).astype(dtype)
    return gains


def log_det_gains(precision: np.ndarray, atom_precision: np.ndarray) -> np.ndarray:
    """Return (L,) sum_d log S - log(S + lambda), the width of the predictive density (SPAHM, NeurIPS 2019).

    Added to :func:`map_gains`, it makes the gain twice the full log predictive density of a row under each atom.
    """
    zeros = np.zeros(np.broadcast(precision, atom_precision).shape)
    spread = np.divide(precision, atom_precision, out=zeros, where=atom_precision > 0)
    return -np.log1p(spread).sum(axis=1)


def assign(gains: np.ndarray, groups: int = 1) -> np.ndarray:
    """Return the column of each row in the assignment with the largest total gain; (L_j, L) with L_j <= L.

    With ``groups``, rows and columns are that many equal runs, and each run of rows is assigned to one run of columns.
    """
    if groups > 1:
        size = len(gains) // groups
        blocks = gains.reshape(groups, size, groups, size).swapaxes(1, 2)
        inside = np.array([[assign(block) for block in row] for row in blocks])  # (groups, groups, size)
        totals = np.take_along_axis(blocks, inside[..., None], axis=3).sum(axis=(2, 3))
        outside = assign(totals)
        return np.concatenate([target * size + inside[run, target] for run, target in enumerate(outside)])
    best = gains.argmax(axis=1)
    if len(np.unique(best)) == len(best):  # no two rows compete, so this is optimal: the usual case near the last model
        return best
    from scipy.optimize import linear_sum_assignment  # takes a third of a second, and sites never match

    return linear_sum_assignment(gains, maximize=True)[1]


def moved_share(permutation: np.ndarray) -> float:
    """Return the share of units that a permutation moves."""
    return float((permutation != np.arange(len(permutation))).mean())


@dataclass(frozen=True)
class Match:
    """The permutations that bring clients' units on one axis to the atoms."""

    permutations: list[np.ndarray]  # per client (L,): which of its units belongs to each atom
    objective: list[float]  # sum N^2 / S, after the first placement and after each sweep; it never decreases

    @property
    def moved(self) -> float:
        """Return the share of all clients' units that change place."""
        return float(np.mean([moved_share(permutation) for permutation in self.permutations]))


def match(
    rows: Sequence[np.ndarray],
    precisions: Sequence[np.ndarray],
    *,
    prior: tuple[np.ndarray, np.ndarray] | None = None,
    warm_start: bool = False,
    groups: int = 1,
    gate: float = 1e-3,
    max_sweeps: int = 5,
    seed: int = 0,
    dtype: FloatDtype = np.float32,
) -> Match:
    """Match all clients to as many atoms as each has units: the inference of PFNM without its process on the width.

    Clients are placed one by one, those with the highest precision first. If that moved any unit, each client is
    removed and placed again, in a new random order per sweep, until nothing changes. A client keeps its permutation
    unless another one has a larger gain by at least the share ``gate``, so that noise alone does not move units.

    Args:
        rows: per client (L, D) units, on a common scale over D.
        precisions: per client (D,); 0 where the client has no information.
        prior: (L, D) expected atoms, such as the last global model, and their (D,) precision. Without it the order of
            the first client is the reference.
        warm_start: start from the clients' present order as an earlier result instead of placing them.
        groups: runs of units that move as a whole.
        gate: minimum relative gain of a new permutation.
        max_sweeps: maximum number of sweeps over the clients.
        seed: seed of the order in each sweep.
        dtype: type of the matrix products in the gains.
    """
    consensus = _Consensus(rows, precisions, prior, groups, gate, dtype)
    changes = int(warm_start)
    for number, j in enumerate(sorted(range(len(rows)), key=lambda j: -precisions[j].sum())):
        if not warm_start and (number or prior is not None):
            changes += consensus.place(j)
        consensus.add(j)
    objective = [consensus.objective()]
    generator = np.random.default_rng(seed)
    for _ in range(max_sweeps):
        if not changes:
            break
        changes = 0
        for j in generator.permutation(len(rows)):
            consensus.add(j, sign=-1)
            changes += consensus.place(j)
            consensus.add(j)
        objective.append(consensus.objective())
    return Match(consensus.permutations, objective)


@dataclass
class _Consensus:
    """The atoms in natural parameters, and the permutation of each client."""

    rows: Sequence[np.ndarray]
    precisions: Sequence[np.ndarray]
    prior: tuple[np.ndarray, np.ndarray] | None
    groups: int
    gate: float
    dtype: FloatDtype

    def __post_init__(self) -> None:
        self.weighted = np.zeros(self.rows[0].shape)  # N
        self.precision = np.zeros((1, self.rows[0].shape[1]))  # S, the same for all atoms
        if self.prior is not None:
            self.weighted, self.precision = self.prior[0] * self.prior[1], self.precision + self.prior[1]
        self.permutations = [np.arange(len(self.rows[0])) for _ in self.rows]

    def add(self, j: int, sign: int = 1) -> None:
        """Add the units of a client to the atoms, or remove them with ``sign=-1``."""
        self.weighted = self.weighted + sign * (self.rows[j] * self.precisions[j])[self.permutations[j]]
        self.precision = np.maximum(self.precision + sign * self.precisions[j], 0)

    def place(self, j: int) -> bool:
        """Give a client the best permutation if it passes the gate; return whether it changed."""
        gains = map_gains(self.rows[j], self.precisions[j], self.weighted, self.precision, self.dtype)
        present, best = self.permutations[j], np.argsort(assign(gains, self.groups))
        atoms = np.arange(len(best))
        old, new = (gains[units, atoms].sum(dtype=float) for units in (present, best))
        changes = not np.array_equal(best, present) and new - old > self.gate * abs(old)
        if changes:
            self.permutations[j] = best
        return changes

    def objective(self) -> float:
        """Return sum N^2 / S."""
        inverse = np.divide(1.0, self.precision, out=np.zeros_like(self.precision), where=self.precision > 0)
        return float((np.square(self.weighted) * inverse).sum())
