"""Alignment of one update at a time with the last global model, the reference frame.

All distances are in units of the frame's own mean squares. In this metric, two bounds avoid the search on an axis. If
the whole distance of an update to the frame is smaller than the gain that the gate requires, no permutation can pass
the gate. And if a unit is closer to its atom than half the distance from that atom to the next one, no other atom is
closer (triangle inequality); if that holds for all units, the identity is the best assignment. The half distances are
computed once per frame, on first use. If nothing moves, an alignment costs little more than one pass over the update.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .alignment import comparable_slots, count_columns
from .attention_heads import align_gauge, circuit_rows
from .axes import AxisError, AxisGraph, Gauge, Slot, Tensors
from .matching import FloatDtype, assign, moved_share
from .unit_sums import UnitSums

ROUNDING = 1e-5  # relative error of a squared distance that is computed from float32 products
# In the frame's mean squares. A larger squared distance cannot be caused by a permutation: one accounts for at most 4.
MAX_SQUARED_DISTANCE = 9.0


@dataclass(frozen=True)
class Placement:
    """The result of aligning an update with the frame on one axis."""

    moved: float  # share of its units that changed place
    distance_before: float  # mean squared distance to the frame, with the frame's mean square as unit
    distance_after: float


@dataclass(frozen=True)
class AlignedUpdate:
    """An update in the frame's order of units."""

    tensors: Tensors  # in the frame's order; tensors that did not change are the same objects as in the update
    permutations: dict[str, np.ndarray]  # axis -> permutation, of the axes on which units moved
    regauged: tuple[str, ...]  # axes whose heads received another inner basis
    placements: dict[str, Placement]  # by axis: those that the update has, that are not frozen and that the frame knows


class Frame:
    """The last global model as the reference that updates are aligned with.

    The method is that of :func:`.alignment.align`, for one update at a time. Axes on which a bound holds are settled;
    all others are matched, first on columns whose other axes are settled, then on all columns until nothing changes.

    Args:
        graph: the axis graph; frozen axes are not permuted.
        tensors: the global model; not copied, so it must not be modified.
        gauge: freedom inside heads, as in :func:`.alignment.align`. A new basis has to pass the gate like a
            permutation.
        gate: minimum gain of a new permutation, relative to the gain of the present one (:func:`.matching.match`).
        max_sweeps: maximum number of sweeps over the axes.
        seed: seed of the order of axes from the second sweep on.
        dtype: type of the matrix products.
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
        free = [label for label, axis in graph.axes.items() if axis.axis_type != "frozen"]
        slots = {label: graph.slots(label, self.tensors) for label in free}
        self.slots = {label: own for label, own in slots.items() if own}
        self.squares = UnitSums(self.slots, self.tensors)
        self.scale = {slot: self.squares.of(slot).mean() / slot.width for own in slots.values() for slot in own}
        self._half_distances: dict[tuple[Slot, ...], np.ndarray] = {}

    def align(self, update: Mapping[str, np.ndarray]) -> AlignedUpdate:
        """Return an update, or a part of one, in the frame's order of units.

        Raises:
            AxisError: if the frame does not have a tensor of the update, or has it in another shape.
        """
        for name, values in update.items():
            if name not in self.tensors:
                raise AxisError(f"{name}: the frame has no such tensor; align only tensors of the global model.")
            if values.shape != self.tensors[name].shape:
                raise AxisError(f"{name}: expected the frame's shape {self.tensors[name].shape}, got {values.shape}.")
        return _Search(self, {name: update[name] for name in self.tensors if name in update}).run()

    def half_distances(self, slots: Sequence[Slot]) -> np.ndarray:
        """Return (L,) half the distance from each atom to the nearest other one, or a lower bound of it."""
        key = tuple(slots)
        if key not in self._half_distances:
            squares = self.scaled_sums(slots, self.squares)
            distances = squares[:, None] + squares - 2 * self.inner_products(slots, self.tensors)
            distances -= ROUNDING * (squares[:, None] + squares)
            np.fill_diagonal(distances, np.inf)
            self._half_distances[key] = np.sqrt(np.maximum(distances.min(axis=1), 0)) / 2
        return self._half_distances[key]

    def scaled_sums(self, slots: Iterable[Slot], sums: UnitSums) -> np.ndarray:
        """Return (L,) each unit's sum over slots, in the frame's scale."""
        return np.sum([sums.of(slot) / self.scale[slot] for slot in slots], axis=0)

    def inner_products(self, slots: Iterable[Slot], tensors: Tensors, units: np.ndarray | None = None) -> np.ndarray:
        """Return (units, L) inner products of a network's units with the atoms, in the frame's scale."""
        total: np.ndarray | None = None
        for slot in slots:
            atoms: np.ndarray = slot.rows(self.tensors[slot.name]).astype(self.dtype, copy=False)
            rows = atoms  # a product of an array with itself takes half the time
            if tensors is not self.tensors:
                rows = slot.rows(tensors[slot.name]).astype(self.dtype, copy=False)
            product = (rows if units is None else rows[units]) @ atoms.T
            product /= self.scale[slot]
            total = product if total is None else np.add(total, product, out=total)
        assert total is not None
        return total


class _Search:
    """The alignment of one update with the frame."""

    def __init__(self, frame: Frame, tensors: Tensors) -> None:
        self.frame, self.graph, self.tensors = frame, frame.graph, tensors
        self.distances = UnitSums(frame.slots, tensors, frame.tensors)
        self.all_slots = {label: [s for s in slots if s.name in tensors] for label, slots in frame.slots.items()}
        # A tensor that is almost zero in the frame, like a bias before the first round, cannot distinguish units.
        known = {label: [slot for slot in slots if self._is_known(slot)] for label, slots in self.all_slots.items()}
        self.slots = {label: slots for label, slots in known.items() if slots}
        self.permutations: dict[str, np.ndarray] = {}
        self.regauged: set[str] = set()

    def _is_known(self, slot: Slot) -> bool:
        scale = self.frame.scale[slot]
        return 0 < scale < np.inf and self.distances.of(slot).mean() <= MAX_SQUARED_DISTANCE * scale * slot.width

    def run(self) -> AlignedUpdate:
        before = {label: self._distance(label) for label in self.slots}
        self._later_sweeps(self._first_sweep())
        moved = {label: moved_share(permutation) for label, permutation in self.permutations.items()}
        placements = {
            label: Placement(moved.get(label, 0.0), before[label], self._distance(label)) for label in self.slots
        }
        permutations = {label: self.permutations[label] for label, fit in placements.items() if fit.moved}
        regauged = tuple(label for label in self.slots if label in self.regauged)
        return AlignedUpdate(self.tensors, permutations, regauged, placements)

    def _first_sweep(self) -> set[str]:
        """Match the axis with the most comparable columns next, until all are settled; return axes to match again."""
        waiting = {label for label in self.slots if not self._identity_is_proven(label)}
        settled, affected = set(self.graph.axes) - waiting, set()
        while waiting:
            columns = {label: self._comparable_slots(label, settled) for label in self.slots if label in waiting}
            label = max(columns, key=lambda label: count_columns(*columns[label]))
            everything = self._comparable_slots(label, set(self.graph.axes))
            # If no axis is settled yet that would allow a comparison, use all columns as they are.
            used = columns[label] if any(columns[label]) else everything
            affected |= self._match(label, *used)
            if used != everything:  # the result has to hold on all columns
                affected.add(label)
            waiting.remove(label)
            settled.add(label)
        return affected

    def _later_sweeps(self, affected: set[str]) -> None:
        """Match axes on all columns, in random order, as long as matching one of them affects others."""
        generator = np.random.default_rng(self.frame.seed)
        for _ in range(1, self.frame.max_sweeps):
            stale = [label for label in self.slots if label in affected and not self._identity_is_proven(label)]
            affected = set()
            for index in generator.permutation(len(stale)):
                affected |= self._match(stale[index], *self._comparable_slots(stale[index], set(self.graph.axes)))
            if not affected:
                break

    def _distance(self, label: str) -> float:
        slots = self.slots[label]
        return float(self.frame.scaled_sums(slots, self.distances).mean() / count_columns(slots))

    def _comparable_slots(self, label: str, settled: set[str]) -> tuple[list[Slot], list[Slot]]:
        """Return the comparable slots that the frame knows, and separately those of circuits.

        The products of circuits can be compared even if the frame is zero on one of their sides.
        """
        plain, inside = comparable_slots(self.graph, label, self.all_slots[label], settled, self.frame.gauge != "none")
        return [slot for slot in plain if slot in self.slots[label]], inside

    def _identity_is_proven(self, label: str) -> bool:
        slots, frame = self.slots[label], self.frame
        distances = frame.scaled_sums(slots, self.distances)
        if frame.gate > 0:
            distance = float(distances.sum())
            # At most the update's norm. Even a permutation that removed the whole distance may gain too little.
            length = np.sqrt(frame.scaled_sums(slots, frame.squares).sum()) - np.sqrt(distance)
            if length > 0 and distance / 2 <= frame.gate * (length**2 - distance / 2):
                return True
        if frame.gauge != "none" and self.graph.axes[label].circuits:  # heads in place may still have another basis
            return False
        far = np.flatnonzero(~(distances * (1 + ROUNDING) <= np.square(frame.half_distances(slots))))
        if not len(far):
            return True
        if len(far) > len(distances) // 4:
            return False
        gains = frame.inner_products(slots, self.tensors, far) - frame.scaled_sums(slots, frame.squares) / 2
        return bool((gains.argmax(axis=1) == far).all())

    def _match(self, label: str, plain: Sequence[Slot], inside: Sequence[Slot]) -> set[str]:
        """Match one axis on some columns and align the gauge of its heads; return the other axes that this affects."""
        gains, axis = self._gains(label, plain, inside), self.graph.axes[label]
        permutation = np.argsort(assign(gains, axis.groups))
        identity, present = np.arange(axis.size), gains.trace()
        changed: set[str] = set()
        passes = gains[permutation, identity].sum() - present > self.frame.gate * abs(present)
        if passes and (permutation != identity).any():
            changed |= self._replace_tensors(self.graph.permute(self.tensors, {label: permutation}))
            self.permutations[label] = self.permutations.get(label, identity)[permutation]
        if inside:
            changed |= self._align_gauge(label, inside)
        return {part for name in changed for part in self.graph.labels(name)} - {label}

    def _gains(self, label: str, plain: Sequence[Slot], inside: Sequence[Slot]) -> np.ndarray:
        """Return (L, L) gains of each unit at each atom: minus half the squared distance, up to a constant per unit."""
        frame, tensors, size = self.frame, self.tensors, self.graph.axes[label].size
        gains, lengths, atoms = np.zeros((size, size)), np.zeros(size), np.zeros(size)
        for slot in plain:
            share = 1 / slot.width if inside else 1.0  # a head has norm 1 in each circuit
            own = slot.rows(tensors[slot.name])
            gains += share * frame.inner_products([slot], tensors)
            lengths += share * np.einsum("ld,ld->l", own, own) / frame.scale[slot]
            atoms += share * frame.squares.of(slot) / frame.scale[slot]
        if inside:
            rows, targets = circuit_rows(self.graph, label, [tensors, frame.tensors])
            gains += rows @ targets.T
            lengths += np.square(rows).sum(axis=1)
            atoms += np.square(targets).sum(axis=1)
        gains += (lengths[:, None] - atoms) / 2
        return gains

    def _align_gauge(self, label: str, inside: Sequence[Slot]) -> set[str]:
        """Give heads the inner bases of the frame if that passes the gate; return the names of changed tensors."""
        known = [slot for slot in inside if slot in self.slots[label]]
        frame, old = self.frame, float(self.frame.scaled_sums(known, self.distances).sum())
        regauged = align_gauge(self.graph, label, self.tensors, frame.tensors, frame.gauge)
        candidate = {slot.name: regauged[slot.name].astype(self.tensors[slot.name].dtype) for slot in inside}
        new = float(frame.scaled_sums(known, UnitSums({label: known}, candidate, frame.tensors)).sum())
        length = sum(np.square(slot.rows(self.tensors[slot.name])).sum() / frame.scale[slot] for slot in known)
        if (old - new) / 2 <= frame.gate * abs(length - old / 2):
            return set()
        self.regauged.add(label)
        return self._replace_tensors(self.tensors | candidate)

    def _replace_tensors(self, tensors: Tensors) -> set[str]:
        """Set the tensors of the update; return the names of those that changed."""
        changed = {name for name, values in tensors.items() if values is not self.tensors[name]}
        self.tensors = tensors
        self.distances.replace({name: tensors[name] for name in changed})
        return changed
