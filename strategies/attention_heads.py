"""Attention heads, whose inner axis has no basis of its own: distances of circuits, alignment of the inner basis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .axes import AxisGraph, Gauge, Tensors

MAX_SINGLE_PRECISION = 1e6  # largest weight for float32: products of four much larger ones overflow


def circuit_rows(graph: AxisGraph, label: str, networks: Sequence[Tensors]) -> list[np.ndarray]:
    """Return per network (heads, R) rows whose distances are those of the heads' circuits, whatever the inner basis.

    A head is represented by its products Q^T K and V^T O, with biases as columns, each scaled to norm 1 on average.
    Inner products of circuits, <L^T R, L'^T R'> = sum (L L'^T) * (R R'^T), do not need the products themselves, and the
    rows are computed from the Gram matrix of all heads of all networks. Time is quadratic in the number of networks.
    """
    gram: np.ndarray | float = 0.0
    for circuit in graph.axes[label].circuits:
        left, right = ([graph.side(net, label, pieces) for net in networks] for pieces in (circuit.left, circuit.right))
        if max(np.abs(values).max() for values in (*left, *right)) > MAX_SINGLE_PRECISION:
            left, right = ([values.astype(np.float64) for values in side] for side in (left, right))
        heads, inner, _ = left[0].shape
        left, right = ([values.reshape(heads * inner, -1) for values in side] for side in (left, right))
        blocks = np.zeros((len(networks), heads, len(networks), heads))
        for a in range(len(networks)):
            for b in range(a + 1):
                both = (left[a] @ left[b].T) * (right[a] @ right[b].T)
                blocks[a, :, b] = both.reshape(heads, inner, heads, inner).sum(axis=(1, 3), dtype=float)
                blocks[b, :, a] = blocks[a, :, b].T
        part = blocks.reshape(len(networks) * heads, -1)
        gram = gram + part / max(part.diagonal().mean(), 1e-300)
    values, vectors = np.linalg.eigh(gram)
    return np.split(vectors * np.sqrt(np.maximum(values, 0)), len(networks))


def inner_basis(
    left: np.ndarray, right: np.ndarray, left_target: np.ndarray, right_target: np.ndarray, gauge: Gauge
) -> np.ndarray:
    """Return (heads, inner, inner) A such that A left and A^-T right are close to the targets.

    ``orth`` solves the orthogonal Procrustes problem of both sides at once. ``gl`` first transforms every head to the
    basis in which both sides have the same Gram matrix, which leaves only an orthogonal freedom, and finally to the
    basis of the targets. The sides of a circuit are (heads, inner, R_1) and (heads, inner, R_2); the targets are those
    of the atoms.
    """
    identity = np.broadcast_to(np.eye(left.shape[1]), (*left.shape[:2], left.shape[1]))
    own, target = identity, identity
    if gauge == "gl":
        own, target = _balance(left, right), _balance(left_target, right_target)
    cross = target @ left_target @ (own @ left).swapaxes(1, 2)
    cross = cross + _inverse_transpose(target) @ right_target @ (_inverse_transpose(own) @ right).swapaxes(1, 2)
    u, _, v = np.linalg.svd(cross)
    return np.linalg.inv(target) @ u @ v @ own


def _inverse_transpose(matrices: np.ndarray) -> np.ndarray:
    return np.linalg.inv(matrices).swapaxes(1, 2)


def _balance(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return per head B with B L L^T B^T = B^-T R R^T B^-1; B^2 is the geometric mean of (L L^T)^-1 and R R^T."""
    root = _power(left @ left.swapaxes(1, 2), 0.5)
    inverse = np.linalg.inv(root)
    return _power(inverse @ _power(root @ right @ right.swapaxes(1, 2) @ root, 0.5) @ inverse, 0.5)


def _power(matrices: np.ndarray, exponent: float) -> np.ndarray:
    """Return powers of symmetric matrices; a direction that no weight uses gets a small eigenvalue instead of zero."""
    values, vectors = np.linalg.eigh(matrices.astype(float))
    largest = values[..., -1:]
    values = np.where(largest > 0, np.maximum(values, 1e-10 * largest), 1.0)
    return (vectors * values[..., None, :] ** exponent) @ vectors.swapaxes(1, 2)


def align_gauge(graph: AxisGraph, label: str, network: Tensors, target: Tensors, gauge: Gauge) -> Tensors:
    """Return the network with the inner bases of its heads aligned with those of the target."""
    matrices = []
    for circuit in graph.axes[label].circuits:
        left, right = (graph.side(network, label, pieces) for pieces in (circuit.left, circuit.right))
        left_target, right_target = (graph.side(target, label, pieces) for pieces in (circuit.left, circuit.right))
        matrices.append(inner_basis(left, right, left_target, right_target, gauge))
    return graph.regauge(network, label, matrices)


def inner_axes(graph: AxisGraph) -> dict[str, int]:
    """Return tensor -> the viewed axis inside heads, whose basis :func:`align_gauge` changes."""
    return {
        piece.name: graph.tensors[piece.name][1].index(label) + 1
        for label, axis in graph.axes.items() for circuit in axis.circuits
        for piece in (*circuit.left, *circuit.right)
    }  # fmt: skip
