"""Neuron matching on one axis: gains, assignment, and consensus over clients at a fixed or a growing width.

Unit l of client j is a vector v_jl in R^D, all slices of tensors that its axis ties together. Global unit (atom) i is
a Gaussian over R^D in natural parameters: precision S_i and weighted sum N_i = S_i * mean_i, one number a dimension.
A client states its own precision lambda_j, one number a dimension; 0 where it has nothing to say.

All gains are twice a log density, to be maximised, up to a constant that no assignment of a client changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

FloatDtype = type[np.float32] | type[np.float64]


def map_gains(
    rows: np.ndarray, precision: np.ndarray, weighted: np.ndarray, atom_precision: np.ndarray,
    dtype: FloatDtype = np.float64,
) -> np.ndarray:
    """Return what each row adds to sum N^2 / S when it joins each atom (PFNM, Yurochkin et al., ICML 2019, eq. 8).

    That is, sum_d (N + lambda v)^2 / (S + lambda) - N^2 / S, multiplied out so that it takes two matrix products
    instead of a pass over (L_j, L, D). Where S is the same for all atoms, one row of it will do.

    Args:
        rows: (L_j, D) units v.
        precision: (D,) lambda.
        weighted: (L, D) N.
        atom_precision: (L, D) or (1, D) S.
        dtype: of the products; float32 is twice as fast and errs by about 2e-6 of the gain.

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
    """Return (L,) sum_d log S - log(S + lambda), the width of the predictive density (SPAHM, NeurIPS 2019, eq. 5).

    Added to :func:`map_gains` it makes the gain twice the full log predictive density of a row under each atom.
    """
    spread = np.divide(precision, atom_precision, out=np.zeros(np.broadcast(precision, atom_precision).shape),
                       where=atom_precision > 0)
    return -np.log1p(spread).sum(axis=1)


def assign(gains: np.ndarray) -> np.ndarray:
    """Return for each row its column in the assignment of the largest total gain; (L_j, L) with L_j <= L."""
    best = gains.argmax(axis=1)
    if len(np.unique(best)) == len(best):  # nobody contends, so nothing can be better: clients near the global model
        return best
    return linear_sum_assignment(gains, maximize=True)[1]


@dataclass(frozen=True)
class BetaBernoulli:
    """How readily a client's unit opens an atom of its own: the Indian buffet prior and its practical limits."""

    gamma: float = 1.0  # mass of the beta process: atoms that a client is expected to hold beyond the shared ones
    log_det: bool = False  # predictive density (SPAHM) rather than MAP (PFNM)
    existing_factor: float = 2.0  # weight of log(m / (J - m)) for an atom that m other clients hold
    popularity_cap: int | None = None  # larger m count as this
    width_cap: int | None = None  # no new atoms beyond this many
    beyond_cap: int = 0  # new atoms that a client may open all the same

    def gains(
        self, rows: np.ndarray, precision: np.ndarray, atoms: Atoms, base: Atoms, clients: int
    ) -> np.ndarray:
        """Return (L_j, L + new) gains of joining the L atoms or opening the k-th new one."""
        width = len(atoms.count)
        popularity = np.minimum(atoms.count, self.popularity_cap or clients)
        old = map_gains(rows, precision, atoms.weighted, atoms.precision)
        old += self.existing_factor * np.log(popularity / (clients - popularity))
        new = map_gains(rows, precision, base.weighted, base.precision)
        if self.log_det:
            old += log_det_gains(precision, atoms.precision)
            new += log_det_gains(precision, base.precision)
        room = len(rows) if self.width_cap is None else max(self.width_cap - width, self.beyond_cap, len(rows) - width)
        order = np.arange(1, min(len(rows), room) + 1)
        return np.hstack([old, new + 2 * np.log(self.gamma / clients) - 2 * np.log(order)])


@dataclass
class Atoms:
    """Global units in natural parameters, and by how many clients each is held."""

    weighted: np.ndarray  # (L, D) N
    precision: np.ndarray  # (L, D) S
    count: np.ndarray  # (L,) m

    @property
    def mean(self) -> np.ndarray:
        """Return (L, D) posterior means N / S; 0 where nobody said anything."""
        return np.divide(self.weighted, self.precision, out=np.zeros_like(self.weighted), where=self.precision > 0)

    def add(self, assigned: np.ndarray, rows: np.ndarray, precision: np.ndarray, sign: int = 1) -> None:
        """Let a client's rows (L_j, D) join atoms ``assigned`` (L_j,), or leave them with ``sign=-1``."""
        self.weighted[assigned] += sign * (rows * precision)
        self.precision[assigned] += sign * precision
        self.count[assigned] += sign

    def extend(self, base: Atoms, width: int) -> None:
        """Append empty atoms up to ``width``."""
        new = max(width - len(self.count), 0)
        self.weighted = np.vstack([self.weighted, np.repeat(base.weighted, new, axis=0)])
        self.precision = np.vstack([self.precision, np.repeat(base.precision, new, axis=0)])
        self.count = np.concatenate([self.count, np.zeros(new, int)])

    def drop_empty(self) -> np.ndarray:
        """Remove atoms that nobody holds; return (old L,) the new index of each atom that stays."""
        keep = self.count > 0
        self.weighted, self.precision, self.count = self.weighted[keep], self.precision[keep], self.count[keep]
        return np.cumsum(keep) - 1


def base_measure(mean: np.ndarray, precision: np.ndarray) -> Atoms:
    """Return the prior N(mean, 1 / precision), each (D,), of an atom that nobody holds."""
    return Atoms((mean * precision)[None], np.array(precision, float)[None], np.zeros(1, int))


def gather(
    assignment: Sequence[np.ndarray], rows: Sequence[np.ndarray], precisions: Sequence[np.ndarray], base: Atoms
) -> Atoms:
    """Return the atoms that an assignment makes of the clients' rows."""
    atoms = Atoms(base.weighted[:0], base.precision[:0], base.count[:0])
    atoms.extend(base, 1 + max(int(columns.max()) for columns in assignment))
    for columns, v, precision in zip(assignment, rows, precisions, strict=True):
        atoms.add(columns, v, precision)
    return atoms


def match_growing(
    rows: Sequence[np.ndarray],
    precisions: Sequence[np.ndarray],
    base: Atoms,
    process: BetaBernoulli,
    orders: Iterable[Sequence[int]],
    *,
    placed: Sequence[int] | None = None,
    start: tuple[Sequence[np.ndarray], Atoms] | None = None,
) -> tuple[list[np.ndarray], Atoms]:
    """Match clients to atoms whose number the data decide (PFNM's and SPAHM's inference).

    Clients are placed one by one, the first as it is; then in every sweep each is taken out and placed again.

    Args:
        rows: per client (L_j, D).
        precisions: per client (D,).
        base: prior of a new atom, from :func:`base_measure`.
        process: the gains' settings.
        orders: one sequence of clients a sweep; a client that no sweep names keeps its first place.
        placed: order of the first placement; widest client first if not given.
        start: an assignment to sweep from instead of placing, with its atoms (:func:`gather`).

    Returns:
        Per client (L_j,) the atom of each unit, and the atoms.
    """
    if start is None:
        atoms, assignment = Atoms(base.weighted[:0], base.precision[:0], base.count[:0]), [np.empty(0, int)] * len(rows)
        for j in sorted(range(len(rows)), key=lambda j: -len(rows[j])) if placed is None else placed:
            assignment[j] = _place(atoms, rows[j], precisions[j], base, process, len(rows))
    else:
        atoms, assignment = start[1], [np.array(columns) for columns in start[0]]
    for order in orders:
        for j in order:
            atoms.add(assignment[j], rows[j], precisions[j], sign=-1)
            moved = atoms.drop_empty()
            assignment = [columns if k == j else moved[columns] for k, columns in enumerate(assignment)]
            assignment[j] = _place(atoms, rows[j], precisions[j], base, process, len(rows))
    return assignment, atoms


def _place(
    atoms: Atoms, rows: np.ndarray, precision: np.ndarray, base: Atoms, process: BetaBernoulli, clients: int
) -> np.ndarray:
    """Let a client's units join the best atoms, old or new; return (L_j,) those."""
    width = len(atoms.count)
    columns = assign(process.gains(rows, precision, atoms, base, clients)) if width else np.arange(len(rows))
    new = columns >= width
    columns[new] = width + np.arange(new.sum())  # new atoms are numbered in the order of the units that open them
    atoms.extend(base, width + int(new.sum()))
    atoms.add(columns, rows, precision)
    return columns
