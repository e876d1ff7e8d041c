"""The inner bases of attention heads, and rows that do not depend on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mtfed.strategies.attention_heads import align_gauge, circuit_rows, inner_basis
from mtfed.strategies.axes import Axis, AxisGraph, Circuit, Piece

RNG = np.random.default_rng
Network = dict[str, np.ndarray]

HEADS = AxisGraph(
    {"q": ((3, 4, 6), ("h", None, None)), "q.bias": ((3, 4), ("h", None)), "k": (None, (None, "h", None))},
    {"h": Axis(3, "heads", circuits=(Circuit((Piece("q"), Piece("q.bias")), (Piece("k"),)),))},
)


def heads(seed: int) -> Network:
    shapes = {"q": (12, 6), "q.bias": (12,), "k": (5, 3, 4)}
    return {name: RNG(seed).standard_normal(shape) for name, shape in shapes.items()}


def products(network: Network) -> np.ndarray:
    """Return (heads, 7, 5) Q^T K, bias as the last row."""
    q = np.concatenate([network["q"].reshape(3, 4, 6), network["q.bias"].reshape(3, 4, 1)], axis=2)
    return np.einsum("hka,bhk->hab", q, network["k"])


def test_circuit_rows_have_the_distances_of_the_products_in_any_basis() -> None:
    networks = [heads(seed) for seed in range(3)]
    matrices = HEADS.random_gauge(networks[1], "h", "gl", RNG(9))
    networks[1] = HEADS.regauge(networks[1], "h", matrices)
    result = np.vstack(circuit_rows(HEADS, "h", networks))
    whole = np.vstack([products(network).reshape(3, -1) for network in networks])
    whole /= np.sqrt(np.square(whole).sum(axis=1).mean())
    np.testing.assert_allclose(result @ result.T, whole @ whole.T, atol=1e-12)


@pytest.mark.parametrize("gauge", ["none", "orth", "gl"])
def test_inner_basis_is_recovered(gauge: Any) -> None:
    network = heads(0)
    matrices = HEADS.random_gauge(network, "h", gauge, RNG(1))
    turned = HEADS.regauge(network, "h", matrices)
    circuit = HEADS.axes["h"].circuits[0]
    sides = [HEADS.side(net, "h", pieces) for net in (turned, network) for pieces in (circuit.left, circuit.right)]
    result = inner_basis(*sides, "gl" if gauge == "gl" else "orth")
    np.testing.assert_allclose(result @ matrices[0], np.broadcast_to(np.eye(4), (3, 4, 4)), atol=1e-10)


def test_a_basis_is_recovered_if_a_head_does_not_use_its_whole_width() -> None:
    network = heads(0)
    network["q"][:4] = 0.0  # rows of the first head: no query uses them
    network["q.bias"][:4] = 0.0
    network["q"][5] = 0.0
    turned = HEADS.regauge(network, "h", HEADS.random_gauge(network, "h", "gl", RNG(1)))
    back = align_gauge(HEADS, "h", turned, network, "gl")
    assert all(np.isfinite(values).all() for values in back.values())
    np.testing.assert_allclose(products(back), products(network), atol=1e-6)
