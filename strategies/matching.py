"""Neuron matching on one axis at a fixed width: gains, assignment, consensus.

Unit l of client j is a vector v_jl in R^D, all slices of tensors that its axis ties together. Global unit (atom) i is
a Gaussian over R^D in natural parameters: precision S_i and weighted sum N_i = S_i * mean_i, one number a dimension.
A client states its own precision lambda_j, one number a dimension; 0 where it has nothing to say.

All gains are twice a log density, to be maximised, up to a constant that no assignment of a client changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

FloatDtype = type[np.float32] | type[np.float64]


def map_gains(
    rows: np.ndarray,
    precision: np.ndarray,
    weighted: np.ndarray,
    atom_precision: np.ndarray,
    dtype: FloatDtype = np.float64,
) -> np.ndarray:
    """Return what each row adds to sum N^2 / S when it joins each atom (PFNM, Yurochkin et al., ICML 2019).

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
    """Return (L,) sum_d log S - log(S + lambda), the width of the predictive density (SPAHM, NeurIPS 2019).

    Added to :func:`map_gains` it makes the gain twice the full log predictive density of a row under each atom.
    """
    spread = np.divide(
        precision, atom_precision, out=np.zeros(np.broadcast(precision, atom_precision).shape), where=atom_precision > 0
    )
    return -np.log1p(spread).sum(axis=1)


def assign(gains: np.ndarray, groups: int = 1) -> np.ndarray:
    """Return for each row its column in the assignment of the largest total gain; (L_j, L) with L_j <= L.

    With ``groups``, rows and columns come in that many equal runs, and a run goes to a run as a whole.
    """
    if groups > 1:
        size = len(gains) // groups
        blocks = gains.reshape(groups, size, groups, size).swapaxes(1, 2)
        inside = np.array([[assign(block) for block in row] for row in blocks])  # (groups, groups, size)
        totals = np.take_along_axis(blocks, inside[..., None], axis=3).sum(axis=(2, 3))
        outside = assign(totals)
        return np.concatenate([target * size + inside[run, target] for run, target in enumerate(outside)])
    best = gains.argmax(axis=1)
    if len(np.unique(best)) == len(best):  # nobody contends, so nothing is better: usual near the global model
        return best
    return linear_sum_assignment(gains, maximize=True)[1]


@dataclass(frozen=True)
class Match:
    """How clients' units on one axis stand against the atoms."""

    orders: list[np.ndarray]  # per client (L,): which of its units belongs at each atom
    objective: list[float]  # sum N^2 / S, of the first placement and after each sweep; it never falls

    @property
    def moved(self) -> float:
        """Return the share of all clients' units that do not belong where they stand."""
        return float(np.mean([(order != np.arange(len(order))).mean() for order in self.orders]))


def match(
    rows: Sequence[np.ndarray],
    precisions: Sequence[np.ndarray],
    *,
    prior: tuple[np.ndarray, np.ndarray] | None = None,
    placed: bool = False,
    groups: int = 1,
    gate: float = 1e-3,
    sweeps: int = 5,
    seed: int = 0,
    dtype: FloatDtype = np.float32,
) -> Match:
    """Match all clients to as many atoms as each has units: PFNM's inference without its process on the width.

    Clients are placed one by one, the surest first; if that changed anything, each is taken out and placed again, in a
    new random order a sweep, until nothing changes. A client keeps its order unless another gains a share ``gate`` of
    what its own does: noise alone should not move units.

    Args:
        rows: per client (L, D) units, in comparable scale over D.
        precisions: per client (D,); 0 where the client has nothing to say.
        prior: (L, D) and (D,): where the atoms are expected, as the last global model, and how surely. Without it the
            first client is the frame.
        placed: the clients' present orders are a result already; go on from them.
        groups: runs of units that move as wholes.
        gate: least relative gain of a new order.
        sweeps: most passes over the clients.
        seed: of the order in each sweep.
        dtype: of the gains' matrix products.
    """
    clients, width = len(rows), len(rows[0])
    weighted, precision = np.zeros((width, rows[0].shape[1])), np.zeros((1, rows[0].shape[1]))
    orders = [np.arange(width) for _ in rows]
    if prior is not None:
        weighted, precision = prior[0] * prior[1], precision + prior[1]

    def take(j: int, sign: int) -> None:
        nonlocal weighted, precision
        weighted = weighted + sign * (rows[j] * precisions[j])[orders[j]]
        precision = np.maximum(precision + sign * precisions[j], 0)

    def place(j: int) -> bool:
        gains = map_gains(rows[j], precisions[j], weighted, precision, dtype)
        order = np.argsort(assign(gains, groups))
        old, new = (gains[units, np.arange(width)].sum(dtype=float) for units in (orders[j], order))
        changes = not np.array_equal(order, orders[j]) and new - old > gate * abs(old)
        if changes:
            orders[j] = order
        return changes

    changed = int(placed)
    for number, j in enumerate(sorted(range(clients), key=lambda j: -precisions[j].sum())):
        if not placed and (number or prior is not None):
            changed += place(j)
        take(j, 1)
    objective = [_objective(weighted, precision)]
    generator = np.random.default_rng(seed)
    for _ in range(sweeps):
        if not changed:
            break
        changed = 0
        for j in generator.permutation(clients):
            take(j, -1)
            changed += place(j)
            take(j, 1)
        objective.append(_objective(weighted, precision))
    return Match(orders, objective)


def _objective(weighted: np.ndarray, precision: np.ndarray) -> float:
    inverse = np.divide(1.0, precision, out=np.zeros_like(precision), where=precision > 0)
    return float((np.square(weighted) * inverse).sum())
