"""Growing width: how many units the global model needs, and how clients of other widths are merged into it.

A unit that only some clients have enters the global model with the incoming weights of those clients. Its outgoing
weights are averaged over all clients: for a client that lacks the unit, they are zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .alignment import Weights, comparable_slots, count_columns
from .axes import AxisError, AxisGraph, Tensors
from .spahm import spahm
from .widths import Units, infer_sizes, unit_indices, widen

Observation = dict[str, tuple[np.ndarray, np.ndarray]]  # tensor -> (L_j, D) rows and (D,) their weights


@dataclass(frozen=True)
class Growth:
    """The width of a global model, and the position of every client's units in it."""

    graph: AxisGraph  # with the new sizes
    units: list[dict[str, np.ndarray]]  # per client, growable axis -> (L_j,) the global unit of each local unit

    def count_holders(self, label: str) -> np.ndarray:
        """Return (L,) how many clients have each unit of an axis."""
        count = np.zeros(self.graph.axes[label].size, int)
        for units in self.units:
            count[units.get(label, [])] += 1
        return count


def grow(
    graph: AxisGraph,
    clients: Sequence[Mapping[str, np.ndarray]],
    *,
    frame: Mapping[str, np.ndarray] | None = None,
    weights: Sequence[Weights] | None = None,
    gamma: float = 1.0,
    width_cap: float = 1.5,
    sweeps: int = 2,
    seed: int = 0,
) -> Growth:
    """Let the data decide the width of every growable axis, by the predictive density of :func:`.spahm.spahm`.

    Hidden units of MLPs, whole heads (compared by their weights as they are), and channels of convolutions with
    BatchNorm or no norm can grow. No other axis is permuted, so clients that trained apart have to be aligned with
    :func:`.alignment.align` first. The axis with the most comparable columns is always matched next. In the columns of
    an axis that has grown before, only clients that have the unit have a weight.

    Args:
        graph: the axis graph, at any width.
        clients: their tensors, each at its own width; some may lack parts.
        frame: the last global model; its units stay the first ones, in their order.
        weights: per client, as in :func:`.alignment.align`.
        gamma: mass of the beta process.
        width_cap: no unit is added beyond this many times the width of the widest client.
        sweeps: number of sweeps over the clients of an axis after the first placement.
        seed: seed of the order of clients in each sweep.

    Raises:
        AxisError: if a growable axis has no readers, or no comparable columns.
    """
    networks = [dict(client) for client in clients] + ([] if frame is None else [dict(frame)])
    client_weights: list[Weights] = [1.0] * len(clients) if weights is None else list(weights)
    sizes = [infer_sizes(graph, tensors) for tensors in networks]
    union = {name: tensor for tensors in networks for name, tensor in tensors.items()}
    waiting = _growable_axes(graph, set().union(*sizes))
    settled = set(graph.axes) - set(waiting)
    units: list[dict[str, np.ndarray]] = [{} for _ in networks]
    while waiting:
        label, names = _next_axis(graph, union, waiting, settled)
        holders = [k for k, own in enumerate(sizes) if label in own]
        observations = [
            _observe(graph.resize({label: sizes[k][label]}), label, names, networks[k], units[k],
                     client_weights[k] if k < len(clients) else 1.0)
            for k in holders
        ]  # fmt: skip
        framed = holders[-1] == len(clients)
        placed = _place(observations, names, framed, width_cap, gamma=gamma, sweeps=sweeps, seed=seed)
        for k, own in zip(holders, placed, strict=True):
            units[k][label] = own
        graph = graph.resize({label: 1 + max(int(own.max()) for own in placed)})
        waiting.remove(label)
        settled.add(label)
    return Growth(graph, units[: len(clients)])


def _growable_axes(graph: AxisGraph, present: set[str]) -> list[str]:
    axes = {
        label: axis for label, axis in graph.axes.items() if label in present and axis.axis_type in ("perm", "heads")
    }
    for label, axis in axes.items():
        if axis.growable and not axis.readers:
            raise AxisError(f"Axis {label!r} may grow, but the graph names no tensor that reads it; give its readers.")
    return [label for label, axis in axes.items() if axis.growable]


def _next_axis(graph: AxisGraph, tensors: Tensors, waiting: Sequence[str], settled: set[str]) -> tuple[str, list[str]]:
    """Return the axis with the most comparable columns, and the tensors that contain these."""
    slots = {label: comparable_slots(graph, label, graph.slots(label, tensors), settled)[0] for label in waiting}
    label = max(waiting, key=lambda label: count_columns(slots[label]))
    if not slots[label]:
        raise AxisError(f"Axis {label!r} cannot be matched: each of its tensors also has an axis that is not settled.")
    return label, [slot.name for slot in slots[label]]


def _observe(
    graph: AxisGraph, label: str, names: Sequence[str], network: Tensors, units: Units, weight: Weights
) -> Observation:
    """Return a network's units on an axis, at the global width of all other axes.

    The graph has the network's own size on this axis, and the global sizes on all others.
    """
    observation = {}
    for slot in graph.slots(label, {name: network[name] for name in names if name in network}):
        values = network[slot.name]
        wide = widen(graph, slot.name, values, units)
        own = weight.get(slot.name, 0.0) if isinstance(weight, Mapping) else weight
        shares = widen(graph, slot.name, np.broadcast_to(np.asarray(own, float), values.shape), units)
        slot = graph.slots(label, {slot.name: wide})[0]
        observation[slot.name] = slot.rows(wide), slot.rows(shares).mean(axis=0)
    return observation


def _place(
    observations: Sequence[Observation], names: Sequence[str], framed: bool, width_cap: float, **settings: Any
) -> list[np.ndarray]:
    """Return per observer (L_j,) the global unit of each local one; with ``framed``, the last observer is the frame.

    The settings are those of :func:`.spahm.spahm`.
    """
    heights = [len(next(iter(own.values()))[0]) for own in observations]
    clients = len(observations) - framed
    if len(observations) == 1:
        return [np.arange(heights[0])]
    blocks = {name: max(own[name][0].shape[1] for own in observations if name in own) for name in names}
    rows: list[list[np.ndarray]] = [[] for _ in observations]
    shares: list[list[np.ndarray]] = [[] for _ in observations]
    for name, width in blocks.items():
        present = [own[name] for own in observations if name in own]
        positive = [own[name][1] for own in observations[:clients] if name in own and own[name][1].any()]
        usual = np.mean([share[share > 0].mean() for share in positive]) if positive else 1.0
        squares = [np.square(values[:, share > 0]).mean() for values, share in present if share.any()]
        scale = np.sqrt(np.mean(squares)) or 1
        for k, own in enumerate(observations):
            values, share = own.get(name, (np.zeros((heights[k], width)), np.zeros(width)))
            rows[k].append(values / scale)
            shares[k].append(share / (usual if k < clients else 1.0))
    stacked, weights = [np.hstack(parts) for parts in rows], [np.concatenate(parts) for parts in shares]
    order = [clients, *range(clients)] if framed else list(range(clients))  # spahm takes the frame first
    result = spahm(
        stacked[:clients], frame=stacked[-1] if framed else None, shares=[weights[k] for k in order],
        blocks=list(blocks.values()), width_cap=int(width_cap * max(heights[:clients])), popularity_cap=None, **settings
    )  # fmt: skip
    return [*result.assignment, *([np.arange(heights[-1])] if framed else [])]


def expand(
    growth: Growth, client: int, tensors: Mapping[str, np.ndarray], precision: Weights = 1.0
) -> tuple[Tensors, dict[str, float | np.ndarray]]:
    """Return a client's tensors at the global width, and the precision of every number in them.

    The merge is sum_j P_j v_j / sum_j P_j over all clients. Tensors that belong to a unit that the client lacks have
    precision 0 there, so that clients with the unit decide. A tensor that reads the unit is 0 there, at the client's
    precision (the mean over the units that it has), because the client's function does not depend on the unit. The
    merged network is then the mean of the clients' functions, if matched units are equal and there is one hidden
    layer; a mean over the holders alone would count their units as if every client had them. For a unit that no client
    has (:meth:`Growth.count_holders`), such as one from an earlier round, the frame should stay.

    Args:
        growth: from :func:`grow`.
        client: its index there.
        tensors: at the client's own width; some may be missing.
        precision: one number, or by name one number or an array of the tensor's shape; a tensor that is not named has
            precision 0.
    """
    graph, units = growth.graph, growth.units[client]
    wide, precisions = dict(tensors), {}
    for name, values in tensors.items():
        own = precision.get(name, 0.0) if isinstance(precision, Mapping) else precision
        indices = unit_indices(graph, name, units) if name in graph.tensors else {}
        precisions[name] = own if np.ndim(own) else float(own)
        if indices:
            wide[name] = widen(graph, name, values, units)
            full = np.broadcast_to(np.asarray(own, float), values.shape)
            precisions[name] = _fill_readers(graph, name, widen(graph, name, full, units), units)
    return wide, precisions


def _fill_readers(graph: AxisGraph, name: str, precision: np.ndarray, units: Units) -> np.ndarray:
    """Return the precision with the client's usual one for units that it lacks and that the tensor reads."""
    values = precision.reshape(graph.tensors[name][0] or precision.shape)
    for label, slot in graph.slots_of(name, precision.shape):
        if label in units and name in graph.axes[label].readers and len(units[label]) < graph.axes[label].size:
            missing = slot.start + np.setdiff1d(np.arange(graph.axes[label].size), units[label])
            usual = values.take(slot.start + units[label], slot.axis).mean(axis=slot.axis, keepdims=True)
            np.moveaxis(values, slot.axis, 0)[missing] = np.moveaxis(usual, slot.axis, 0)
    return values.reshape(precision.shape)
