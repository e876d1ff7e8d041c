"""Planted permutations of one update at a time, and the bounds that avoid the search."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from helpers.planted import NETWORKS, RNG, Network, difference, joined, multitask, perceptron, plant, shaken
from mtfed.strategies.alignment import align
from mtfed.strategies.axes import Axis, AxisError, AxisGraph
from mtfed.strategies.frame import AlignedUpdate, Frame
from mtfed.strategies.matching import assign

PLANTED = [
    *((name, noise, "none") for name in NETWORKS for noise in (0.0, 0.1, 0.5)),
    *(("multi-task", noise, gauge) for noise in (0.0, 0.1, 0.5) for gauge in ("orth", "gl")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "noise", "gauge"), PLANTED)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_planted_permutations_are_recovered(name: str, noise: float, gauge: Any, dtype: Any) -> None:
    graph, network = NETWORKS[name]()
    clients, moved, permutations = plant(graph, network, noise, gauge)
    frame = Frame(graph, {key: values.astype(dtype) for key, values in network.items()}, gauge=gauge)
    for client, update, planted in zip(clients[:2], moved[:2], permutations[:2], strict=True):
        update = {key: values.astype(dtype) for key, values in update.items()}
        result = frame.align(update)
        assert list(result.tensors) == list(network)
        for label, permutation in planted.items():
            own = result.permutations.get(label, np.arange(len(permutation)))
            np.testing.assert_array_equal(permutation[own], np.arange(len(permutation)), err_msg=label)
            placement = result.placements[label]
            assert placement.moved == (own != np.arange(len(own))).mean()
            assert (
                placement.distance_before >= placement.distance_after
                and placement.distance_after < 0.01 + 1.5 * noise**2
            )
        assert all(values.dtype == dtype for values in result.tensors.values())
        if gauge == "none":
            again = graph.permute(update, result.permutations)
            assert all(np.array_equal(result.tensors[key], again[key]) for key in network)
            assert result.regauged == ()
        else:
            assert len(result.regauged) == 4
        if noise == 0:
            assert difference([result.tensors], [client]) < (1e-3 if dtype == np.float32 else 1e-8)


def test_circuits_match_heads_if_the_frame_has_no_biases_yet() -> None:
    graph, network = multitask()
    network = {name: 0 * values if name.endswith("qkv.bias") else values for name, values in network.items()}
    clients, moved, permutations = plant(graph, network, 0.1, "orth")
    result = Frame(graph, network, gauge="orth").align(moved[0])
    for label, permutation in permutations[0].items():
        np.testing.assert_array_equal(
            permutation[result.permutations.get(label, np.arange(len(permutation)))], np.arange(len(permutation))
        )
    assert len(result.regauged) == 4 and difference([result.tensors], clients[:1]) < 0.1


def nothing_moved(result: AlignedUpdate, update: Network) -> bool:
    return not result.permutations and not result.regauged and all(result.tensors[key] is update[key] for key in update)


@pytest.mark.parametrize("gauge", ["none", "orth", "gl"])
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.02])
def test_updates_near_the_frame_are_returned_unchanged(noise: float, gauge: Any) -> None:
    graph, network = multitask()
    frame = Frame(graph, network, gauge=gauge)
    update = shaken(network, noise, RNG(1))
    result = frame.align(dict(reversed(update.items())))
    assert nothing_moved(result, update) and list(result.tensors) == list(network)
    assert result.placements.keys() == graph.axes.keys()
    assert all(fit.moved == 0 and fit.distance_before == fit.distance_after for fit in result.placements.values())


def test_distances_are_in_the_frames_scale() -> None:
    graph, network = joined()
    update = shaken(network, 0.3, RNG(1))
    swapped = graph.permute(update, {"b": np.array([1, 0, 2, 4, 3])})
    result = Frame(graph, network).align(swapped)
    parts = {"b": network["b"].T, "join": network["join"][:, 6:]}

    def distance(values: Network) -> float:
        own = {"b": values["b"].T, "join": values["join"][:, 6:]}
        total = sum(np.square(own[name] - part).sum() / np.square(part).mean() for name, part in parts.items())
        return float(total / sum(part.size for part in parts.values()))

    assert result.placements["b"].moved == 0.8 and result.placements["a"].moved == 0.0
    assert result.placements["b"].distance_before == pytest.approx(distance(swapped), rel=1e-5)
    assert result.placements["b"].distance_after == pytest.approx(distance(update), rel=1e-5)
    assert result.placements["a"].distance_before == result.placements["a"].distance_after


def test_a_part_of_an_update_is_aligned_on_its_own_tensors() -> None:
    graph, network = multitask()
    frame = Frame(graph, network)
    _, moved, permutations = plant(graph, network, 0.3, "none")
    for prefix in ("encoder", "decoders.kind", "decoders.lungs"):
        update = {name: values for name, values in moved[0].items() if name.startswith(prefix)}
        result = frame.align(update)
        present = {label for label in graph.axes if graph.slots(label, update)}
        assert result.tensors.keys() == update.keys() and result.placements.keys() == present
        for label in present:
            planted = permutations[0][label]
            np.testing.assert_array_equal(planted[result.permutations[label]], np.arange(len(planted)))
    assert nothing_moved(frame.align({}), {})


def test_a_frozen_axis_is_not_permuted_in_a_frame() -> None:
    graph, network = multitask()
    frozen = graph.freeze("encoder.body.residual", "encoder.body.blocks.1.mlp.hidden")
    _, _, permutations = plant(graph, network, 0.1, "none")
    planted = {label: order for label, order in permutations[0].items() if frozen.axes[label].axis_type != "frozen"}
    result = Frame(frozen, network).align(graph.permute(shaken(network, 0.1, RNG(5)), planted))
    assert result.permutations.keys() == planted.keys() == result.placements.keys()
    everything = Frame(graph.freeze(*graph.axes), network).align(graph.permute(network, permutations[0]))
    assert everything.permutations == {} and everything.placements == {}


def test_the_gate_rejects_small_gains() -> None:
    network = {"w": RNG(0).standard_normal((20, 10))}
    network["w"][1] = network["w"][0] + 0.01 * RNG(1).standard_normal(10)  # two units that any noise may exchange
    graph = AxisGraph({"w": (None, ("x", None))}, {"x": Axis(20)})
    update = graph.permute(network, {"x": np.array([1, 0, *range(2, 20)])})
    assert nothing_moved(Frame(graph, network).align(update), update)
    assert Frame(graph, network, gate=0.0).align(update).permutations["x"][:2].tolist() == [1, 0]
    far = graph.permute(network, {"x": np.array([0, 1, 3, 2, *range(4, 20)])})
    assert Frame(graph, network).align(far).permutations["x"][2:4].tolist() == [3, 2]
    assert nothing_moved(Frame(graph, network, gate=0.5).align(far), far)


def identity_is_best(graph: AxisGraph, network: Network, update: Network, label: str) -> bool:
    """Return whether every unit is closest to its own atom, by explicit distances in the frame's scale."""
    rows = [
        [slot.rows(tensors[slot.name]) / (np.sqrt(np.square(slot.rows(network[slot.name])).mean()) or 1.0)
         for slot in graph.slots(label, network)]
        for tensors in (update, network)
    ]  # fmt: skip
    own, atoms = (np.hstack(parts).astype(float) for parts in rows)
    distances = cdist(own, atoms)
    return bool((distances.diagonal() <= distances.min(axis=1) * (1 + 1e-4)).all())


@pytest.mark.parametrize("name", ["perceptron", "chain", "multi-task"])
@pytest.mark.parametrize("noise", [0.05, 0.3, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_bounds_never_accept_a_wrong_identity(
    name: str, noise: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, network = NETWORKS[name]()
    network = {key: values.astype(np.float32) for key, values in network.items()}
    for key in ("0.weight", "0.bias", "2.weight"):  # units so close to each other that noise exchanges them
        if name == "perceptron" and seed:
            network[key] = network[key].copy()
            rows = network[key].T if key == "2.weight" else network[key]
            rows[:10] = rows[10:20] + np.float32(0.1 * rows.std() * seed) * RNG(9).standard_normal(rows[:10].shape)
    update = {key: values.astype(np.float32) for key, values in shaken(network, noise, RNG(seed)).items()}
    frame = Frame(graph, network, gate=0.0)
    assigned = []
    monkeypatch.setattr(
        "mtfed.strategies.frame.assign", lambda gains, groups: assigned.append(1) or assign(gains, groups)
    )
    result = frame.align(update)
    settled = set(graph.axes) if not assigned else proven_axes(frame, update)
    assert assigned or nothing_moved(result, update)
    for label in settled:
        assert identity_is_best(graph, network, update, label)
    if noise <= 0.05 and not (name == "perceptron" and seed):
        assert not assigned and proven_axes(frame, update) == set(graph.axes)


def proven_axes(frame: Frame, update: Network) -> set[str]:
    """Return the axes on which the half distances alone prove the identity."""
    result = set()
    for label, slots in frame.slots.items():
        distances = sum(
            np.square(slot.rows(update[slot.name]).astype(float) - slot.rows(frame.tensors[slot.name])).sum(axis=1)
            / frame.scale[slot]
            for slot in slots
        )
        if (distances <= np.square(frame.half_distances(slots))).all():
            result.add(label)
    return result


@pytest.mark.parametrize("seed", range(6))
def test_a_frame_agrees_with_a_full_assignment(seed: int) -> None:
    """On one axis the search is exact: nothing moves if and only if no permutation gains beyond the gate."""
    generator = RNG(seed)
    graph = AxisGraph({"w": (None, ("x", None)), "v": (None, (None, "x"))}, {"x": Axis(15)})
    network = {"w": generator.standard_normal((15, 4)), "v": 3 * generator.standard_normal((2, 15))}
    frame = Frame(graph, network, gate=0.0, dtype=np.float64)
    for noise in (0.1, 0.3, 1.0):
        update = shaken(network, noise, generator)
        result = frame.align(update).permutations.get("x", np.arange(15))
        whole = align(graph, [update], frame=network, gate=0.0, dtype=np.float64)
        scale = {name: np.square(values).mean() for name, values in network.items()}
        gain = network["w"] @ update["w"].T / scale["w"] + network["v"].T @ update["v"] / scale["v"]
        best = max(
            [
                np.arange(15),
                result,
                whole.permutations[0]["x"],
                *(result[swap(15, a, b)] for a, b in permutations(range(15), 2)),
            ],
            key=lambda permutation: gain[np.arange(15), permutation].sum(),
        )
        np.testing.assert_array_equal(best, result)


def swap(size: int, a: int, b: int) -> np.ndarray:
    permutation = np.arange(size)
    permutation[[a, b]] = permutation[[b, a]]
    return permutation


def test_tensors_that_are_almost_zero_in_the_frame_are_ignored() -> None:
    graph, network = perceptron()
    network["0.bias"] = np.full(40, 1e-9) * RNG(0).standard_normal(40)  # as a class token before the first round
    network["2.bias"] = np.zeros(30)
    update = shaken(network, 0.05, RNG(1))
    update["0.bias"], update["2.bias"] = RNG(2).standard_normal(40), RNG(3).standard_normal(30)
    assert nothing_moved(Frame(graph, network).align(update), update)
    planted = {label: axis.random_permutation(RNG(4)) for label, axis in graph.axes.items()}
    result = Frame(graph, network).align(graph.permute(update, planted))
    for label, permutation in result.permutations.items():
        np.testing.assert_array_equal(planted[label][permutation], np.arange(len(permutation)))
    assert result.permutations.keys() == planted.keys()


@pytest.mark.parametrize(
    ("update", "message"),
    [({"w": np.zeros((4, 3))}, r"w: expected the frame's shape \(3, 4\)"), ({"z": np.zeros(3)}, "z: the frame has no")],
)
def test_an_update_of_another_network_is_refused(update: Network, message: str) -> None:
    frame = Frame(AxisGraph({"w": (None, ("x", None))}, {"x": Axis(3)}), {"w": np.ones((3, 4))})
    with pytest.raises(AxisError, match=message):
        frame.align(update)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numbers_whose_squares_overflow_are_ignored(dtype: Any) -> None:
    graph, network = perceptron()
    frame = {name: values.astype(dtype) for name, values in network.items()}
    name = next(iter(graph.tensors))
    largest = float(np.finfo(dtype).max) / 4
    for place in (frame, update := {key: values.copy() for key, values in frame.items()}):
        place[name] = np.full_like(place[name], largest)
    result = Frame(graph, frame).align(update)
    assert not result.permutations and all(result.tensors[key] is update[key] for key in update)
