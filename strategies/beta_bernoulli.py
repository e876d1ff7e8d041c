"""Neuron matching at a growing width: a beta-Bernoulli process on the number of atoms, and its inference.

Every client holds some of an unknown number of atoms: each unit joins an atom that other clients hold, or opens a new
one (PFNM, Yurochkin et al., ICML 2019; SPAHM, NeurIPS 2019). Gains and notation are those of :mod:`.matching`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .matching import assign, log_det_gains, map_gains


@dataclass(frozen=True)
class BetaBernoulli:
    """The Indian buffet prior, which decides how readily a client's unit opens a new atom, and its practical limits."""

    gamma: float = 1.0  # mass of the beta process: expected number of atoms of a client beyond the shared ones
    log_det: bool = False  # predictive density (SPAHM) rather than MAP (PFNM)
    existing_factor: float = 2.0  # weight of log(m / (J - m)) for an atom that m other clients hold
    popularity_cap: int | None = None  # upper limit of m
    width_cap: int | None = None  # no new atoms beyond this number
    beyond_cap: int = 0  # new atoms that a client may open in spite of the cap

    def gains(self, rows: np.ndarray, precision: np.ndarray, atoms: Atoms, base: Atoms, clients: int) -> np.ndarray:
        """Return (L_j, L + new) gains of joining one of the L atoms or opening the k-th new one."""
        width = len(atoms.count)
        popularity = np.minimum(atoms.count, self.popularity_cap or clients)
        existing = map_gains(rows, precision, atoms.weighted, atoms.precision)
        existing += self.existing_factor * np.log(popularity / (clients - popularity))
        new = map_gains(rows, precision, base.weighted, base.precision)
        if self.log_det:
            existing += log_det_gains(precision, atoms.precision)
            new += log_det_gains(precision, base.precision)
        room = len(rows) if self.width_cap is None else max(self.width_cap - width, self.beyond_cap, len(rows) - width)
        k = np.arange(1, min(len(rows), room) + 1)
        return np.hstack([existing, new + 2 * np.log(self.gamma / clients) - 2 * np.log(k)])


@dataclass
class Atoms:
    """Global units in natural parameters, and how many clients hold each."""

    weighted: np.ndarray  # (L, D) N
    precision: np.ndarray  # (L, D) S
    count: np.ndarray  # (L,) m

    @property
    def mean(self) -> np.ndarray:
        """Return (L, D) posterior means N / S; 0 where the precision is 0."""
        return np.divide(self.weighted, self.precision, out=np.zeros_like(self.weighted), where=self.precision > 0)

    def add(self, assigned: np.ndarray, rows: np.ndarray, precision: np.ndarray, sign: int = 1) -> None:
        """Add a client's rows (L_j, D) to the atoms ``assigned`` (L_j,), or remove them with ``sign=-1``."""
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
        """Remove atoms that no client holds; return (old L,) the new index of each remaining atom."""
        keep = self.count > 0
        self.weighted, self.precision, self.count = self.weighted[keep], self.precision[keep], self.count[keep]
        return np.cumsum(keep) - 1


def base_measure(mean: np.ndarray, precision: np.ndarray) -> Atoms:
    """Return the prior N(mean, 1 / precision), each (D,), of an atom that no client holds."""
    return Atoms((mean * precision)[None], np.array(precision, float)[None], np.zeros(1, int))


def gather_atoms(
    assignment: Sequence[np.ndarray], rows: Sequence[np.ndarray], precisions: Sequence[np.ndarray], base: Atoms
) -> Atoms:
    """Return the atoms that result from an assignment of the clients' rows."""
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
    first_order: Sequence[int] | None = None,
    start: tuple[Sequence[np.ndarray], Atoms] | None = None,
) -> tuple[list[np.ndarray], Atoms]:
    """Match clients to atoms whose number the data decide (the inference of PFNM and SPAHM).

    Clients are placed one by one, the first with its units as the atoms; then in every sweep each is removed and placed
    again.

    Args:
        rows: per client (L_j, D).
        precisions: per client (D,).
        base: prior of a new atom, from :func:`base_measure`.
        process: settings of the gains.
        orders: one sequence of clients per sweep; a client that no sweep contains keeps its first assignment.
        first_order: order of the first placement; widest client first if not given.
        start: an assignment to sweep from instead of the first placement, with its atoms (:func:`gather_atoms`).

    Returns:
        Per client (L_j,) the atom of each unit, and the atoms.
    """
    if start is None:
        atoms, assignment = Atoms(base.weighted[:0], base.precision[:0], base.count[:0]), [np.empty(0, int)] * len(rows)
        for j in sorted(range(len(rows)), key=lambda j: -len(rows[j])) if first_order is None else first_order:
            assignment[j] = _place(atoms, rows[j], precisions[j], base, process, len(rows))
    else:
        atoms, assignment = start[1], [np.array(columns) for columns in start[0]]
    for order in orders:
        for j in order:
            atoms.add(assignment[j], rows[j], precisions[j], sign=-1)
            new_index = atoms.drop_empty()
            assignment = [columns if k == j else new_index[columns] for k, columns in enumerate(assignment)]
            assignment[j] = _place(atoms, rows[j], precisions[j], base, process, len(rows))
    return assignment, atoms


def _place(
    atoms: Atoms, rows: np.ndarray, precision: np.ndarray, base: Atoms, process: BetaBernoulli, clients: int
) -> np.ndarray:
    """Add a client's units to the best atoms, existing or new; return (L_j,) their indices."""
    width = len(atoms.count)
    columns = assign(process.gains(rows, precision, atoms, base, clients)) if width else np.arange(len(rows))
    new = columns >= width
    columns[new] = width + np.arange(new.sum())  # new atoms are numbered in the order of the units that open them
    atoms.extend(base, width + int(new.sum()))
    atoms.add(columns, rows, precision)
    return columns
