"""Networks that grow: how many units the global model needs, and how clients of other widths are merged into it.

A unit that only some clients have belongs to the global model with its incoming weights as those clients have them,
and its outgoing weights shared with those who lack it: to them it is a unit that nobody listens to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .alignment import Weights, comparable_slots, count_columns
from .axes import AxisError, AxisGraph, Tensors
from .spahm import spahm
from .widths import Units, infer_sizes, submodel, unit_indices, widen

__all__ = ["Growth", "expand", "grow", "submodel"]

Observed = dict[str, tuple[np.ndarray, np.ndarray]]  # tensor -> (L_j, D) rows and (D,) what they count


@dataclass(frozen=True)
class Growth:
    """A global model's width, and where every client's units are in it."""

    graph: AxisGraph  # with the new sizes
    units: list[dict[str, np.ndarray]]  # per client, axis that grows -> (L_j,) the global unit of each of its own

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
    """Let the data decide the width of every axis that may grow, by the predictive density of :func:`.spahm.spahm`.

    These are hidden units of MLPs, whole heads as their weights stand, and channels of convolutions with BatchNorm or
    no norm. All other axes stay in place, so clients that trained apart need :func:`.alignment.align` first. The axis
    with the most comparable columns is matched next, as there. Along an axis that has grown by then, only clients that
    have the unit have a say.

    Args:
        graph: the table of axes, at any width.
        clients: their tensors, each at its own width; some may lack parts.
        frame: the last global model; its units stay, as the first ones.
        weights: per client, as in :func:`.alignment.align`.
        gamma: mass of the beta process.
        width_cap: no new units beyond this many times the widest client's.
        sweeps: passes over the clients of an axis after the first placement.
        seed: of the clients' order in each sweep.

    Raises:
        AxisError: where an axis that may grow names no readers, or nothing on it compares.
    """
    networks = [dict(client) for client in clients] + ([] if frame is None else [dict(frame)])
    says: list[Weights] = [1.0] * len(clients) if weights is None else list(weights)
    sizes = [infer_sizes(graph, tensors) for tensors in networks]
    union = {name: tensor for tensors in networks for name, tensor in tensors.items()}
    waiting = [
        label for label, axis in graph.axes.items()
        if axis.growable and axis.kind in ("perm", "heads") and any(label in own for own in sizes)
    ]  # fmt: skip
    for label in waiting:
        if not graph.axes[label].readers:
            raise AxisError(f"Axis {label!r} may grow, but the table names no tensor that reads it; give its readers.")
    settled = set(graph.axes) - set(waiting)
    units: list[dict[str, np.ndarray]] = [{} for _ in networks]
    while waiting:
        slots = {
            label: comparable_slots(graph, label, graph.slots(label, union), settled, False)[0] for label in waiting
        }
        label = max(waiting, key=lambda label: count_columns(slots[label]))
        if not slots[label]:
            raise AxisError(f"Axis {label!r} cannot be matched: each of its tensors carries an axis that waits for it.")
        names = [slot.name for slot in slots[label]]
        holders = [k for k, own in enumerate(sizes) if label in own]
        seen = [
            _observe(graph.resize({label: sizes[k][label]}), label, names, networks[k], units[k],
                     says[k] if k < len(clients) else 1.0)
            for k in holders
        ]  # fmt: skip
        framed = holders[-1] == len(clients)
        found = _place(seen, names, framed, gamma=gamma, width_cap=width_cap, sweeps=sweeps, seed=seed)
        for k, own in zip(holders, found, strict=True):
            units[k][label] = own
        graph = graph.resize({label: 1 + max(int(own.max()) for own in found)})
        waiting.remove(label)
        settled.add(label)
    return Growth(graph, units[: len(clients)])


def _observe(
    graph: AxisGraph, label: str, names: Sequence[str], network: Tensors, units: Units, weight: Weights
) -> Observed:
    """Return a network's units on an axis, seen in a graph that has the network's size there and the new ones else."""
    seen = {}
    for slot in graph.slots(label, {name: network[name] for name in names if name in network}):
        values = network[slot.name]
        wide = widen(graph, slot.name, values, units)
        said = weight.get(slot.name, 0.0) if isinstance(weight, Mapping) else weight
        shares = widen(graph, slot.name, np.broadcast_to(np.asarray(said, float), values.shape), units)
        slot = graph.slots(label, {slot.name: wide})[0]
        seen[slot.name] = slot.rows(wide), slot.rows(shares).mean(axis=0)
    return seen


def _place(
    seen: Sequence[Observed],
    names: Sequence[str],
    framed: bool,
    *,
    gamma: float,
    width_cap: float,
    sweeps: int,
    seed: int,
) -> list[np.ndarray]:
    """Return per observer (L_j,) the global unit of each of its own; with ``framed``, the last observer's stay."""
    blocks = {name: max(own[name][0].shape[1] for own in seen if name in own) for name in names}
    heights = [len(next(iter(own.values()))[0]) for own in seen]
    clients = len(seen) - framed
    if len(seen) == 1:
        return [np.arange(heights[0])]
    rows: list[list[np.ndarray]] = [[] for _ in seen]
    shares: list[list[np.ndarray]] = [[] for _ in seen]
    for name, width in blocks.items():
        held = [own[name] for own in seen if name in own]
        said = [own[name][1] for own in seen[:clients] if name in own and own[name][1].any()]
        usual = np.mean([share[share > 0].mean() for share in said]) if said else 1.0
        scale = np.sqrt(np.mean([np.square(values[:, share > 0]).mean() for values, share in held if share.any()])) or 1
        for k, own in enumerate(seen):
            values, share = own.get(name, (np.zeros((heights[k], width)), np.zeros(width)))
            rows[k].append(values / scale)
            shares[k].append(share / (usual if k < clients else 1.0))
    stacked, counts = [np.hstack(parts) for parts in rows], [np.concatenate(parts) for parts in shares]
    order = [clients, *range(clients)] if framed else list(range(clients))  # the frame comes first there
    found = spahm(
        stacked[:clients], frame=stacked[-1] if framed else None, shares=[counts[k] for k in order],
        blocks=list(blocks.values()), gamma=gamma, sweeps=sweeps, seed=seed, popularity_cap=None,
        width_cap=int(width_cap * max(heights[:clients])),
    )  # fmt: skip
    return [*found.assignment, *([np.arange(heights[-1])] if framed else [])]


def expand(
    grown: Growth, client: int, tensors: Mapping[str, np.ndarray], precision: Weights = 1.0
) -> tuple[Tensors, dict[str, float | np.ndarray]]:
    """Return a client's tensors at the global width, and the precision of every number in them.

    The merge is sum_j P_j v_j / sum_j P_j over all clients. Where the client lacks a unit, that unit's own tensors
    have precision 0: those who have it decide. A tensor that reads the unit is 0 there, at the client's precision,
    the mean over the units that it has: the client says that it does not listen. So the merged network is the mean of
    the clients' functions, if matched units are equal and one layer is hidden; a mean over the holders alone would
    count their units as often as if everyone had them. Of a unit that no client has (:meth:`Growth.holders`), as one of
    an earlier round, nobody knows: there the frame should stay.

    Args:
        grown: from :func:`grow`.
        client: its index there.
        tensors: at the client's own width; some may be missing.
        precision: one number, or one or an array of the tensor's shape by name; a tensor not named has none.
    """
    graph, units = grown.graph, grown.units[client]
    wide, precisions = dict(tensors), {}
    for name, values in tensors.items():
        said = precision.get(name, 0.0) if isinstance(precision, Mapping) else precision
        picks = unit_indices(graph, name, units) if name in graph.tensors else {}
        precisions[name] = said if np.ndim(said) else float(said)
        if picks:
            wide[name] = widen(graph, name, values, units)
            usual = np.broadcast_to(np.asarray(said, float), values.shape)
            precisions[name] = _listening(graph, name, widen(graph, name, usual, units), units)
    return wide, precisions


def _listening(graph: AxisGraph, name: str, precision: np.ndarray, units: Units) -> np.ndarray:
    """Return the precision with what the client says of units that it lacks and the tensor reads."""
    view = graph.tensors[name][0] or precision.shape
    values = precision.reshape(view)
    for axis, label in enumerate(graph.tensors[name][1]):
        start = 0
        for part in label.split("+") if label else []:
            size = graph.axes[part].size
            if part in units and name in graph.axes[part].readers and len(units[part]) < size:
                lacks = start + np.setdiff1d(np.arange(size), units[part])
                usual = values.take(start + units[part], axis).mean(axis=axis, keepdims=True)
                np.moveaxis(values, axis, 0)[lacks] = np.moveaxis(usual, axis, 0)
            start += size
    return values.reshape(precision.shape)
