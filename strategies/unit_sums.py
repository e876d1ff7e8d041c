"""Sums of squares per unit, for all axes of a network in one pass over its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from .axes import Slot, Tensors

CHUNK = 1 << 17  # numbers per step: half a megabyte, which fits into the processor's cache


class UnitSums:
    """Each unit's sum of squares, or of squared differences from another network, one number per slot.

    A tensor is read when one of its slots is first requested, in one pass for all of its axes: it is cut into a matrix
    between two of its axes, and the sums of every axis are sums of the matrix's row sums or column sums.

    Args:
        slots: where each axis appears.
        tensors: the network; it may lack some tensors.
        others: the network to subtract, if any.
    """

    def __init__(self, slots: Mapping[str, Sequence[Slot]], tensors: Tensors, others: Tensors | None = None) -> None:
        self._axes: dict[str, set[int]] = {}  # tensor -> the viewed axes whose sums are needed
        for slot in (slot for own in slots.values() for slot in own):
            self._axes.setdefault(slot.name, set()).add(slot.axis)
        self._tensors, self._others = dict(tensors), others
        self._sums: dict[tuple[str, int], np.ndarray] = {}

    def of(self, slot: Slot) -> np.ndarray:
        """Return the (units,) sums of a slot."""
        key = (slot.name, slot.axis)
        if key not in self._sums:
            other = None if self._others is None else self._others[slot.name]
            for axis, sums in square_sums(self._tensors[slot.name], other, slot.view, self._axes[slot.name]).items():
                self._sums[slot.name, axis] = sums
        return self._sums[key][slot.start : slot.stop]

    def replace(self, tensors: Tensors) -> None:
        """Replace some of the network's tensors."""
        self._tensors |= tensors
        for name in tensors:
            for axis in self._axes.get(name, ()):
                self._sums.pop((name, axis), None)


def square_sums(
    tensor: np.ndarray, other: np.ndarray | None, view: tuple[int, ...], axes: set[int]
) -> dict[int, np.ndarray]:
    """Return, for some axes of a viewed tensor minus another one, the sums of squares over all other axes."""
    cut = max(range(len(view) + 1), key=lambda cut: min(prod(view[:cut]), prod(view[cut:])))
    height, width = prod(view[:cut]), prod(view[cut:])
    row_sums, column_sums = np.zeros(height), np.zeros(width)
    step = max(CHUNK // max(width, 1), 1)
    values = tensor.reshape(height, width)
    subtrahend = None if other is None else other.reshape(height, width)
    scratch, ones = np.empty((min(step, height), width), np.float32), np.ones(max(step, width), np.float32)
    dtype = np.result_type(tensor, np.float32)  # squares of half precision would overflow
    needs_rows, needs_columns = any(axis < cut for axis in axes), any(axis >= cut for axis in axes)
    with np.errstate(over="ignore"):  # slots with infinite sums are ignored, see :mod:`.frame`
        for start in range(0, 0 if tensor is other else height, step):
            piece = values[start : start + step]
            square = scratch[: len(piece)]
            if subtrahend is None:
                np.multiply(piece, piece, out=square, casting="same_kind", dtype=dtype)
            else:
                np.subtract(piece, subtrahend[start : start + step], out=square, casting="same_kind", dtype=dtype)
                np.multiply(square, square, out=square)
            if needs_rows:
                row_sums[start : start + step] = square @ ones[:width]
            if needs_columns:
                column_sums += ones[: len(piece)] @ square
    sums = {}
    for axis in axes:
        part, shape, own = (row_sums, view[:cut], axis) if axis < cut else (column_sums, view[cut:], axis - cut)
        sums[axis] = part.reshape(shape).sum(axis=tuple(k for k in range(len(shape)) if k != own))
    return sums
