"""Networks of one axis graph at several widths: sizes from shapes, submodels, and embedding into a wider network."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from .axes import AxisError, AxisGraph, Tensors

Units = Mapping[str, np.ndarray]


def infer_sizes(graph: AxisGraph, tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return how many units each axis has in the given tensors, independently of the graph's sizes.

    Axes that none of the tensors has are left out.

    Raises:
        AxisError: if two tensors contradict each other.
    """
    equations: list[tuple[list[list[str]], int]] = []  # labels of each viewed axis, and the product of their sizes
    for name, (view, _) in graph.tensors.items():
        if name not in tensors:
            continue
        parts, shape = graph.axis_labels(name), tensors[name].shape
        if view is not None:
            fixed = prod(n for n, own in zip(view, parts, strict=True) if not own)
            equations.append(([own for own in parts if own], tensors[name].size // fixed))
        elif len(shape) == len(parts):
            equations += [([own], n) for own, n in zip(parts, shape, strict=True) if own]
        else:
            raise AxisError(f"{name}: {len(parts)} axes are declared, the shape {tuple(shape)} has others.")
    sizes: dict[str, int] = {}
    while solved := [item for factors, product in equations if (item := _solve(factors, product, sizes))]:
        sizes.update(solved)
    graph.resize(sizes).validate(tensors)
    return sizes


def _solve(factors: list[list[str]], product: int, sizes: Mapping[str, int]) -> tuple[str, int] | None:
    """Return the axis and size that an equation determines, or ``None`` unless exactly one of its sizes is unknown."""
    unknown = [(own, part) for own in factors for part in own if part not in sizes]
    if len(unknown) != 1:
        return None
    own, part = unknown[0]
    others = prod(sum(sizes.get(p, 0) for p in factor) for factor in factors if factor is not own)
    return part, product // others - sum(sizes.get(p, 0) for p in own)


def submodel(graph: AxisGraph, tensors: Mapping[str, np.ndarray], units: Units) -> Tensors:
    """Return the part of a network that consists of some units, in the given order; unnamed axes keep all of theirs."""
    part = dict(tensors)
    for name in graph.tensors:
        indices = unit_indices(graph, name, units) if name in tensors else {}
        if indices:
            shape = tensors[name].shape
            view = graph.tensors[name][0] or shape
            values = tensors[name].reshape(view)
            for axis, index in indices.items():
                values = values.take(index, axis)
            part[name] = values.reshape(_unview(view, shape, values.shape))
    return part


def unit_indices(graph: AxisGraph, name: str, units: Units) -> dict[int, np.ndarray]:
    """Return, for each viewed axis of a tensor that has units in ``units``, the indices of those units along it."""
    indices = {}
    for axis, parts in enumerate(graph.axis_labels(name)):
        start, runs = 0, []
        for part in parts:
            size = graph.axes[part].size
            runs.append(start + np.asarray(units.get(part, np.arange(size))))
            start += size
        if any(part in units for part in parts):
            indices[axis] = np.concatenate(runs)
    return indices


def widen(graph: AxisGraph, name: str, values: np.ndarray, units: Units) -> np.ndarray:
    """Return a tensor of a narrower network at the graph's width; entries of other units are 0.

    ``units`` contains by axis (L_j,) the wider network's unit of each unit of the narrower one.
    """
    indices = unit_indices(graph, name, units)
    if not indices:
        return values
    view, parts = graph.tensors[name][0] or values.shape, graph.axis_labels(name)
    narrow = tuple(len(indices[axis]) if axis in indices else n for axis, n in enumerate(view))
    wide = tuple(
        sum(graph.axes[p].size for p in parts[axis]) if axis in indices else n for axis, n in enumerate(narrow)
    )
    result = np.zeros(wide, values.dtype)
    result[np.ix_(*(indices.get(axis, np.arange(n)) for axis, n in enumerate(narrow)))] = values.reshape(narrow)
    return result.reshape(_unview(narrow, values.shape, wide))


def _unview(view: tuple[int, ...], shape: tuple[int, ...], new_view: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a tensor with view ``new_view``, in which the same axes are merged as in ``shape``."""
    merged, axis = [], 0
    for n in shape:
        old_size, new_size = view[axis], new_view[axis]
        axis += 1
        while old_size < n:
            old_size, new_size, axis = old_size * view[axis], new_size * new_view[axis], axis + 1
        merged.append(new_size)
    if axis < len(view) and merged:  # trailing axes of size 1, which the products above do not show
        merged[-1] *= prod(new_view[axis:])
    return tuple(merged)
