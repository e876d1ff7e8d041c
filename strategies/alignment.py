"""Align independently trained clients over all axes of a network by coordinate descent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .attention_heads import align_gauge, circuit_rows
from .axes import AxisGraph, Gauge, Slot, Tensors
from .matching import FloatDtype, match

Weights = float | Mapping[str, float | np.ndarray]


@dataclass(frozen=True)
class DescentStep:
    """One matching of one axis."""

    sweep: int
    axis: str
    moved: float  # share of the clients' units that changed place
    objective: float


@dataclass(frozen=True)
class Alignment:
    """Clients whose units are in one common order."""

    clients: list[Tensors]
    permutations: list[dict[str, np.ndarray]]  # per client, axis -> permutation, as AxisGraph.permute takes it
    log: list[DescentStep]


def align(
    graph: AxisGraph,
    clients: Sequence[Mapping[str, np.ndarray]],
    *,
    frame: Mapping[str, np.ndarray] | None = None,
    weights: Sequence[Weights] | None = None,
    gauge: Gauge = "none",
    gate: float = 1e-3,
    max_sweeps: int = 5,
    seed: int = 0,
    dtype: FloatDtype = np.float32,
) -> Alignment:
    """Bring clients into one common order by matching one axis at a time with all others fixed (coordinate descent).

    Units of one axis can be compared only in columns whose other axes already agree. The first sweep therefore always
    matches the axis with the most comparable columns next, on those columns alone. In a vision transformer this is
    first the residual stream, on patches, positions, norms and biases; then heads and MLPs. Later sweeps use all
    columns and visit the axes in a new random order, until nothing moves. Every tensor is scaled to mean square 1 over
    the clients; otherwise the largest tensor would decide alone. A client that lacks a tensor has no weight in its
    columns.

    Args:
        graph: the axis graph; frozen axes are not permuted.
        clients: their tensors; each may lack parts that others have.
        frame: the last global model, as the expected order of the units; it has the weight of an average client.
        weights: per client, the number of samples behind its tensors: one number, or one per tensor; equal if not
            given. An array of a tensor's shape is a precision per weight, such as the number of samples times the
            Fisher information. Matching an axis uses its mean over the units, because one precision per weight fits
            the data no better and takes L x L x D steps.
        gauge: freedom inside heads. ``none`` compares weights directly, for clients that started from one model;
            ``orth`` and ``gl`` compare circuits and then align the inner bases with the frame's, or with those of the
            first client.
        gate: minimum relative gain of a new permutation, as in :func:`match`.
        max_sweeps: maximum number of sweeps over the axes.
        seed: seed of all random orders.
        dtype: type of the matrix products.
    """
    networks, frames = [dict(client) for client in clients], [] if frame is None else [dict(frame)]
    for tensors in (*networks, *frames):
        graph.validate(tensors)
    of_clients: list[Weights] = [1.0] * len(networks) if weights is None else list(weights)
    descent = _Descent(graph, networks, frames, of_clients, gauge, gate, np.random.default_rng(seed), dtype)
    moved = descent.first_sweep()
    for sweep in range(1, max_sweeps):
        if not moved:
            break
        moved = descent.sweep(sweep)
    return Alignment(descent.clients, descent.permutations, descent.log)


@dataclass
class _Descent:
    """The state of a coordinate descent: the clients with the permutations applied so far."""

    graph: AxisGraph
    clients: list[Tensors]
    frames: list[Tensors]  # the last global model, if there is one
    weights: list[Weights]
    gauge: Gauge
    gate: float
    generator: np.random.Generator
    dtype: FloatDtype

    def __post_init__(self) -> None:
        self.permutations: list[dict[str, np.ndarray]] = [{} for _ in self.clients]
        self.log: list[DescentStep] = []
        self.free = [label for label, axis in self.graph.axes.items() if axis.axis_type != "frozen"]
        self.settled = set(self.graph.axes) - set(self.free)

    def first_sweep(self) -> bool:
        """Match the axis with the most comparable columns next, until all are settled; return whether units moved."""
        waiting, moved = list(self.free), False
        while waiting:
            label = max(waiting, key=self._count_comparable)
            waiting.remove(label)
            moved |= self.match_axis(0, label)
            self.settled.add(label)
        return moved

    def _count_comparable(self, label: str) -> int:
        slots = _slots_of_any(self.graph, label, self.clients + self.frames)
        return count_columns(*comparable_slots(self.graph, label, slots, self.settled, self.gauge != "none"))

    def sweep(self, number: int) -> bool:
        """Match every axis once, in random order; return whether units moved."""
        order = self.generator.permutation(len(self.free))
        return any([self.match_axis(number, self.free[index]) for index in order])

    def match_axis(self, sweep: int, label: str) -> bool:
        """Match one axis of all clients that have it; return whether units moved."""
        axis = self.graph.axes[label]
        holders = [j for j, tensors in enumerate(self.clients) if self.graph.slots(label, tensors)]
        frames = [tensors for tensors in self.frames if self.graph.slots(label, tensors)]
        networks = [self.clients[j] for j in holders] + frames
        if not holders or len(networks) < 2:
            return False
        inside = _circuit_tensors(self.graph, label) if self.gauge != "none" else set()
        with_circuits = bool(inside) and all(inside <= tensors.keys() for tensors in networks)
        slots = _slots_of_any(self.graph, label, networks)
        columns = comparable_slots(self.graph, label, slots, self.settled, with_circuits)
        if not any(columns):  # no axis is settled yet that would allow a comparison: use all columns as they are
            columns = comparable_slots(self.graph, label, slots, set(self.graph.axes), with_circuits)
        rows, precisions = _stack(self.graph, label, networks, [self.weights[j] for j in holders], *columns)
        prior = (rows.pop(), precisions.pop()) if frames else None
        result = match(
            rows, precisions, prior=prior, warm_start=sweep > 0, groups=axis.groups, gate=self.gate,
            seed=int(self.generator.integers(2**32)), dtype=self.dtype,
        )  # fmt: skip
        for j, permutation in zip(holders, result.permutations, strict=True):
            self.clients[j] = self.graph.permute(self.clients[j], {label: permutation})
            self.weights[j] = _permute_weights(self.graph, self.weights[j], {label: permutation})
            self.permutations[j][label] = self.permutations[j].get(label, np.arange(axis.size))[permutation]
        if with_circuits:
            target = frames[0] if frames else self.clients[holders[0]]
            for j in holders:
                self.clients[j] = align_gauge(self.graph, label, self.clients[j], target, self.gauge)
        self.log.append(DescentStep(sweep, label, result.moved, result.objective[-1]))
        return result.moved > 0


def comparable_slots(
    graph: AxisGraph, label: str, slots: Sequence[Slot], settled: set[str], with_circuits: bool = False
) -> tuple[list[Slot], list[Slot]]:
    """Return the slots whose other axes are settled, and separately those that belong to circuits.

    With ``with_circuits``, the slots of circuits are in the second list if all of them are comparable, and in neither
    list otherwise. Without it the second list is empty.
    """
    in_circuits = _circuit_tensors(graph, label) if with_circuits else set()
    agreed = [slot for slot in slots if settled.issuperset(set(graph.labels(slot.name)) - {label})]
    inside = [slot for slot in agreed if slot.name in in_circuits]
    return [slot for slot in agreed if slot.name not in in_circuits], inside if len(inside) == len(in_circuits) else []


def count_columns(*columns: Sequence[Slot]) -> int:
    """Return how many numbers some slots hold per unit."""
    return sum(slot.width for slots in columns for slot in slots)


def _circuit_tensors(graph: AxisGraph, label: str) -> set[str]:
    return {piece.name for circuit in graph.axes[label].circuits for piece in (*circuit.left, *circuit.right)}


def _slots_of_any(graph: AxisGraph, label: str, networks: Sequence[Tensors]) -> list[Slot]:
    """Return the slots of an axis in tensors that at least one network has."""
    return graph.slots(label, {name: tensor for tensors in networks for name, tensor in tensors.items()})


def _permute_weights(graph: AxisGraph, weights: Weights, permutations: Mapping[str, np.ndarray]) -> Weights:
    if not isinstance(weights, Mapping):
        return weights
    arrays = {name: values for name, values in weights.items() if isinstance(values, np.ndarray) and values.ndim}
    return {**weights, **graph.permute(arrays, permutations)} if arrays else weights


def _stack(
    graph: AxisGraph,
    label: str,
    networks: Sequence[Tensors],
    weights: Sequence[Weights],
    plain: Sequence[Slot],
    inside: Sequence[Slot],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return per network (L, D) rows and (D,) precisions, on a common scale.

    If there is one network more than weights, it is the frame. Slots in ``inside`` are compared through the products
    of their circuits.
    """
    rows: list[list[np.ndarray]] = [[] for _ in networks]
    precisions: list[list[np.ndarray]] = [[] for _ in networks]

    def add(slot: Slot, shape: tuple[int, ...], values: Sequence[np.ndarray | None], circuits: bool = False) -> None:
        shares = [
            np.zeros(shape[1]) if value is None else _precision(weight, slot, shape[1], circuits)
            for weight, value in zip(weights, values, strict=False)
        ]
        total = np.sum(shares, axis=0).mean() or 1.0
        mean = np.sum(shares, axis=0) / (sum(bool(share.any()) for share in shares) or 1)
        shares += [mean if mean.any() else np.ones(shape[1])] * (len(networks) - len(shares))
        for k, value in enumerate(values):
            rows[k].append(np.zeros(shape, np.float32) if value is None else value)
            precisions[k].append(np.zeros(shape[1]) if value is None else shares[k] / total)

    for slot in plain:
        values = [slot.rows(net[slot.name]) if slot.name in net else None for net in networks]
        scale = np.sqrt(np.mean([np.square(value).mean(dtype=float) for value in values if value is not None])) or 1.0
        scale *= np.sqrt(slot.width) if inside else 1.0  # a head has norm 1 in each circuit
        scaled = [value if value is None else value / np.asarray(scale, value.dtype) for value in values]
        add(slot, (slot.stop - slot.start, slot.width), scaled)
    if inside:
        products = circuit_rows(graph, label, networks)
        add(inside[0], products[0].shape, products, circuits=True)
    return [np.hstack(parts) for parts in rows], [np.concatenate(parts) for parts in precisions]


def _precision(weight: Weights, slot: Slot, width: int, circuits: bool) -> np.ndarray:
    """Return the (width,) precision of a client in a slot; a constant if the columns are products of circuits."""
    value = weight.get(slot.name, 0.0) if isinstance(weight, Mapping) else weight
    if not np.ndim(value):
        return np.full(width, float(value))
    precision = slot.rows(np.asarray(value)).mean(axis=0, dtype=float)
    return np.full(width, precision.mean()) if circuits else precision
