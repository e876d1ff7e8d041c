"""Networks of one table of axes at several widths: how wide one is, a part of one, and one inside a wider one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import numpy as np

from .axes import AxisError, AxisGraph, Tensors

Units = Mapping[str, np.ndarray]


def infer_sizes(graph: AxisGraph, tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return how many units each axis has in the given tensors, whatever the graph says; axes not held are left out.

    Raises:
        AxisError: where two tensors disagree.
    """
    equations: list[tuple[list[list[str]], int]] = []  # labels of each viewed axis, and the product of their sizes
    for name, (view, labels) in graph.tensors.items():
        if name in tensors:
            parts = [label.split("+") if label else [] for label in labels]
            if view is None:
                shape = tensors[name].shape
                if len(shape) != len(labels):
                    raise AxisError(f"{name}: {len(labels)} axes are declared, the shape {tuple(shape)} has others.")
                equations += [([own], n) for own, n in zip(parts, shape, strict=True) if own]
            else:
                fixed = prod(n for n, own in zip(view, parts, strict=True) if not own)
                equations.append(([own for own in parts if own], tensors[name].size // fixed))
    sizes: dict[str, int] = {}
    while True:
        found = dict(item for factors, product in equations for item in _solve(factors, product, sizes))
        if not found:
            break
        sizes |= found
    graph.resize(sizes).validate(tensors)
    return sizes


def _solve(factors: list[list[str]], product: int, sizes: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yield the one size that an equation leaves open, if it is one."""
    unknown = [(own, part) for own in factors for part in own if part not in sizes]
    if len(unknown) == 1:
        (own, part), others = (
            unknown[0],
            prod(sum(sizes.get(p, 0) for p in f) for f in factors if f is not unknown[0][0]),
        )
        yield part, product // others - sum(sizes.get(p, 0) for p in own)


def submodel(graph: AxisGraph, tensors: Mapping[str, np.ndarray], units: Units) -> Tensors:
    """Return the part of a network that has these units, in this order, in tensors of its own shapes.

    Args:
        graph: of the network.
        tensors: the network.
        units: axis -> the units to take; all of an axis that is not named.
    """
    part = dict(tensors)
    for name in graph.tensors:
        picks = unit_indices(graph, name, units) if name in tensors else {}
        if picks:
            shape = tensors[name].shape
            view = graph.tensors[name][0] or shape
            values = tensors[name].reshape(view)
            for axis, index in picks.items():
                values = values.take(index, axis)
            part[name] = values.reshape(_merged(view, shape, values.shape))
    return part


def unit_indices(graph: AxisGraph, name: str, units: Units) -> dict[int, np.ndarray]:
    """Return for each viewed axis of a tensor on which units are named the places of those units."""
    picks = {}
    for axis, label in enumerate(graph.tensors[name][1]):
        parts, start, places = label.split("+") if label else [], 0, []
        for part in parts:
            size = graph.axes[part].size
            places.append(start + np.asarray(units.get(part, np.arange(size))))
            start += size
        if any(part in units for part in parts):
            picks[axis] = np.concatenate(places)
    return picks


def widen(graph: AxisGraph, name: str, values: np.ndarray, units: Units) -> np.ndarray:
    """Return a tensor of a narrower network in its places of the graph's width, and 0 elsewhere.

    Args:
        graph: of the wider network.
        name: the tensor's.
        values: the narrower tensor, in its own shape.
        units: axis -> (L_j,) the wider network's unit of each of the narrower one's.
    """
    picks = unit_indices(graph, name, units)
    if not picks:
        return values
    view, labels = graph.tensors[name]
    narrow = tuple(len(picks[axis]) if axis in picks else n for axis, n in enumerate(view or values.shape))
    wide = tuple(axis_size(graph, labels[axis]) if axis in picks else n for axis, n in enumerate(narrow))
    result = np.zeros(wide, values.dtype)
    result[np.ix_(*(picks.get(axis, np.arange(n)) for axis, n in enumerate(narrow)))] = values.reshape(narrow)
    return result.reshape(_merged(narrow, values.shape, wide))


def axis_size(graph: AxisGraph, label: str | None) -> int:
    """Return how many units a viewed axis has that carries a label or a sum of some."""
    return sum(graph.axes[part].size for part in label.split("+")) if label else 0


def _merged(view: tuple[int, ...], shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """Return another view's shape with the axes merged that this shape merges of this view."""
    merged, at = [], 0
    for n in shape:
        here, there = view[at], other[at]
        at += 1
        while here < n:
            here, there, at = here * view[at], there * other[at], at + 1
        merged.append(there)
    if at < len(view) and merged:  # axes of one unit that no product shows
        merged[-1] *= prod(other[at:])
    return tuple(merged)
