"""Neuron matching at a growing width, as published: PFNM (Yurochkin et al., ICML 2019).

A beta-Bernoulli process lets every client hold some of an unknown number of atoms: a unit joins an atom that other
clients hold, or opens a new one. Gains and notation are those of :mod:`.matching`. A network is a list of arrays
[W_1, b_1, ..., W_C, b_C], every W (inputs, outputs).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .matching import assign, log_det_gains, map_gains

Network = list[np.ndarray]


@dataclass(frozen=True)
class BetaBernoulli:
    """How readily a client's unit opens an atom of its own: the Indian buffet prior and its practical limits."""

    gamma: float = 1.0  # mass of the beta process: atoms that a client is expected to hold beyond the shared ones
    log_det: bool = False  # predictive density (SPAHM) rather than MAP (PFNM)
    existing_factor: float = 2.0  # weight of log(m / (J - m)) for an atom that m other clients hold
    popularity_cap: int | None = None  # larger m count as this
    width_cap: int | None = None  # no new atoms beyond this many
    beyond_cap: int = 0  # new atoms that a client may open all the same

    def gains(self, rows: np.ndarray, precision: np.ndarray, atoms: Atoms, base: Atoms, clients: int) -> np.ndarray:
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


@dataclass(frozen=True)
class Quirks:
    """Where IBM's code and the papers differ; the defaults are the papers'."""

    existing_factor: float = 2.0  # weight of log(m / (J - m)), as 2 log(gamma / J) of a new atom
    popularity_cap: int | None = None
    width_cap: int | None = None
    beyond_cap: int = 0
    zeros_observed: bool = False  # a client without some atom of the next layer is taken to have seen weights 0 there
    restart_prior_unscaled: bool = False  # from an earlier assignment, N starts at the prior mean, not mean * precision


PAPER = Quirks()
IBM = Quirks(
    existing_factor=1.0, popularity_cap=10, width_cap=700, beyond_cap=1, zeros_observed=True,
    restart_prior_unscaled=True,
)  # fmt: skip


@dataclass(frozen=True)
class Matched:
    """A merged network and where each client's units went."""

    weights: Network
    precisions: Network  # posterior precision of every weight
    assignment: list[list[np.ndarray]]  # hidden layer, then client: (L_j,) the global unit of each local one


def pfnm(
    networks: Sequence[Network],
    class_counts: np.ndarray,
    *,
    sigma: float = 1.0,
    sigma0: float = 1.0,
    gamma: float = 1.0,
    bias_mean: float = 0.1,
    sweeps: int = 5,
    seed: int = 0,
    orders: Sequence[Sequence[Sequence[int]]] | None = None,
    start: Sequence[Sequence[np.ndarray]] | None = None,
    quirks: Quirks = PAPER,
) -> Matched:
    """Match layer by layer from the top (PFNM, Yurochkin et al., ICML 2019).

    The incoming weights take part in the first hidden layer only. Outgoing weights to the classes are believed as
    far as the client saw the class: their precision is its share of the class's samples, over sigma.

    Args:
        networks: per client, [W_1, b_1, ...].
        class_counts: (J, K) samples of each class at each client.
        sigma: variance of a client's weight around its atom.
        sigma0: variance of an atom around the prior mean: 0 for weights, ``bias_mean`` for biases.
        gamma: mass of the beta process.
        bias_mean: prior mean of every bias.
        sweeps: passes over the clients after the first placement.
        seed: of the clients' order in each sweep.
        orders: (hidden layers, sweeps, J) that order itself, top layer first.
        start: an earlier round's assignment to go on from, for clients that trained its :func:`local_network`.
        quirks: ``IBM`` repeats the authors' code.
    """
    clients, hidden = len(networks), len(networks[0]) // 2 - 1
    totals = class_counts.sum(axis=0)
    shares = np.divide(class_counts, totals, out=np.zeros(class_counts.shape), where=totals > 0)
    process = BetaBernoulli(
        gamma, existing_factor=quirks.existing_factor, popularity_cap=quirks.popularity_cap,
        width_cap=quirks.width_cap, beyond_cap=quirks.beyond_cap,
    )  # fmt: skip
    state = np.random.RandomState(seed)  # the authors' generator, and drawn as they do
    drawn = np.array([[state.permutation(clients) for _ in range(sweeps)] for _ in range(hidden)])

    biases = np.array([network[-1] for network in networks], float)
    precision = 1 / sigma0 + (shares / sigma).sum(axis=0)
    weights = [(bias_mean / sigma0 + (shares / sigma * biases).sum(axis=0)) / precision]
    precisions = [precision]
    assignment: list[list[np.ndarray]] = []
    width = len(weights[0])  # of the layer above
    for layer in reversed(range(hidden)):
        inputs = len(networks[0][0]) if layer == 0 else 0
        rows, sure = [], []
        for j, network in enumerate(networks):
            outgoing, trust = np.asarray(network[2 * layer + 2], float), shares[j]
            if assignment:  # bring the columns into the order of the layer above, which is merged by now
                outgoing, trust = np.zeros((len(outgoing), width)), np.full(width, float(quirks.zeros_observed))
                outgoing[:, assignment[0][j]], trust[assignment[0][j]] = network[2 * layer + 2], 1.0
            rows.append(np.hstack([network[2 * layer].T[:, :inputs], network[2 * layer + 1][:, None], outgoing]))
            sure.append(np.concatenate([np.ones(inputs + 1), trust]) / sigma)
        mean = np.zeros(inputs + 1 + width)
        mean[inputs] = bias_mean
        base = base_measure(mean, np.full(len(mean), 1 / sigma0))
        begin = None
        if start is not None:
            prior = Atoms(mean[None], base.precision, base.count) if quirks.restart_prior_unscaled else base
            begin = (start[layer], gather(start[layer], rows, sure, prior))
        order = (drawn if orders is None else orders)[hidden - 1 - layer]
        matched, atoms = match_growing(rows, sure, base, process, order, start=begin)
        assignment.insert(0, matched)
        width = len(atoms.count)
        for merged, values in ((weights, atoms.mean), (precisions, atoms.precision)):
            merged[:0] = [values[:, :inputs].T] * (layer == 0) + [values[:, inputs], values[:, inputs + 1 :]]
    return Matched(weights, precisions, assignment)


def local_network(weights: Network, assignment: Sequence[Sequence[np.ndarray]], client: int) -> Network:
    """Return the part of a merged network that a client's units were matched to, in the client's order."""
    units: list[np.ndarray | slice] = [slice(None), *(layer[client] for layer in assignment), slice(None)]
    network = []
    for layer, (inputs, outputs) in enumerate(pairwise(units)):
        network += [weights[2 * layer][inputs][:, outputs], weights[2 * layer + 1][outputs]]
    return network
