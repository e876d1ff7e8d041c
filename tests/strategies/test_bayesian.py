"""Whole rounds of Bayesian matching: planted orders are undone, and precision counts weight by weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, RecordDict

from helpers.bayesian import (
    PARTS_OF,
    Answer,
    frame,
    merged,
    metrics_of,
    orders,
    own,
    precision_of,
    record,
    sites,
)
from helpers.planted import RNG, Network, chain, difference
from helpers.rounds import SITES, drift, one_round, same, tensors_of, update
from mtfed.strategies import BayesianMatching, TaskFedAvg, wire
from mtfed.strategies.axes import AxisError
from mtfed.strategies.frame import Frame
from mtfed.strategies.precision import write_precision


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("measuring", ["abc", "ac", ""])
@pytest.mark.parametrize("moved", ["a", "bc", "abc"])
def test_planted_orders_do_not_change_the_merge(moved: str, measuring: str, packed: bool) -> None:
    straight, _ = merged(sites(packed, "", measuring), packed)
    got, metrics = merged(sites(packed, moved, measuring), packed)
    assert same(got, straight)
    unmatched, _, _ = one_round(BayesianMatching(), sites(packed, moved, measuring), arrays=record(frame()[1], packed))
    assert not same(unmatched, straight)
    for label in frame()[0].axes:
        part = {"kind": "x", "lungs": "y"}.get(label.split(".")[1] if label.startswith("decoders.") else "")
        holders = [key for key in SITES if part is None or part in SITES[key]]
        shares = [(orders(key, frame()[0])[label] != np.arange(frame()[0].axes[label].size)).mean() if key in moved
                  else 0.0 for key in holders]  # fmt: skip
        assert metrics[f"merge.moved.{label}"] == pytest.approx(np.mean(shares)), label


def test_packed_and_plain_records_give_the_same() -> None:
    def floats(packed: bool) -> Answer:  # codes are relative to the largest value of their array
        def answer(key: str, message: Message) -> RecordDict:
            content = sites(packed, "bc", "")(key, message)
            graph, network = frame()
            precision = graph.permute(precision_of(key, network), orders(key, graph) if key in "bc" else {})
            content["precision"] = record(precision, packed, PARTS_OF[key])
            content["precision"].pop(wire.MANIFEST, None)
            return content

        return answer

    packed, plain = (tensors_of(merged(floats(form), form)[0]) for form in (True, False))
    assert packed.keys() == plain.keys() and all(np.array_equal(packed[name], plain[name]) for name in packed)
    # Without precision, a decoder of a packed record counts by its task's samples; a plain record has no parts.
    packed, plain = (tensors_of(merged(sites(form, "bc", ""), form)[0]) for form in (True, False))
    assert all(np.array_equal(packed[name], plain[name]) for name in packed if name.startswith("encoder."))


@pytest.mark.parametrize("start", ["common", "apart"])
def test_the_result_does_not_depend_on_arrival(start: str) -> None:
    first, metrics = merged(sites(True, "ac"), order=1, start=start)
    second, again = merged(sites(True, "ac"), order=-1, start=start)
    assert same(first, second) and dict(metrics) == dict(again)


# A diagonal does not turn with a basis, so where one is planted the sites only count.
@pytest.mark.parametrize(("gauge", "measuring"), [("none", "abc"), ("none", ""), ("orth", ""), ("gl", "")])
def test_models_trained_apart_are_aligned(gauge: Any, measuring: str) -> None:
    graph, network = frame()
    straight = tensors_of(one_round(BayesianMatching(), sites(True, "", measuring), arrays=record(network, True))[0])
    strategy = BayesianMatching(graph, start="apart", inner=gauge)
    unrelated = {name: RNG(1).standard_normal(value.shape).astype("f") for name, value in network.items()}
    got, metrics, _ = one_round(strategy, sites(True, "abc", measuring, gauge), arrays=record(unrelated, True))
    aligned = Frame(graph, network, gauge=gauge).align(tensors_of(got)).tensors
    assert difference([aligned], [straight]) < (1e-5 if gauge == "none" else 0.1)
    assert all(np.isfinite(value) for value in metrics.values()) and "merge.distance" not in metrics
    assert any(metrics[f"merge.moved.{label}"] > 0 for label in graph.axes)
    # The second round starts from what the first one left, and is matched site by site.
    got, metrics, _ = one_round(strategy, sites(True), arrays=got, number=2)
    assert "merge.distance" in metrics


def test_convolutions_with_batch_norm() -> None:
    graph, network = chain()
    network = {name: value.astype("f") for name, value in network.items()}

    def whole(tensors: Network) -> ArrayRecord:
        arrays = ArrayRecord()
        for name, value in tensors.items():
            arrays[name] = wire.FlatArray(value)
        return arrays

    def answer(moved: str) -> Answer:
        def reply(key: str, message: Message) -> RecordDict:
            values, precision = own(key, network), precision_of(key, network)
            if key in moved:
                values, precision = (graph.permute(net, orders(key, graph)) for net in (values, precision))
            return RecordDict(
                {"arrays": whole(values), "metrics": metrics_of(key), "precision": write_precision(precision)}
            )

        return reply

    results = []
    for moved in ("", "b", "abc"):
        results.append(one_round(BayesianMatching(graph), answer(moved), arrays=whole(network))[0])
        assert not any(value.numpy().min() < 0 for key, value in results[-1].items() if key.endswith("running_var"))
    assert same(results[0], results[1]) and same(results[0], results[2])


@pytest.mark.parametrize("start", ["common", "apart"])
def test_an_engine_may_reuse_the_memory_of_a_reply(start: str) -> None:
    given: list[np.ndarray] = []

    def reusing(key: str, message: Message) -> RecordDict:
        for buffer in given:  # the previous reply
            buffer.fill(0)
        content = sites(True, "ab")(key, message)
        for name in ("arrays", "precision"):
            reused = ArrayRecord()
            for entry, array in content[name].items():
                given.append(array.numpy().copy())
                reused[entry] = wire.FlatArray(given[-1])
            content[name] = reused
        return content

    expected, _ = merged(sites(True, "ab"), start=start)
    got, _ = merged(reusing, start=start)
    assert same(got, expected)


@pytest.mark.parametrize("gauge", ["none", "orth", "gl"])
def test_a_site_with_huge_weights_does_not_end_the_round(gauge: Any) -> None:
    graph, network = frame()

    def answer(key: str, message: Message) -> RecordDict:
        content = sites(True, "", "")(key, message)
        for name, array in content["arrays"].items() if key == "b" else ():
            if name.endswith("float32"):
                content["arrays"][name] = wire.FlatArray(np.full(array.shape, 9e9, "f"))
        return content

    strategy = BayesianMatching(graph, start="apart", inner=gauge)
    got, _, _ = one_round(strategy, answer, arrays=record(network, True))
    assert not strategy.failures and all(np.isfinite(values).all() for values in tensors_of(got).values())


def test_sites_are_asked_for_the_precision_that_the_strategy_uses() -> None:
    for precision in ("fisher", "none"):
        asked = {}
        one_round(
            BayesianMatching(precision=precision),
            lambda key, message, asked=asked: (
                asked.update({key: message.content["config"]}) or sites(True)(key, message)
            ),
            arrays=record(frame()[1], True),
        )
        assert {config["precision"] for config in asked.values()} == {precision} and len(asked) == 3


def test_axes_of_another_model_are_refused() -> None:
    graph, network = frame()
    name = next(name for name in network if name.endswith("mlp.fc1.weight"))
    smaller = network | {name: network[name][:-1]}
    with pytest.raises(AxisError, match="fc1"):
        one_round(BayesianMatching(graph), drift, arrays=record(smaller, True))
    twice = wire.pack({"encoder": {name: network[name]}, "decoder.x": {name: network[name]}})
    with pytest.raises(AxisError, match="2 parts contain a tensor of this name"):
        one_round(BayesianMatching(graph), drift, arrays=twice)


@pytest.mark.parametrize("name", ["samples", "uniform", "tasks"])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_without_axes_and_precision_it_is_fedavg_bit_for_bit(name: str, floor: float) -> None:
    def in_parts(key: str, message: Message) -> RecordDict:
        content = update(key, message)
        if key == "c":  # leaves a part out
            content["arrays"] = wire.select(content["arrays"], ["encoder", "decoder.y"])
        return content

    for answer in (update, in_parts):
        strategy = BayesianMatching(weighting=name, precision_floor=floor)
        expected, metrics, _ = one_round(TaskFedAvg(weighting=name), answer)
        got, got_metrics, _ = one_round(strategy, answer)
        assert same(got, expected) and metrics.items() <= got_metrics.items()
        assert all(key in metrics or key.startswith("merge.") for key in got_metrics)
