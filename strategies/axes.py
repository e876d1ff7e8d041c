"""Which axes of which tensors can be permuted together without changing the function of a network.

An :class:`AxisGraph` is a table as in Git Re-Basin (Ainsworth et al., ICLR 2023): every axis of a tensor carries the
label of the group of units that it runs over. Transformers need two additions. Attention heads are units like any
other, seen through a view of the tensor; and inside a head, the axis between query and key, or between value and
output, has no basis of its own (:class:`Circuit`). Concatenated axes carry a sum of labels.

>>> graph = AxisGraph(
...     {
...         "fc1.weight": (None, ("hidden", None)),
...         "fc1.bias": (None, ("hidden",)),
...         "fc2.weight": (None, (None, "hidden")),
...     },
...     {"hidden": Axis(3)},
... )
>>> net = {"fc1.weight": np.eye(3, 2), "fc1.bias": np.arange(3.0), "fc2.weight": np.ones((1, 3))}
>>> graph.permute(net, {"hidden": np.array([2, 0, 1])})["fc1.bias"]
array([2., 0., 1.])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, NamedTuple

import numpy as np

Tensors = dict[str, np.ndarray]
Spec = tuple[tuple[int, ...] | None, tuple[str | None, ...]]
Gauge = Literal["none", "orth", "gl"]


class AxisError(ValueError):
    """Raised if an axis graph does not fit its tensors, or a permutation is not one of its symmetries."""


class Piece(NamedTuple):
    """A tensor with a head axis and then an inner axis, or one part of a fused tensor, along its first viewed axis."""

    name: str
    part: int | None = None


@dataclass(frozen=True)
class Circuit:
    """Two maps whose product, left^T right, is all that the rest of the network sees of a head: Q^T K or V^T O.

    For any invertible A on the inner axis, left -> A left and right -> A^-T right leaves the product unchanged. A bias
    counts as one more column of its side.
    """

    left: tuple[Piece, ...]
    right: tuple[Piece, ...]


@dataclass(frozen=True)
class Axis:
    """A group of units.

    ``perm`` allows any permutation, and so does ``heads``, which may also have ``circuits``. ``grouped`` allows
    permuting whole groups, and units inside each group, as GroupNorm does. ``frozen`` allows none: the units have a
    fixed meaning outside the network.
    """

    size: int
    axis_type: Literal["perm", "heads", "grouped", "frozen"] = "perm"
    groups: int = 1  # for "grouped": the number of equal runs of units
    circuits: tuple[Circuit, ...] = ()  # for "heads"
    growable: bool = False  # units may be added: no layer normalises over the axis, and no skip connection bypasses it
    readers: tuple[str, ...] = ()  # tensors that read a growable axis linearly; all others belong to its units

    def check(self, permutation: np.ndarray) -> str | None:
        """Return why a permutation of the units is not allowed, or ``None`` if it is."""
        if not np.array_equal(np.sort(permutation), np.arange(self.size)):
            return f"expected a permutation of {self.size} units, got {len(permutation)} entries"
        if self.axis_type == "frozen" and not np.array_equal(permutation, np.arange(self.size)):
            return "it is frozen"
        groups = permutation.reshape(self.groups, -1) // (self.size // self.groups)
        if self.axis_type == "grouped" and np.ptp(groups, axis=1).any():
            return f"it mixes units of different groups; {self.groups} groups move as wholes"
        return None

    def random_permutation(self, generator: np.random.Generator) -> np.ndarray:
        """Draw an allowed permutation uniformly."""
        if self.axis_type == "frozen":
            return np.arange(self.size)
        if self.axis_type == "grouped":
            units = generator.permuted(np.arange(self.size).reshape(self.groups, -1), axis=1)
            return generator.permutation(units, axis=0).ravel()
        return generator.permutation(self.size)


class Slot(NamedTuple):
    """One occurrence of an axis: the tensor, its view, and the run of units along one viewed axis."""

    name: str
    view: tuple[int, ...]
    axis: int
    start: int
    stop: int

    def rows(self, tensor: np.ndarray) -> np.ndarray:
        """Return the slot of the tensor as a (units, width) matrix."""
        values = np.moveaxis(tensor.reshape(self.view), self.axis, 0)[self.start : self.stop]
        return values.reshape(self.stop - self.start, -1)

    @property
    def width(self) -> int:
        """Return how many numbers the slot holds per unit."""
        return prod(self.view) // self.view[self.axis]


class AxisGraph:
    """The axes of a network's tensors. Tensors that the graph does not name are frozen.

    Args:
        tensors: tensor name -> (view shape, or ``None`` for the tensor's own shape; one label per viewed axis, ``None``
            for an axis that is not permuted, ``"a+b"`` for a concatenation).
        axes: label -> :class:`Axis`.

    Raises:
        AxisError: if labels, sizes and views contradict each other.
    """

    def __init__(self, tensors: Mapping[str, Spec], axes: Mapping[str, Axis]) -> None:
        self.tensors = dict(tensors)
        self.axes = dict(axes)
        for name in self.tensors:
            self._check_tensor(name)
        for label in self.axes:
            self._check_axis(label)

    def axis_labels(self, name: str) -> list[list[str]]:
        """Return for each viewed axis of a tensor which axes it concatenates: one, several, or none if it is fixed."""
        return [label.split("+") if label else [] for label in self.tensors[name][1]]

    def labels(self, name: str) -> list[str]:
        """Return the labels of a tensor's axes."""
        return [label for parts in self.axis_labels(name) for label in parts]

    def _check_tensor(self, name: str) -> None:
        view, labels = self.tensors[name][0], self.labels(name)
        if unknown := [label for label in labels if label not in self.axes]:
            raise AxisError(f"{name}: axis {unknown[0]!r} is not declared; declared are {', '.join(self.axes)}.")
        if repeated := [label for label in labels if labels.count(label) > 1]:
            raise AxisError(f"{name}: axis {repeated[0]!r} appears twice on one tensor; use frozen, or two labels.")
        if view is not None:
            self._check_shape(name, view)

    def _check_axis(self, label: str) -> None:
        axis = self.axes[label]
        if axis.axis_type == "grouped" and (axis.groups < 1 or axis.size % axis.groups):
            raise AxisError(f"Axis {label!r}: {axis.size} units do not divide into {axis.groups} groups.")
        if axis.circuits and axis.axis_type != "heads":
            raise AxisError(f"Axis {label!r}: circuits belong to heads, the axis is {axis.axis_type}.")
        for name in axis.readers:
            if name not in self.tensors or label not in self.labels(name):
                raise AxisError(f"Axis {label!r}: its reader {name} does not carry it.")
        for piece in (piece for circuit in axis.circuits for piece in (*circuit.left, *circuit.right)):
            labels = self.tensors[piece.name][1] if piece.name in self.tensors else ()
            if label not in labels or labels[labels.index(label) + 1 :][:1] != (None,):
                raise AxisError(f"Axis {label!r}: {piece.name} has no unlabelled axis right after the head axis.")

    def validate(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Raise :class:`AxisError` unless the graph fits these tensors; they may be a part of the network."""
        for name, (view, _) in self.tensors.items():
            if name not in tensors:
                continue
            if view is None:
                self._check_shape(name, tensors[name].shape)
            elif prod(view) != tensors[name].size:
                raise AxisError(f"{name}: a tensor of shape {tensors[name].shape} cannot be viewed as {view}.")

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        labels = self.tensors[name][1]
        if len(shape) != len(labels):
            raise AxisError(f"{name}: {len(labels)} axes are declared, the shape {tuple(shape)} has {len(shape)}.")
        for size, label, parts in zip(shape, labels, self.axis_labels(name), strict=True):
            declared = sum(self.axes[part].size for part in parts)
            if parts and size != declared:
                raise AxisError(f"{name}: axis {label!r} has {declared} units, the shape {tuple(shape)} has {size}.")

    def freeze(self, *labels: str) -> AxisGraph:
        """Return the graph with some axes frozen, such as the residual stream of clients that start from one model."""
        frozen = {label: replace(self.axes[label], axis_type="frozen", circuits=()) for label in labels}
        return AxisGraph(self.tensors, self.axes | frozen)

    def resize(self, sizes: Mapping[str, int]) -> AxisGraph:
        """Return the graph of the same network with other numbers of units on some axes."""
        axes = {label: replace(axis, size=sizes.get(label, axis.size)) for label, axis in self.axes.items()}
        tensors: dict[str, Spec] = {}
        for name, (view, labels) in self.tensors.items():
            if view is not None:
                viewed = zip(view, self.axis_labels(name), strict=True)
                view = tuple(sum(axes[part].size for part in parts) if parts else n for n, parts in viewed)
            tensors[name] = (view, labels)
        return AxisGraph(tensors, axes)

    def slots(self, label: str, tensors: Mapping[str, np.ndarray]) -> list[Slot]:
        """Return where an axis appears in the given tensors, in the order of the graph."""
        return [
            slot for name in self.tensors if name in tensors
            for part, slot in self.slots_of(name, tensors[name].shape) if part == label
        ]  # fmt: skip

    def slots_of(self, name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, Slot]]:
        """Yield the axes of a tensor of this shape, each with its slot."""
        for axis, parts in enumerate(self.axis_labels(name)):
            start = 0
            for part in parts:
                stop = start + self.axes[part].size
                yield part, Slot(name, tuple(self.tensors[name][0] or shape), axis, start, stop)
                start = stop

    def permute(self, tensors: Mapping[str, np.ndarray], permutations: Mapping[str, np.ndarray]) -> Tensors:
        """Return the network whose unit i on each named axis is unit ``permutation[i]`` of the given one.

        ``np.argsort(permutation)`` is the inverse. Tensors that no permutation affects are returned as the same
        objects.
        """
        for label, permutation in permutations.items():
            if label not in self.axes:
                raise AxisError(f"Axis {label!r} is not declared; declared are {', '.join(self.axes)}.")
            if reason := self.axes[label].check(np.asarray(permutation)):
                raise AxisError(f"Axis {label!r} cannot be permuted like this: {reason}.")
        permuted = dict(tensors)
        for name in self.tensors:
            if name not in tensors:
                continue
            slots = [(part, slot) for part, slot in self.slots_of(name, tensors[name].shape) if part in permutations]
            for axis in {slot.axis for _, slot in slots}:
                index = np.arange(slots[0][1].view[axis])
                for part, slot in slots:
                    if slot.axis == axis:
                        index[slot.start : slot.stop] = slot.start + np.asarray(permutations[part])
                permuted[name] = permuted[name].reshape(slots[0][1].view).take(index, axis).reshape(tensors[name].shape)
        return permuted

    # The inner axis of heads.

    def side(self, tensors: Mapping[str, np.ndarray], label: str, pieces: Sequence[Piece]) -> np.ndarray:
        """Return one side of a circuit, (heads, inner, all columns of its pieces)."""
        return np.concatenate([self._piece(tensors, label, piece) for piece in pieces], axis=2)

    def _piece(self, tensors: Mapping[str, np.ndarray], label: str, piece: Piece) -> np.ndarray:
        values = self._heads_first(tensors[piece.name], label, piece)
        return values.reshape(*values.shape[:2], -1)  # a view or a copy, depending on the memory layout

    def _heads_first(self, tensor: np.ndarray, label: str, piece: Piece) -> np.ndarray:
        view, labels = self.tensors[piece.name]
        values, axis = tensor.reshape(view or tensor.shape), labels.index(label)
        if piece.part is not None:
            values, axis = values[piece.part], axis - 1
        return np.moveaxis(values, (axis, axis + 1), (0, 1))

    def regauge(self, tensors: Mapping[str, np.ndarray], label: str, matrices: Sequence[np.ndarray]) -> Tensors:
        """Return the network with another inner basis in every head of an axis: left -> A left, right -> A^-T right.

        There is one (heads, inner, inner) array A per circuit of the axis.
        """
        changed = dict(tensors)
        for circuit, matrix in zip(self.axes[label].circuits, matrices, strict=True):
            inverse = np.linalg.inv(matrix).swapaxes(1, 2)
            for pieces, factor in ((circuit.left, matrix), (circuit.right, inverse)):
                for piece in pieces:
                    changed[piece.name] = changed[piece.name].copy()
                    heads = self._heads_first(changed[piece.name], label, piece)  # a view of the copy
                    heads[...] = (factor @ heads.reshape(*heads.shape[:2], -1)).reshape(heads.shape)
        return changed

    def random_gauge(
        self, tensors: Mapping[str, np.ndarray], label: str, gauge: Gauge, generator: np.random.Generator
    ) -> list[np.ndarray]:
        """Draw (heads, inner, inner) matrices for every circuit of an axis: identities, orthogonal, or invertible."""
        matrices = []
        for circuit in self.axes[label].circuits:
            heads, inner, _ = self._piece(tensors, label, circuit.left[0]).shape
            basis = np.linalg.qr(generator.standard_normal((2, heads, inner, inner)))[0]
            stretch = np.exp(generator.uniform(-1, 1, (heads, inner, 1)))  # keeps the matrices well-conditioned
            matrices.append({
                "none": np.broadcast_to(np.eye(inner), basis[0].shape), "orth": basis[0],
                "gl": basis[0] @ (stretch * basis[1]),
            }[gauge])  # fmt: skip
        return matrices
