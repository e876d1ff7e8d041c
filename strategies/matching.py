"""Neuron matching at a fixed width: gains, assignment, consensus on one axis, and descent over all axes of a network.

Unit l of client j is a vector v_jl in R^D, all slices of tensors that its axis ties together. Global unit (atom) i is
a Gaussian over R^D in natural parameters: precision S_i and weighted sum N_i = S_i * mean_i, one number a dimension.
A client states its own precision lambda_j, one number a dimension; 0 where it has nothing to say.

All gains are twice a log density, to be maximised, up to a constant that no assignment of a client changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from .axes import AxisGraph, Gauge, Slot, Tensors

Weights = float | Mapping[str, float]

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


# The inside of heads.


def circuit_rows(graph: AxisGraph, label: str, networks: Sequence[Tensors]) -> list[np.ndarray]:
    """Return per network (heads, R) rows whose distances are those of the heads' circuits, whatever the inner basis.

    A head is its products Q^T K and V^T O with biases as columns, each scaled to norm 1 on average; their inner
    products <L^T R, L'^T R'> = sum (L L'^T) * (R R'^T) need no product formed, and the rows are read off the Gram
    matrix of all heads of all networks. Time grows with the square of the number of networks.
    """
    gram: np.ndarray | float = 0.0
    for circuit in graph.axes[label].circuits:
        left, right = ([graph.side(net, label, pieces) for net in networks] for pieces in (circuit.left, circuit.right))
        heads, inner, _ = left[0].shape
        left, right = ([values.reshape(heads * inner, -1) for values in side] for side in (left, right))
        blocks = np.zeros((len(networks), heads, len(networks), heads))
        for a in range(len(networks)):
            for b in range(a + 1):
                both = (left[a] @ left[b].T) * (right[a] @ right[b].T)
                blocks[a, :, b] = both.reshape(heads, inner, heads, inner).sum(axis=(1, 3), dtype=float)
                blocks[b, :, a] = blocks[a, :, b].T
        part = blocks.reshape(len(networks) * heads, -1)
        gram = gram + part / max(part.diagonal().mean(), 1e-300)
    values, vectors = np.linalg.eigh(gram)
    return np.split(vectors * np.sqrt(np.maximum(values, 0)), len(networks))


def inner_basis(
    left: np.ndarray, right: np.ndarray, left_to: np.ndarray, right_to: np.ndarray, gauge: Gauge
) -> np.ndarray:
    """Return (heads, inner, inner) A that brings left -> A left and right -> A^-T right near the targets.

    ``orth`` solves the orthogonal Procrustes problem of both sides at once. ``gl`` first gives every head the basis in
    which both sides have the same Gram matrix, which leaves only an orthogonal freedom, and ends in the targets' own.

    Args:
        left: (heads, inner, R_1), one unit's side of a circuit.
        right: (heads, inner, R_2).
        left_to: as ``left``, of the atom.
        right_to: as ``right``, of the atom.
        gauge: which matrices are allowed.
    """
    one = np.broadcast_to(np.eye(left.shape[1]), (*left.shape[:2], left.shape[1]))
    own, target = (_balance(left, right), _balance(left_to, right_to)) if gauge == "gl" else (one, one)
    cross = target @ left_to @ (own @ left).swapaxes(1, 2)
    cross = cross + _contra(target) @ right_to @ (_contra(own) @ right).swapaxes(1, 2)
    u, _, v = np.linalg.svd(cross)
    return np.linalg.inv(target) @ u @ v @ own


def _contra(matrices: np.ndarray) -> np.ndarray:
    return np.linalg.inv(matrices).swapaxes(1, 2)


def _balance(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return per head B with B L L^T B^T = B^-T R R^T B^-1; B^2 is the geometric mean of (L L^T)^-1 and R R^T."""
    root = _power(left @ left.swapaxes(1, 2), 0.5)
    inverse = np.linalg.inv(root)
    return _power(inverse @ _power(root @ right @ right.swapaxes(1, 2) @ root, 0.5) @ inverse, 0.5)


def _power(matrices: np.ndarray, exponent: float) -> np.ndarray:
    """Return powers of symmetric matrices; a direction that no weight uses gets a small scale instead of none."""
    values, vectors = np.linalg.eigh(matrices.astype(float))
    largest = values[..., -1:]
    values = np.where(largest > 0, np.maximum(values, 1e-10 * largest), 1.0)
    return (vectors * values[..., None, :] ** exponent) @ vectors.swapaxes(1, 2)


def turn(graph: AxisGraph, label: str, network: Tensors, target: Tensors, gauge: Gauge) -> Tensors:
    """Return the network with the inner bases of its heads turned to those of the target's."""
    matrices = []
    for circuit in graph.axes[label].circuits:
        left, right = (graph.side(network, label, pieces) for pieces in (circuit.left, circuit.right))
        left_to, right_to = (graph.side(target, label, pieces) for pieces in (circuit.left, circuit.right))
        matrices.append(inner_basis(left, right, left_to, right_to, gauge))
    return graph.regauge(network, label, matrices)


# All axes of a network.


@dataclass(frozen=True)
class Step:
    """One axis matched once."""

    sweep: int
    axis: str
    moved: float  # share of the clients' units that changed place
    objective: float


@dataclass(frozen=True)
class Alignment:
    """Clients in one frame."""

    clients: list[Tensors]
    orders: list[dict[str, np.ndarray]]  # per client, axis -> its unit at each place; what permute takes
    log: list[Step]


def align(
    graph: AxisGraph,
    clients: Sequence[Mapping[str, np.ndarray]],
    *,
    frame: Mapping[str, np.ndarray] | None = None,
    frame_weight: float = 1.0,
    weights: Sequence[Weights] | None = None,
    inner: Gauge = "none",
    gate: float = 1e-3,
    sweeps: int = 5,
    seed: int = 0,
    dtype: FloatDtype = np.float32,
) -> Alignment:
    """Bring clients into one frame by matching axis after axis, each with all others held (coordinate descent).

    Units of one axis compare only in columns whose other axes agree already. So the first sweep goes by what is
    settled: the axis with the most comparable columns is matched next, on those alone. In a vision transformer that is
    the residual stream, on patches, positions, norms and biases; then heads and MLPs. Later sweeps take all columns,
    in a new random order of the axes, until nothing moves. Every tensor is scaled to mean square 1 over the clients,
    or the largest would decide alone. A client that lacks a tensor has no say in its columns.

    Args:
        graph: the table of axes; frozen ones stay.
        clients: their tensors; each may lack parts that others have.
        frame: the last global model, where atoms are expected.
        frame_weight: how many average clients the frame counts as.
        weights: per client the samples behind its tensors, one number or one a tensor; equal if not given.
        inner: inside heads. ``none`` compares weights as they are, for clients that started from one model; ``orth``
            and ``gl`` compare circuits and then turn the inner bases into the frame's, or the first client's.
        gate: as in :func:`match`.
        sweeps: most passes over the axes.
        seed: of all random orders.
        dtype: of the matrix products.
    """
    members = [dict(client) for client in clients]
    global_model = [] if frame is None else [dict(frame)]
    for tensors in members + global_model:
        graph.validate(tensors)
    says = [1.0] * len(members) if weights is None else list(weights)
    orders: list[dict[str, np.ndarray]] = [{} for _ in members]
    generator = np.random.default_rng(seed)
    free = [label for label, axis in graph.axes.items() if axis.kind != "frozen"]
    settled, log = set(graph.axes) - set(free), []

    def step(sweep: int, label: str) -> bool:
        axis = graph.axes[label]
        holders = [j for j, tensors in enumerate(members) if graph.slots(label, tensors)]
        held = [tensors for tensors in global_model if graph.slots(label, tensors)]
        networks = [members[j] for j in holders] + held
        if not holders or len(networks) < 2:
            return False
        turns = inner != "none" and bool(axis.circuits)
        columns = _comparable(graph, label, networks, settled, turns)
        if not any(columns):  # a start has to be made somewhere
            columns = _comparable(graph, label, networks, set(graph.axes), turns)
        rows, precisions = _stack(graph, label, networks, [says[j] for j in holders], frame_weight, *columns)
        prior = (rows.pop(), precisions.pop()) if held else None
        found = match(
            rows, precisions, prior=prior, placed=sweep > 0, groups=axis.groups, gate=gate,
            seed=int(generator.integers(2**32)), dtype=dtype,
        )  # fmt: skip
        for j, order in zip(holders, found.orders, strict=True):
            members[j] = graph.permute(members[j], {label: order})
            orders[j][label] = orders[j].get(label, np.arange(axis.size))[order]
        if turns:
            target = held[0] if held else members[holders[0]]
            for j in holders:
                members[j] = turn(graph, label, members[j], target, inner)
        log.append(Step(sweep, label, found.moved, found.objective[-1]))
        return found.moved > 0

    waiting, moves = list(free), False
    while waiting:
        label = max(waiting, key=lambda label: _count(
            *_comparable(graph, label, members + global_model, settled, inner != "none")
        ))  # fmt: skip
        waiting.remove(label)
        moves |= step(0, label)
        settled.add(label)
    for sweep in range(1, sweeps):
        if not moves:
            break
        moves = any([step(sweep, free[index]) for index in generator.permutation(len(free))])
    return Alignment(members, orders, log)


def _comparable(
    graph: AxisGraph, label: str, networks: Sequence[Tensors], settled: set[str], turns: bool
) -> tuple[list[Slot], list[Slot]]:
    """Return the slots whose other axes agree already; apart, those of circuits if inner bases turn, all or none."""
    union = {name: tensor for tensors in networks for name, tensor in tensors.items()}
    circuits = graph.axes[label].circuits if turns else ()
    inside = {piece.name for circuit in circuits for piece in (*circuit.left, *circuit.right)}
    slots = graph.slots(label, union)
    agreed = [slot for slot in slots if settled.issuperset(set(graph.labels(slot.name)) - {label})]
    turned = [slot for slot in agreed if slot.name in inside]
    return [slot for slot in agreed if slot.name not in inside], turned if len(turned) == len(inside) else []


def _count(*columns: Sequence[Slot]) -> int:
    return sum(slot.width for slots in columns for slot in slots)


def _stack(
    graph: AxisGraph,
    label: str,
    networks: Sequence[Tensors],
    weights: Sequence[Weights],
    frame_weight: float,
    plain: Sequence[Slot],
    turned: Sequence[Slot],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return per network (L, D) rows and (D,) precisions, on one scale; a network beyond the weights is the frame."""
    rows: list[list[np.ndarray]] = [[] for _ in networks]
    precisions: list[list[np.ndarray]] = [[] for _ in networks]

    def add(name: str, values: Sequence[np.ndarray | None]) -> None:
        said = [weight.get(name, 0.0) if isinstance(weight, Mapping) else weight for weight in weights]
        said = [0.0 if value is None else weight for weight, value in zip(said, values, strict=False)]
        total = sum(said) or 1.0
        said += [frame_weight * total / (int(np.count_nonzero(said)) or 1)] * (len(networks) - len(said))
        shape = next(value.shape for value in values if value is not None)
        for k, value in enumerate(values):
            rows[k].append(np.zeros(shape, np.float32) if value is None else value)
            precisions[k].append(np.full(shape[1], 0.0 if value is None else said[k] / total))

    for slot in plain:
        values = [slot.rows(net[slot.name]) if slot.name in net else None for net in networks]
        scale = np.sqrt(np.mean([np.square(value).mean(dtype=float) for value in values if value is not None])) or 1.0
        scale *= np.sqrt(slot.width) if turned else 1.0  # a head has norm 1 in each circuit
        add(slot.name, [value if value is None else value / np.asarray(scale, value.dtype) for value in values])
    if turned:
        add(turned[0].name, circuit_rows(graph, label, networks))
    return [np.hstack(parts) for parts in rows], [np.concatenate(parts) for parts in precisions]
