"""Axis graphs: contradictions in their tables, exact permutations, and changes of the basis inside heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mtfed.strategies.axes import Axis, AxisError, AxisGraph, Circuit, Piece

RNG = np.random.default_rng

GRAPH = AxisGraph(
    {
        "a.weight": (None, ("a", None)),
        "b.weight": (None, ("b", None)),
        "join.weight": (None, (None, "a+b")),
        "heads.weight": ((2, 3, 2, 4), (None, "h", None, "a")),
        "heads.out": ((4, 3, 2), ("a", "h", None)),
        "norm": (None, ("g",)),
    },
    {
        "a": Axis(4), "b": Axis(5), "g": Axis(6, "grouped", groups=3),
        "h": Axis(3, "heads", circuits=(Circuit((Piece("heads.weight", 0),), (Piece("heads.weight", 1),)),)),
    },
)  # fmt: skip
SHAPES = {"a.weight": (4, 2), "b.weight": (5, 2), "join.weight": (3, 9), "heads.weight": (12, 4), "heads.out": (4, 6),
          "norm": (6,), "other": (7,)}  # fmt: skip


def network(seed: int = 0) -> dict[str, np.ndarray]:
    return {name: RNG(seed).standard_normal(shape) for name, shape in SHAPES.items()}


TABLES = [  # tensors, axes, message
    ({"w": (None, ("x",))}, {}, "axis 'x' is not declared"),
    ({"w": (None, ("x", "x"))}, {"x": Axis(2)}, "axis 'x' appears twice on one tensor"),
    ({"w": (None, ("x+y+x",))}, {"x": Axis(2), "y": Axis(2)}, "axis 'x' appears twice"),
    ({"w": ((3, 2), ("x", None))}, {"x": Axis(2)}, r"axis 'x' has 2 units, the shape \(3, 2\) has 3"),
    ({"w": ((3, 2), ("x",))}, {"x": Axis(3)}, r"1 axes are declared, the shape \(3, 2\) has 2"),
    ({"w": (None, ("x",))}, {"x": Axis(7, "grouped", groups=2)}, "7 units do not divide into 2 groups"),
    ({"w": (None, ("x", None))}, {"x": Axis(2, circuits=(Circuit((Piece("w"),), ()),))}, "circuits belong to heads"),
    ({"w": (None, ("x",))}, {"x": Axis(2, "heads", circuits=(Circuit((Piece("w"),), ()),))}, "after the head axis"),
]


@pytest.mark.parametrize(("tensors", "axes", "message"), TABLES)
def test_a_table_that_contradicts_itself_is_refused(tensors: Any, axes: Any, message: str) -> None:
    with pytest.raises(AxisError, match=message):
        AxisGraph(tensors, axes)


MISFITS = [
    ("a.weight", (5, 2), "axis 'a' has 4 units"),
    ("a.weight", (4, 2, 1), "2 axes are declared"),
    ("join.weight", (3, 8), "axis 'a\\+b' has 9 units"),
    ("heads.weight", (12, 5), "cannot be viewed as"),
]


@pytest.mark.parametrize(("name", "shape", "message"), MISFITS)
def test_tensors_that_do_not_fit_are_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    GRAPH.validate(network())
    GRAPH.validate({"a.weight": np.zeros((4, 2))})  # a part of the network
    with pytest.raises(AxisError, match=message):
        GRAPH.validate(network() | {name: np.zeros(shape)})


PERMUTATIONS = [
    ({"z": np.arange(3)}, "'z' is not declared"),
    ({"a": np.array([0, 1, 2])}, "expected a permutation of 4 units, got 3"),
    ({"a": np.array([0, 1, 2, 2])}, "expected a permutation"),
    ({"g": np.array([0, 2, 1, 3, 4, 5])}, "mixes units of different groups"),
]


@pytest.mark.parametrize(("permutations", "message"), PERMUTATIONS)
def test_a_permutation_outside_the_group_is_refused(permutations: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(AxisError, match=message):
        GRAPH.permute(network(), permutations)


def test_a_frozen_axis_is_not_permuted() -> None:
    graph = AxisGraph({"w": (None, ("x",))}, {"x": Axis(3, "frozen")})
    assert graph.axes["x"].random_permutation(RNG(0)).tolist() == [0, 1, 2]
    with pytest.raises(AxisError, match="it is frozen"):
        graph.permute({"w": np.zeros(3)}, {"x": np.array([1, 0, 2])})


def test_permute_is_exact_and_its_inverse_undoes_it() -> None:
    net = network()
    permutations = {label: axis.random_permutation(RNG(1)) for label, axis in GRAPH.axes.items()}
    moved = GRAPH.permute(net, permutations)
    a, b, h = permutations["a"], permutations["b"], permutations["h"]
    np.testing.assert_array_equal(moved["join.weight"], net["join.weight"][:, np.concatenate([a, 4 + b])])
    heads = net["heads.weight"].reshape(2, 3, 2, 4)
    np.testing.assert_array_equal(moved["heads.weight"], heads[:, h][..., a].reshape(12, 4))
    np.testing.assert_array_equal(moved["heads.out"], net["heads.out"][a].reshape(4, 3, 2)[:, h].reshape(4, 6))
    assert moved["other"] is net["other"]
    back = GRAPH.permute(moved, {label: np.argsort(permutation) for label, permutation in permutations.items()})
    for name in net:
        np.testing.assert_array_equal(back[name], net[name])


def test_random_permutations_cover_the_group() -> None:
    seen = {tuple(GRAPH.axes["g"].random_permutation(RNG(seed))) for seed in range(600)}
    assert len(seen) == 6 * 2**3  # all of S_3 x S_2^3
    assert all(GRAPH.axes["g"].check(np.array(permutation)) is None for permutation in seen)


@pytest.mark.parametrize("gauge", ["none", "orth", "gl"])
def test_a_gauge_keeps_the_product_of_a_circuit(gauge: Any) -> None:
    net = network()
    matrices = GRAPH.random_gauge(net, "h", gauge, RNG(3))
    regauged = GRAPH.regauge(net, "h", matrices)
    left, right = net["heads.weight"].reshape(2, 3, 2, 4)
    new_left, new_right = regauged["heads.weight"].reshape(2, 3, 2, 4)
    for head in range(3):
        np.testing.assert_allclose(new_left[head].T @ new_right[head], left[head].T @ right[head], atol=1e-12)
        np.testing.assert_allclose(new_left[head], matrices[0][head] @ left[head], atol=1e-12)
    assert (gauge == "none") == np.allclose(regauged["heads.weight"], net["heads.weight"])
    assert regauged["heads.out"] is net["heads.out"]
