"""Alignment of one update at a time against the last global model, at little more than one look where nothing moves.

Every tensor is measured against the frame's own size. In that metric two bounds spare the search on an axis. Where all
of an update's distance to the frame is less than the gate asks of a new order, none can pass. And a unit that lies
nearer to its atom than half the way from there to the next atom has no nearer one (triangle inequality); if that holds
of all units, the identity is the best assignment. The half ways are computed once a frame, when first asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .alignment import comparable_slots, count_columns
from .axes import AxisError, AxisGraph, Gauge, Slot, Tensors
from .heads import align_gauge, circuit_rows
from .matching import FloatDtype, assign
from .unit_sums import UnitSums

ROUNDING = 1e-5  # share of squared lengths by which a squared distance from float32 products may be off
STRANGE = 9.0  # squared distance, in the frame's mean square, that no reordering explains: it gives at most 4


@dataclass(frozen=True)
class Placement:
    """How an update stands to the frame on one axis."""

    moved: float  # share of its units that changed place
    distance_before: float  # mean squared distance to the frame, of numbers scaled to the frame's mean square
    distance_after: float

    @property
    def gain(self) -> float:
        """Return by how much the alignment brought the update nearer."""
        return self.distance_before - self.distance_after


@dataclass(frozen=True)
class AlignedUpdate:
    """An update in the frame."""

    tensors: Tensors  # in the frame's order; what nothing moved are the update's own objects
    permutations: dict[str, np.ndarray]  # axis -> its unit at each place, of the axes that moved
    regauged: tuple[str, ...]  # axes whose heads got another inner basis
    placements: dict[str, Placement]  # of every axis that the update holds, if it is not frozen and the frame can tell


class Frame:
    """The last global model as what updates are aligned to.

    An update is brought as by :func:`.alignment.align`, on its own: axes on which a bound holds are settled; the others
    are matched, first on the columns that are settled, then on all until nothing changes.

    Args:
        graph: the table of axes; frozen ones stay.
        tensors: the global model; not copied, so it must stay as it is.
        gauge: inside heads, as in :func:`.alignment.align`. A new basis has to pass the gate like an order.
        gate: least gain of a new order, as a share of what the present one gains (:func:`.matching.match`).
        max_sweeps: most passes over the axes.
        seed: of the order of axes from the second pass on.
        dtype: of the matrix products.
    """

    def __init__(
        self,
        graph: AxisGraph,
        tensors: Mapping[str, np.ndarray],
        *,
        gauge: Gauge = "none",
        gate: float = 1e-3,
        max_sweeps: int = 5,
        seed: int = 0,
        dtype: FloatDtype = np.float32,
    ) -> None:
        self.graph, self.tensors = graph, dict(tensors)
        self.gauge, self.gate, self.max_sweeps, self.seed, self.dtype = gauge, gate, max_sweeps, seed, dtype
        graph.validate(self.tensors)
        free = [label for label, axis in graph.axes.items() if axis.kind != "frozen"]
        slots = {label: graph.slots(label, self.tensors) for label in free}
        self.slots = {label: found for label, found in slots.items() if found}
        self.squares = UnitSums(self.slots, self.tensors)
        self.scale = {slot: self.squares.of(slot).mean() / slot.width for found in slots.values() for slot in found}
        self._half: dict[tuple[Slot, ...], np.ndarray] = {}

    def align(self, update: Mapping[str, np.ndarray]) -> AlignedUpdate:
        """Return an update, or a part of one, in the frame.

        Raises:
            AxisError: where a tensor is none of the frame's, or has another shape.
        """
        for name, values in update.items():
            if name not in self.tensors:
                raise AxisError(f"{name}: the frame has no such tensor; bring only what the global model holds.")
            if values.shape != self.tensors[name].shape:
                raise AxisError(f"{name}: expected the frame's shape {self.tensors[name].shape}, got {values.shape}.")
        return _Search(self, {name: update[name] for name in self.tensors if name in update}).run()

    def half_distances(self, slots: Sequence[Slot]) -> np.ndarray:
        """Return (L,) half the distance from each atom to the next, never too long."""
        key = tuple(slots)
        if key not in self._half:
            squares = self.total(slots, self.squares)
            distances = squares[:, None] + squares - 2 * self.products(slots, self.tensors)
            distances -= ROUNDING * (squares[:, None] + squares)
            np.fill_diagonal(distances, np.inf)
            self._half[key] = np.sqrt(np.maximum(distances.min(axis=1), 0)) / 2
        return self._half[key]

    def total(self, slots: Iterable[Slot], sums: UnitSums) -> np.ndarray:
        """Return (L,) each unit's sum over slots, in the frame's scale."""
        return np.sum([sums.of(slot) / self.scale[slot] for slot in slots], axis=0)

    def products(self, slots: Iterable[Slot], tensors: Tensors, units: np.ndarray | None = None) -> np.ndarray:
        """Return (units, L) inner products of a network's units with the atoms, in the frame's scale."""
        total: np.ndarray | None = None
        for slot in slots:
            atoms: np.ndarray = slot.rows(self.tensors[slot.name]).astype(self.dtype, copy=False)
            rows = atoms  # the same array twice takes half the time
            if tensors is not self.tensors:
                rows = slot.rows(tensors[slot.name]).astype(self.dtype, copy=False)
            product = (rows if units is None else rows[units]) @ atoms.T
            product /= self.scale[slot]
            total = product if total is None else np.add(total, product, out=total)
        assert total is not None
        return total


class _Search:
    """One update on its way into the frame."""

    def __init__(self, frame: Frame, tensors: Tensors) -> None:
        self.frame, self.graph, self.tensors = frame, frame.graph, tensors
        self.distances = UnitSums(frame.slots, tensors, frame.tensors)
        self.held = {label: [slot for slot in slots if slot.name in tensors] for label, slots in frame.slots.items()}
        # Where the frame has next to nothing, as in a bias before the first round, it cannot tell units apart.
        known = {label: [slot for slot in slots if self._is_known(slot)] for label, slots in self.held.items()}
        self.slots = {label: slots for label, slots in known.items() if slots}
        self.orders: dict[str, np.ndarray] = {}
        self.turned: set[str] = set()

    def _is_known(self, slot: Slot) -> bool:
        scale = self.frame.scale[slot]
        return 0 < scale < np.inf and self.distances.of(slot).mean() <= STRANGE * scale * slot.width

    def run(self) -> AlignedUpdate:
        before = {label: self._distance(label) for label in self.slots}
        waiting = {label for label in self.slots if not self._stands(label)}
        settled, touched = set(self.graph.axes) - waiting, set()
        while waiting:
            columns = {label: self._comparable_slots(label, settled) for label in self.slots if label in waiting}
            label = max(columns, key=lambda label: count_columns(*columns[label]))
            plain, inside = columns[label]
            if not plain and not inside:  # a start has to be made somewhere
                plain, inside = self._comparable_slots(label, set(self.graph.axes))
            touched |= self._match(label, plain, inside)
            if (plain, inside) != self._comparable_slots(
                label, set(self.graph.axes)
            ):  # has to prove itself on all columns
                touched.add(label)
            waiting.remove(label)
            settled.add(label)
        generator = np.random.default_rng(self.frame.seed)
        for _ in range(1, self.frame.max_sweeps):
            stale = [label for label in self.slots if label in touched and not self._stands(label)]
            touched = set()
            for index in generator.permutation(len(stale)):
                touched |= self._match(stale[index], *self._comparable_slots(stale[index], set(self.graph.axes)))
            if not touched:
                break
        log = {label: Placement(self._moved(label), before[label], self._distance(label)) for label in self.slots}
        orders = {label: self.orders[label] for label, fit in log.items() if fit.moved}
        return AlignedUpdate(self.tensors, orders, tuple(label for label in self.slots if label in self.turned), log)

    def _moved(self, label: str) -> float:
        order = self.orders.get(label)
        return 0.0 if order is None else float((order != np.arange(len(order))).mean())

    def _distance(self, label: str) -> float:
        slots = self.slots[label]
        return float(self.frame.total(slots, self.distances).mean() / count_columns(slots))

    def _comparable_slots(self, label: str, settled: set[str]) -> tuple[list[Slot], list[Slot]]:
        """Return settled slots and, apart, those of circuits: their products tell where one side alone may be 0."""
        plain, inside = comparable_slots(self.graph, label, self.held[label], settled, self.frame.gauge != "none")
        return [slot for slot in plain if slot in self.slots[label]], inside

    def _stands(self, label: str) -> bool:
        """Say whether a bound proves that an axis stays as it is."""
        slots, frame = self.slots[label], self.frame
        distances = frame.total(slots, self.distances)
        if frame.gate > 0 and self._below_gate(float(distances.sum()), slots):
            return True
        if frame.gauge != "none" and self.graph.axes[label].circuits:  # nearest as it is, yet perhaps turned
            return False
        far = np.flatnonzero(~(distances * (1 + ROUNDING) <= np.square(frame.half_distances(slots))))
        if not len(far):
            return True
        if len(far) > len(distances) // 4:
            return False
        gains = frame.products(slots, self.tensors, far) - frame.total(slots, frame.squares) / 2
        return bool((gains.argmax(axis=1) == far).all())

    def _below_gate(self, distance: float, slots: Sequence[Slot]) -> bool:
        """Say whether even an order that took all the distance away would gain too little."""
        length = np.sqrt(self.frame.total(slots, self.frame.squares).sum()) - np.sqrt(distance)  # at least the update's
        return length > 0 and distance / 2 <= self.frame.gate * (length**2 - distance / 2)

    def _match(self, label: str, plain: Sequence[Slot], inside: Sequence[Slot]) -> set[str]:
        """Match one axis on some columns, turn its heads if that is asked for; return the axes that this concerns."""
        frame, tensors, size = self.frame, self.tensors, self.graph.axes[label].size
        gains, lengths, atoms = np.zeros((size, size)), np.zeros(size), np.zeros(size)
        for slot in plain:
            share = 1 / slot.width if inside else 1.0  # a head has norm 1 in each circuit
            own = slot.rows(tensors[slot.name])
            gains += share * frame.products([slot], tensors)
            lengths += share * np.einsum("ld,ld->l", own, own) / frame.scale[slot]
            atoms += share * frame.squares.of(slot) / frame.scale[slot]
        if inside:
            rows, targets = circuit_rows(self.graph, label, [tensors, frame.tensors])
            gains += rows @ targets.T
            lengths += np.square(rows).sum(axis=1)
            atoms += np.square(targets).sum(axis=1)
        gains += (lengths[:, None] - atoms) / 2
        order = np.argsort(assign(gains, self.graph.axes[label].groups))
        present = gains.trace()
        changed: set[str] = set()
        moves = gains[order, np.arange(size)].sum() - present > frame.gate * abs(present)
        if moves and (order != np.arange(size)).any():
            changed |= self._replace(self.graph.permute(tensors, {label: order}))
            self.orders[label] = self.orders.get(label, np.arange(size))[order]
        if inside:
            changed |= self._turn(label, inside)
        return {part for name in changed for part in self.graph.labels(name)} - {label}

    def _turn(self, label: str, inside: Sequence[Slot]) -> set[str]:
        known = [slot for slot in inside if slot in self.slots[label]]
        frame, old = self.frame, float(self.frame.total(known, self.distances).sum())
        turned = align_gauge(self.graph, label, self.tensors, frame.tensors, frame.gauge)
        candidate = {slot.name: turned[slot.name].astype(self.tensors[slot.name].dtype) for slot in inside}
        new = float(frame.total(known, UnitSums({label: known}, candidate, frame.tensors)).sum())
        length = sum(np.square(slot.rows(self.tensors[slot.name])).sum() / frame.scale[slot] for slot in known)
        if (old - new) / 2 <= frame.gate * abs(length - old / 2):
            return set()
        self.turned.add(label)
        return self._replace(self.tensors | candidate)

    def _replace(self, tensors: Tensors) -> set[str]:
        changed = {name for name, values in tensors.items() if values is not self.tensors[name]}
        self.tensors = tensors
        self.distances.replace({name: tensors[name] for name in changed})
        return changed
