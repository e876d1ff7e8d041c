"""Whole rounds of Bayesian matching: planted orders come back, and what a site tells counts weight by weight."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from helpers.planted import RNG, Network, chain, difference, multitask, shaken
from helpers.rounds import SITES, Sites, drift, normed, one_round, same, tensors_of
from mtfed.strategies import BayesianMatching, GrowingMatching, Pfnm, TaskFedAvg, wire
from mtfed.strategies.axes import AxisError, AxisGraph
from mtfed.strategies.frame import Frame
from mtfed.strategies.precision import write_precision

from mtfed.record.run import Run

PREFIXES = {"encoder": ("encoder.",), "decoder.x": ("decoders.kind.", "balance.kind"),
            "decoder.y": ("decoders.lungs.", "balance.lungs")}  # fmt: skip
HOLDS = {key: ["encoder", *(f"decoder.{task}" for task in tasks)] for key, tasks in SITES.items()}
Answer = Callable[[str, Message], RecordDict]


@cache
def frame() -> tuple[AxisGraph, Network]:
    """Return the axes of a small multi-task vision transformer, and its weights in single precision."""
    graph, network = multitask()
    return graph, {name: values.astype("f") for name, values in network.items()}


def record(network: Network, packed: bool, parts: Sequence[str] = tuple(PREFIXES)) -> ArrayRecord:
    held = {part: {n: v for n, v in network.items() if n.startswith(PREFIXES[part])} for part in parts}
    if packed:
        return wire.pack(held)
    plain = ArrayRecord()
    for tensors in held.values():
        for name, value in tensors.items():
            plain[name] = wire.FlatArray(value)
    return plain


def orders(key: str, graph: AxisGraph) -> dict[str, np.ndarray]:
    generator = RNG([*key.encode(), 7])
    return {label: axis.random_permutation(generator) for label, axis in graph.axes.items()}


def own(key: str, network: Network, noise: float = 0.05) -> Network:
    generator = RNG(list(key.encode()))
    return {name: value.astype("f") for name, value in shaken(network, noise, generator).items()}


def surely(key: str, network: Network) -> Network:
    generator = RNG([*key.encode(), 3])
    return {name: generator.exponential(5.0, value.shape).astype("f") for name, value in network.items()}


def metrics_of(key: str) -> MetricRecord:
    counts = {f"num-examples.{task}": n for task, n in SITES[key].items()}
    return MetricRecord({"num-examples": sum(SITES[key].values()), **counts})


def sites(packed: bool, moved: str = "", precise: str = "abc", gauge: Any = "none", noise: float = 0.05) -> Answer:
    """Return sites that drifted from the frame; those in ``moved`` have all their units in other orders."""

    def answer(key: str, message: Message) -> RecordDict:
        graph, network = frame()
        values, said = own(key, network, noise), surely(key, network)
        if key in moved:
            values, said = (graph.permute(tensors, orders(key, graph)) for tensors in (values, said))
            for label in graph.axes:
                turns = graph.random_gauge(values, label, gauge, RNG([*key.encode(), 5]))
                values = {n: v.astype("f") for n, v in graph.regauge(values, label, turns).items()}
        content = RecordDict({"arrays": record(values, packed, HOLDS[key]), "metrics": metrics_of(key)})
        if packed:
            content["arrays"][wire.MANIFEST] = message.content["arrays"][wire.MANIFEST]
        if key in precise:
            arrays = record(said, packed, HOLDS[key])
            content["precision"] = write_precision({k: a.numpy() for k, a in arrays.items() if k != wire.MANIFEST})
        return content

    return answer


def merged(answer: Answer, packed: bool = True, order: int = 1, **settings: Any) -> tuple[ArrayRecord, MetricRecord]:
    strategy = BayesianMatching(frame()[0], **settings)
    got, metrics, _ = one_round(strategy, answer, order, record(frame()[1], packed))
    assert not strategy.failures
    return got, metrics


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("precise", ["abc", "ac", ""])
@pytest.mark.parametrize("moved", ["a", "bc", "abc"])
def test_planted_orders_leave_the_merge_as_it_is(moved: str, precise: str, packed: bool) -> None:
    straight, _ = merged(sites(packed, "", precise), packed)
    got, metrics = merged(sites(packed, moved, precise), packed)
    assert same(got, straight)
    unmatched, _, _ = one_round(BayesianMatching(), sites(packed, moved, precise), arrays=record(frame()[1], packed))
    assert not same(unmatched, straight)
    for label in frame()[0].axes:
        part = {"kind": "x", "lungs": "y"}.get(label.split(".")[1] if label.startswith("decoders.") else "")
        holders = [key for key in SITES if part is None or part in SITES[key]]
        shares = [(orders(key, frame()[0])[label] != np.arange(frame()[0].axes[label].size)).mean() if key in moved
                  else 0.0 for key in holders]  # fmt: skip
        assert metrics[f"merge.moved.{label}"] == pytest.approx(np.mean(shares)), label


def test_packed_and_plain_give_the_same() -> None:
    def floats(packed: bool) -> Answer:  # codes are relative to the largest value of their array
        def tell(key: str, message: Message) -> RecordDict:
            content = sites(packed, "bc", "")(key, message)
            said = frame()[0].permute(surely(key, frame()[1]), orders(key, frame()[0]) if key in "bc" else {})
            content["precision"] = record(said, packed, HOLDS[key])
            content["precision"].pop(wire.MANIFEST, None)
            return content

        return tell

    packed, plain = (tensors_of(merged(floats(kind), kind)[0]) for kind in (True, False))
    assert packed.keys() == plain.keys() and all(np.array_equal(packed[name], plain[name]) for name in packed)
    # Without precision, a decoder of a packed record counts by its task's samples; a plain record has no parts.
    packed, plain = (tensors_of(merged(sites(kind, "bc", ""), kind)[0]) for kind in (True, False))
    assert all(np.array_equal(packed[name], plain[name]) for name in packed if name.startswith("encoder."))


@pytest.mark.parametrize("start", ["common", "apart"])
def test_arrival_does_not_matter(start: str) -> None:
    first, told = merged(sites(True, "ac"), order=1, start=start)
    second, again = merged(sites(True, "ac"), order=-1, start=start)
    assert same(first, second) and dict(told) == dict(again)


# A diagonal does not turn with a basis, so where one is planted the sites only count.
@pytest.mark.parametrize(("gauge", "precise"), [("none", "abc"), ("none", ""), ("orth", ""), ("gl", "")])
def test_models_trained_apart_come_together(gauge: Any, precise: str) -> None:
    graph, network = frame()
    straight = tensors_of(one_round(BayesianMatching(), sites(True, "", precise), arrays=record(network, True))[0])
    strategy = BayesianMatching(graph, start="apart", inner=gauge)
    elsewhere = {name: RNG(1).standard_normal(value.shape).astype("f") for name, value in network.items()}
    got, metrics, _ = one_round(strategy, sites(True, "abc", precise, gauge), arrays=record(elsewhere, True))
    found = Frame(graph, network, gauge=gauge).align(tensors_of(got)).tensors
    assert difference([found], [straight]) < (1e-5 if gauge == "none" else 0.1)
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
        def tell(key: str, message: Message) -> RecordDict:
            values, said = own(key, network), surely(key, network)
            if key in moved:
                values, said = (graph.permute(tensors, orders(key, graph)) for tensors in (values, said))
            return RecordDict({"arrays": whole(values), "metrics": metrics_of(key), "precision": write_precision(said)})

        return tell

    results = []
    for moved in ("", "b", "abc"):
        results.append(one_round(BayesianMatching(graph), answer(moved), arrays=whole(network))[0])
        assert not any(value.numpy().min() < 0 for key, value in results[-1].items() if key.endswith("running_var"))
    assert same(results[0], results[1]) and same(results[0], results[2])


@pytest.mark.parametrize("start", ["common", "apart"])
def test_an_engine_may_take_a_replys_memory_back(start: str) -> None:
    given: list[np.ndarray] = []

    def reusing(key: str, message: Message) -> RecordDict:
        for buffer in given:  # the reply before is done with
            buffer.fill(0)
        content = sites(True, "ab")(key, message)
        for name in ("arrays", "precision"):
            lent = ArrayRecord()
            for entry, array in content[name].items():
                given.append(array.numpy().copy())
                lent[entry] = wire.FlatArray(given[-1])
            content[name] = lent
        return content

    expected, _ = merged(sites(True, "ab"), start=start)
    got, _ = merged(reusing, start=start)
    assert same(got, expected)


def drifting(key: str, message: Message) -> RecordDict:
    """Return what a site was sent, its units in another order, plus steps and a precision of this round."""
    number, sent = message.content["config"]["server-round"], message.content["arrays"]
    generator, arrays = RNG([*key.encode(), number]), ArrayRecord()
    for name, array in sorted(sent.items()):
        step = generator.normal(scale=0.02, size=array.numpy().shape) if array.numpy().dtype.kind == "f" else 0
        arrays[name] = wire.FlatArray((array.numpy() + step).astype(array.dtype))
    moved = frame()[0].permute(tensors_of(arrays), orders(key, frame()[0]) if number % 2 else {})
    parts = {part: {n: v for n, v in moved.items() if n.startswith(PREFIXES[part])} for part in HOLDS[key]}
    arrays = wire.repack(sent, parts)
    said = {k: generator.exponential(1.0, a.numpy().shape).astype("f") for k, a in arrays.items() if ":" in k}
    return RecordDict({"arrays": arrays, "metrics": metrics_of(key), "precision": write_precision(said)})


@pytest.mark.parametrize("settings", [{}, {"prior_strength": 0.5}, {"prior_strength": 1.0, "start": "apart"}])
def test_a_resumed_run_is_bit_equal(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    run, initial = Run(tmp_path), record(frame()[1], True)
    straight, resumed = (BayesianMatching(frame()[0], **settings) for _ in range(2))
    arrays, _, _ = one_round(straight, drifting, arrays=initial, number=1)
    run.save("last", arrays, straight.state(), {})
    saved = run.load("last", initial)
    assert saved is not None
    again, state, _ = saved
    resumed.roster.refresh(Sites(drifting))
    resumed.restore(state)
    for number in (2, 3):
        arrays, told, _ = one_round(straight, drifting, arrays=arrays, number=number)
        again, retold, _ = one_round(resumed, drifting, arrays=again, number=number)
        assert same(arrays, again) and dict(told) == dict(retold)
    assert straight.posterior.keys() == resumed.posterior.keys() == {k for k in initial if k != wire.MANIFEST}
    for key, precision in straight.posterior.items():
        assert precision.shape == initial[key].numpy().shape
        np.testing.assert_array_equal(precision, resumed.posterior[key])


def test_the_prior_slows_the_model_down() -> None:
    def moved(strength: float) -> float:
        strategy = BayesianMatching(prior_strength=strength)
        arrays, _, _ = one_round(strategy, sites(True), arrays=record(frame()[1], True))
        after, _, _ = one_round(strategy, drifting, arrays=arrays, number=2)
        return float(np.abs(after["encoder:float32"].numpy() - arrays["encoder:float32"].numpy()).mean())

    assert moved(1.0) < 0.9 * moved(0.3) < 0.9 * moved(0.0)
    counting = BayesianMatching(prior_strength=1.0, precision="none")  # its posterior is one number an array
    first, _, _ = one_round(counting, sites(True, precise=""), arrays=record(frame()[1], True))
    second, _, _ = one_round(counting, sites(True, precise="", noise=0.2), arrays=first, number=2)
    plain, _, _ = one_round(TaskFedAvg(), sites(True, precise="", noise=0.2), arrays=first, number=2)
    key = "encoder:float32"
    mean = (first[key].numpy().astype(float) + plain[key].numpy()) / 2
    np.testing.assert_allclose(second[key].numpy(), mean, rtol=1e-5, atol=1e-6)


def test_samples_have_the_posteriors_mean_and_spread() -> None:
    arrays = normed(True)
    strategy = BayesianMatching()
    key = "encoder:float32"
    values = arrays[key].numpy()
    precision = np.where(np.arange(values.size) % 5, RNG(0).uniform(4, 400, values.size), 0.0).astype("f")
    strategy.posterior, strategy.measured_keys = {key: precision, "decoder.y:float32": np.array(25.0, "f")}, {key}
    for temperature in (1.0, 0.25):
        draws = [strategy.sample(arrays, seed, temperature) for seed in range(400)]
        drawn = np.stack([draw[key].numpy() for draw in draws])
        statistics = np.zeros(values.size, bool)
        for tensor in wire.tensors_in(arrays)[key]:
            statistics[tensor.place] = "running" in tensor.name
        still = statistics | (precision == 0)
        assert np.array_equal(drawn[:, still], np.broadcast_to(values[still], (400, still.sum()))) and still.sum() > 5
        spread = np.sqrt(temperature / precision[~still])
        np.testing.assert_allclose(drawn[:, ~still].mean(0), values[~still], atol=5 * spread.max() / 20)
        np.testing.assert_allclose(drawn[:, ~still].std(0), spread, rtol=0.2)
        for name in arrays.keys() - {key}:  # of decoder.y sites told no more than their samples
            assert draws[0][name] is arrays[name]
    assert same(strategy.sample(arrays, 3), strategy.sample(arrays, 3))
    assert drawn.dtype == values.dtype
    with pytest.raises(ValueError, match="Expected a temperature of 0 or more, got -1"):
        strategy.sample(arrays, 3, temperature=-1)


@pytest.mark.parametrize("prior", [0.0, 0.5])
@pytest.mark.parametrize("kind", [BayesianMatching, GrowingMatching, Pfnm])
def test_what_counts_by_samples_is_not_drawn(kind: type[BayesianMatching], prior: float) -> None:
    plain, tells = ArrayRecord(), False
    for name, values in {"w": np.ones((4, 4), "f"), "scale": np.array(1.0, "f")}.items():
        plain[name] = wire.FlatArray(values)

    def answer(key: str, message: Message) -> RecordDict:
        content = drift(key, message)
        if tells:
            content["precision"] = write_precision({"w": np.full((4, 4), 9.0)})
        return content

    strategy = kind() if kind is Pfnm else kind(prior_strength=prior)
    for number, tells in enumerate((False, True, False), start=1):
        plain, _, _ = one_round(strategy, answer, arrays=plain, number=number)
        drawn = strategy.sample(plain, 0)
        assert same(drawn, plain) == (kind is Pfnm or not (tells or (prior and number == 3)))
        assert drawn["scale"] is plain["scale"]
        again = kind()
        again.restore(strategy.state())
        assert same(again.sample(plain, 0), drawn)


@pytest.mark.parametrize("gauge", ["none", "orth", "gl"])
def test_a_site_of_huge_weights_ends_no_round(gauge: Any) -> None:
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


def test_metrics_tell_distances_and_shares() -> None:
    _, metrics = merged(sites(True, "ac"))
    assert 0 < metrics["merge.distance"] < metrics["merge.distance-before"]
    assert metrics["merge.distance"] == pytest.approx(0.05**2, rel=0.1)
    for part, holders in (("encoder", "abc"), ("decoder.x", "ac"), ("decoder.y", "bc")):
        shares = {key: metrics[f"merge.share.{part}.{key}"] for key in holders}
        assert sum(shares.values()) == pytest.approx(1)
        assert all(share == pytest.approx(1 / len(holders), rel=0.1) for share in shares.values())
    # A site that only counts is as sure a sample as the others: b has 3 of 58 samples.
    _, metrics = merged(sites(True, precise="ac"))
    assert metrics["merge.share.encoder.b"] == pytest.approx(3 / 58, rel=1e-5)
    _, metrics = merged(sites(True, precise=""))
    assert metrics["merge.share.decoder.y.c"] == pytest.approx(40 / 43)


def test_sites_are_asked_for_what_the_strategy_reads() -> None:
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


def test_summary_says_how_it_matches() -> None:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda entry: lines.append(entry.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("flwr")
    log.addHandler(handler)
    try:
        BayesianMatching(frame()[0], prior_strength=0.5).summary()
        BayesianMatching().summary()
    finally:
        log.removeHandler(handler)
    told = "\n".join(lines)
    assert f"Matching: {len(frame()[0].axes)} axes, start common, gate 0.001" in told
    assert "Precision: fisher, floor 0.2, prior 0.5" in told and "Matching: 0 axes" in told and "Failures: skip" in told


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"precision_floor": -0.1}, "Expected precision_floor to be a finite number of at least 0, got -0.1"),
        ({"precision_floor": float("nan")}, "Expected precision_floor to be a finite number of at least 0, got nan"),
        ({"precision_floor": float("inf")}, "Expected precision_floor to be a finite number of at least 0, got inf"),
        (
            {"prior_strength": 1.1},
            "Expected prior_strength to be a finite number of at least 0 and of at most 1, got 1.1",
        ),
        ({"gate": -1e-9}, "Expected gate to be a finite number of at least 0, got -1e-09"),
        ({"start": "appart"}, "Expected start to be one of common, apart, got 'appart'"),
        ({"inner": "GL"}, "Expected inner to be one of none, orth, gl, got 'GL'"),
        ({"precision": "fischer"}, "Expected precision to be one of fisher, none, got 'fischer'"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        BayesianMatching(**settings)


def test_axes_of_another_model() -> None:
    graph, network = frame()
    name = next(name for name in network if name.endswith("mlp.fc1.weight"))
    smaller = network | {name: network[name][:-1]}
    with pytest.raises(AxisError, match="fc1"):
        one_round(BayesianMatching(graph), drift, arrays=record(smaller, True))
    twice = wire.pack({"encoder": {name: network[name]}, "decoder.x": {name: network[name]}})
    with pytest.raises(AxisError, match="2 parts contain a tensor of this name"):
        one_round(BayesianMatching(graph), drift, arrays=twice)
