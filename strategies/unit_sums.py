"""Sums of squares unit by unit, for all axes of a network in one pass over its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from .axes import Slot, Tensors

CHUNK = 1 << 17  # numbers at a time: half a megabyte, which stays in the processor's cache


class UnitSums:
    """Each unit's sum of squares, or of squared differences from another network, one number a slot.

    A tensor is looked at when one of its slots is first asked for. All axes that it carries share that pass: it is cut
    into a matrix between two of its axes, and every axis' sums are sums of the row sums or of the column sums.

    Args:
        slots: where each axis appears.
        tensors: the network; it may lack some.
        others: what to subtract.
    """

    def __init__(self, slots: Mapping[str, Sequence[Slot]], tensors: Tensors, others: Tensors | None = None) -> None:
        self._carried: dict[str, set[int]] = {}  # tensor -> the viewed axes whose sums are wanted
        for slot in (slot for found in slots.values() for slot in found):
            self._carried.setdefault(slot.name, set()).add(slot.axis)
        self._tensors, self._others = dict(tensors), others
        self._found: dict[tuple[str, int], np.ndarray] = {}

    def of(self, slot: Slot) -> np.ndarray:
        """Return (units,) the sums of a slot."""
        key = (slot.name, slot.axis)
        if key not in self._found:
            other = None if self._others is None else self._others[slot.name]
            for axis, sums in square_sums(self._tensors[slot.name], other, slot.view, self._carried[slot.name]).items():
                self._found[slot.name, axis] = sums
        return self._found[key][slot.start : slot.stop]

    def replace(self, tensors: Tensors) -> None:
        """Put other tensors in the place of some."""
        self._tensors |= tensors
        for name in tensors:
            for axis in self._carried.get(name, ()):
                self._found.pop((name, axis), None)


def square_sums(
    tensor: np.ndarray, other: np.ndarray | None, view: tuple[int, ...], axes: set[int]
) -> dict[int, np.ndarray]:
    """Return for each of some axes of a viewed tensor its sums of squares over all other axes.

    Args:
        tensor: as many numbers as the view has.
        other: what to subtract.
        view: the shape to see it in.
        axes: whose sums are wanted.
    """
    cut = max(range(len(view) + 1), key=lambda cut: min(prod(view[:cut]), prod(view[cut:])))
    height, width = prod(view[:cut]), prod(view[cut:])
    rows, columns = np.zeros(height), np.zeros(width)
    step = max(CHUNK // max(width, 1), 1)
    values = tensor.reshape(height, width)
    minus = None if other is None else other.reshape(height, width)
    scratch, ones = np.empty((min(step, height), width), np.float32), np.ones(max(step, width), np.float32)
    kind = np.result_type(tensor, np.float32)  # squares of half precision overflow
    upper, lower = any(axis < cut for axis in axes), any(axis >= cut for axis in axes)
    with np.errstate(over="ignore"):  # an axis of which the sums are infinite has no say, see :mod:`.frame`
        for start in range(0, 0 if tensor is other else height, step):
            piece = values[start : start + step]
            square = scratch[: len(piece)]
            if minus is None:
                np.multiply(piece, piece, out=square, casting="same_kind", dtype=kind)
            else:
                np.subtract(piece, minus[start : start + step], out=square, casting="same_kind", dtype=kind)
                np.multiply(square, square, out=square)
            if upper:
                rows[start : start + step] = square @ ones[:width]
            if lower:
                columns += ones[: len(piece)] @ square
    sums = {}
    for axis in axes:
        part, shape, at = (rows, view[:cut], axis) if axis < cut else (columns, view[cut:], axis - cut)
        sums[axis] = part.reshape(shape).sum(axis=tuple(k for k in range(len(shape)) if k != at))
    return sums
