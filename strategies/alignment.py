"""Descent over all axes of a network: clients that trained apart are brought into one frame, all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .axes import AxisGraph, Gauge, Slot, Tensors
from .heads import circuit_rows, turn
from .matching import FloatDtype, match

Weights = float | Mapping[str, float | np.ndarray]


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
        frame: the last global model, where atoms are expected; it counts as an average client.
        weights: per client the samples behind its tensors, one number or one a tensor; equal if not given. An array of
            a tensor's shape is a precision of every weight, as the samples times a Fisher information. For an axis it
            counts by its mean over the units: a precision a weight fits the data no better and takes L x L x D steps.
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
    says: list[Weights] = [1.0] * len(members) if weights is None else list(weights)
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
        inside = {piece.name for circuit in axis.circuits for piece in (*circuit.left, *circuit.right)}
        turns = inner != "none" and bool(inside) and all(inside <= tensors.keys() for tensors in networks)
        columns = comparable(graph, label, _union(graph, label, networks), settled, turns)
        if not any(columns):  # a start has to be made somewhere
            columns = comparable(graph, label, _union(graph, label, networks), set(graph.axes), turns)
        rows, precisions = _stack(graph, label, networks, [says[j] for j in holders], *columns)
        prior = (rows.pop(), precisions.pop()) if held else None
        found = match(
            rows, precisions, prior=prior, placed=sweep > 0, groups=axis.groups, gate=gate,
            seed=int(generator.integers(2**32)), dtype=dtype,
        )  # fmt: skip
        for j, order in zip(holders, found.orders, strict=True):
            members[j] = graph.permute(members[j], {label: order})
            says[j] = _permute_weights(graph, says[j], {label: order})
            orders[j][label] = orders[j].get(label, np.arange(axis.size))[order]
        if turns:
            target = held[0] if held else members[holders[0]]
            for j in holders:
                members[j] = turn(graph, label, members[j], target, inner)
        log.append(Step(sweep, label, found.moved, found.objective[-1]))
        return found.moved > 0

    waiting, moves = list(free), False
    while waiting:
        label = max(waiting, key=lambda label: count_columns(
            *comparable(graph, label, _union(graph, label, members + global_model), settled, inner != "none")
        ))  # fmt: skip
        waiting.remove(label)
        moves |= step(0, label)
        settled.add(label)
    for sweep in range(1, sweeps):
        if not moves:
            break
        moves = any([step(sweep, free[index]) for index in generator.permutation(len(free))])
    return Alignment(members, orders, log)


def comparable(
    graph: AxisGraph, label: str, slots: Sequence[Slot], settled: set[str], turns: bool
) -> tuple[list[Slot], list[Slot]]:
    """Return the slots whose other axes agree already; apart, those of circuits if inner bases turn, all or none."""
    circuits = graph.axes[label].circuits if turns else ()
    inside = {piece.name for circuit in circuits for piece in (*circuit.left, *circuit.right)}
    agreed = [slot for slot in slots if settled.issuperset(set(graph.labels(slot.name)) - {label})]
    turned = [slot for slot in agreed if slot.name in inside]
    return [slot for slot in agreed if slot.name not in inside], turned if len(turned) == len(inside) else []


def count_columns(*columns: Sequence[Slot]) -> int:
    """Return how many numbers some slots hold of one unit."""
    return sum(slot.width for slots in columns for slot in slots)


def _union(graph: AxisGraph, label: str, networks: Sequence[Tensors]) -> list[Slot]:
    return graph.slots(label, {name: tensor for tensors in networks for name, tensor in tensors.items()})


def _permute_weights(graph: AxisGraph, weights: Weights, orders: Mapping[str, np.ndarray]) -> Weights:
    if not isinstance(weights, Mapping):
        return weights
    arrays = {name: values for name, values in weights.items() if isinstance(values, np.ndarray) and values.ndim}
    return {**weights, **graph.permute(arrays, orders)} if arrays else weights


def _stack(
    graph: AxisGraph,
    label: str,
    networks: Sequence[Tensors],
    weights: Sequence[Weights],
    plain: Sequence[Slot],
    turned: Sequence[Slot],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return per network (L, D) rows and (D,) precisions, on one scale; a network beyond the weights is the frame."""
    rows: list[list[np.ndarray]] = [[] for _ in networks]
    precisions: list[list[np.ndarray]] = [[] for _ in networks]

    def add(slot: Slot, shape: tuple[int, ...], values: Sequence[np.ndarray | None], circuits: bool = False) -> None:
        said = [
            np.zeros(shape[1]) if value is None else _precision(weight, slot, shape[1], circuits)
            for weight, value in zip(weights, values, strict=False)
        ]
        total = np.sum(said, axis=0).mean() or 1.0
        mean = np.sum(said, axis=0) / (sum(bool(one.any()) for one in said) or 1)
        said += [mean if mean.any() else np.ones(shape[1])] * (len(networks) - len(said))
        for k, value in enumerate(values):
            rows[k].append(np.zeros(shape, np.float32) if value is None else value)
            precisions[k].append(np.zeros(shape[1]) if value is None else said[k] / total)

    for slot in plain:
        values = [slot.rows(net[slot.name]) if slot.name in net else None for net in networks]
        scale = np.sqrt(np.mean([np.square(value).mean(dtype=float) for value in values if value is not None])) or 1.0
        scale *= np.sqrt(slot.width) if turned else 1.0  # a head has norm 1 in each circuit
        scaled = [value if value is None else value / np.asarray(scale, value.dtype) for value in values]
        add(slot, (slot.stop - slot.start, slot.width), scaled)
    if turned:
        products = circuit_rows(graph, label, networks)
        add(turned[0], products[0].shape, products, circuits=True)
    return [np.hstack(parts) for parts in rows], [np.concatenate(parts) for parts in precisions]


def _precision(weight: Weights, slot: Slot, width: int, circuits: bool) -> np.ndarray:
    """Return (width,) what a client's word counts in a slot; one number where columns are products of circuits."""
    said = weight.get(slot.name, 0.0) if isinstance(weight, Mapping) else weight
    if not np.ndim(said):
        return np.full(width, float(said))
    precision = slot.rows(np.asarray(said)).mean(axis=0, dtype=float)
    return np.full(width, precision.mean()) if circuits else precision
