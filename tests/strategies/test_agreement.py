"""The agreement of the tasks: against a slow reference, and in a round of every strategy."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict

from helpers.bayesian import PARTS_OF, PREFIXES, drifting, frame, orders, record
from helpers.planted import RNG
from helpers.rounds import SITES, drift, one_round, tensors_of
from mtfed.strategies import STRATEGIES, BayesianMatching, GrowingMatching, Rebasin, TaskFedAvg, wire
from mtfed.strategies.agreement import Agreement, Figures, split_weight
from mtfed.strategies.shared_sample import layer_of

SHAPES = {
    "encoder": {"encoder.body.blocks.0.w": (5, 4), "encoder.body.blocks.0.b": (5,), "encoder.body.norm.w": (7,)},
    "input.ct": {"input.ct.w": (6,)},
    "decoder.x": {"x.w": (3,)},
}
Steps = dict[str, dict[str, np.ndarray]]  # part -> tensor -> update
Site = tuple[dict[str, float], Steps]  # weight by task, update


def random_parts(generator: np.random.Generator, shapes: dict[str, dict[str, tuple[int, ...]]] = SHAPES) -> Steps:
    return {p: {n: generator.standard_normal(shape) for n, shape in own.items()} for p, own in shapes.items()}


def figures(sites: list[Site], precision: Steps | None = None) -> Figures:
    """Return the agreement of updates from random weights, and of what is known of the precision."""
    start = random_parts(np.random.default_rng(0))
    arrays = wire.pack(start)
    agreement = Agreement(arrays)
    for weights, steps in sites:
        trained = {part: {n: start[part][n] + step for n, step in own.items()} for part, own in steps.items()}
        agreement.add(weights, wire.arrays_in(wire.pack(trained)), arrays)
    return agreement.finish(wire.arrays_in(wire.pack(precision)) if precision else {})[precision is not None]


def reference(sites: list[Site], precision: Steps | None = None) -> Figures:
    """Compute the cosines in double precision, from whole updates."""

    def summed(task: str, other: str, part: str, name: str) -> np.ndarray:
        groups: dict[frozenset[str], list[Site]] = {}
        for weights, steps in sites:
            if task in weights and other not in weights:
                groups.setdefault(frozenset(weights), []).append((weights, steps))
        total = np.zeros(SHAPES[part][name])
        for members in groups.values():
            whole = sum(sum(weights.values()) for weights, _ in members)
            share = sum(weights[task] for weights, _ in members) / whole
            for weights, steps in members:
                if part in steps:
                    total += share * sum(weights.values()) * steps[part][name]
        return total

    expected: Figures = {}
    for a, b in combinations(sorted({task for weights, _ in sites for task in weights}), 2):
        sums: dict[str, np.ndarray] = {}
        for part in ("encoder", "input.ct"):
            layers: dict[str, np.ndarray] = {}
            for name in SHAPES[part]:
                metric = precision[part][name] if precision else 1.0
                u, v = summed(a, b, part, name), summed(b, a, part, name)
                layer = part if part != "encoder" else layer_of(name)
                inner = np.array([(metric * left * right).sum() for left, right in ((u, v), (u, u), (v, v))])
                layers[layer] = layers.get(layer, 0) + inner
            layers = {layer: inner for layer, inner in layers.items() if inner[1] and inner[2]}
            for layer, inner in layers.items():
                for name in {"all", part, layer}:
                    sums[name] = sums.get(name, 0) + inner
        if sums:
            expected[f"{a}, {b}"] = {n: uv / np.sqrt(uu * vv) for n, (uv, uu, vv) in sums.items()}
    return expected


def assert_close(got: Figures, expected: Figures) -> None:
    assert got.keys() == expected.keys()
    for pair, own in expected.items():
        assert got[pair] == pytest.approx(own, abs=6e-5), pair
        assert next(iter(got[pair])) == "all"


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("tasks", ["x y", "x y xy", "x x y xz yz z xyz", "xy yz zx", "xy xy", "x", "xyz x yw w"])
def test_cosines_equal_a_slow_reference(tasks: str, weighted: bool) -> None:
    generator, sites = np.random.default_rng(len(tasks)), []
    for own in tasks.split():
        steps = random_parts(generator)
        if generator.random() < 0.4:
            del steps["input.ct"]
        sites.append(({task: float(generator.integers(1, 50)) for task in own}, steps))
    precision = None
    if weighted:
        precision = {part: {n: v**2 for n, v in own.items()} for part, own in random_parts(generator).items()}
    expected = reference(sites, precision)
    assert_close(figures(sites, precision), expected)
    exclusive = {(t, o) for own in tasks.split() for t in own for o in set(tasks) - {" ", *own}}
    assert list(expected) == [f"{a}, {b}" for a, b in sorted(exclusive) if a < b and (b, a) in exclusive]


def shared_step(values: Any) -> Steps:
    return {"encoder": {name: np.broadcast_to(values, shape) for name, shape in SHAPES["encoder"].items()}}


@pytest.mark.parametrize(("kind", "cosine"), [("same", 1.0), ("opposite", -1.0), ("orthogonal", 0.0)])
@pytest.mark.parametrize("with_both", [False, True])
def test_same_opposite_and_orthogonal_updates(kind: str, cosine: float, with_both: bool) -> None:
    """A hospital with both tasks changes nothing: it would agree with itself."""
    step = random_parts(np.random.default_rng(1), {"encoder": SHAPES["encoder"]})
    signs = {"same": 1.0, "opposite": -1.0}
    other = {name: signs.get(kind, 0.0) * value for name, value in step["encoder"].items()}
    if kind == "orthogonal":
        for name, value in step["encoder"].items():
            flat = np.random.default_rng(2).standard_normal(value.size)
            own = value.reshape(-1)
            other[name] = (flat - own * (flat @ own) / (own @ own)).reshape(value.shape)
    sites: list[Site] = [({"x": 3.0}, step), ({"y": 50.0}, {"encoder": other})]
    if with_both:
        sites.append(({"x": 9.0, "y": 5.0}, random_parts(np.random.default_rng(3))))
    (got,) = figures(sites).values()
    assert got == pytest.approx(dict.fromkeys(got, cosine), abs=1e-4)
    assert list(got) == ["all", "encoder", "encoder.body.blocks.0", "encoder.body.norm"]


def test_precision_is_the_metric() -> None:
    """The two tasks pull the norm apart and agree elsewhere; the weights of the norm are those that matter."""
    norm = "encoder.body.norm.w"
    opposed: Steps = {"encoder": {name: -v if name == norm else v for name, v in shared_step(1.0)["encoder"].items()}}
    sites: list[Site] = [({"x": 1.0}, shared_step(1.0)), ({"y": 1.0}, opposed)]
    precision = random_parts(np.random.default_rng(0))
    for part, own in precision.items():
        precision[part] = {name: np.full(v.shape, 1e3 if name == norm else 1e-3) for name, v in own.items()}
    assert figures(sites)["x, y"]["all"] == pytest.approx((25 - 7) / 32, abs=1e-4)
    assert figures(sites, precision)["x, y"]["all"] == pytest.approx(-1, abs=1e-4)


def one_by_one(message: Message, key: str) -> dict[str, np.ndarray]:
    trained, sent = tensors_of(drift(key, message)["arrays"]), tensors_of(message.content["arrays"])
    return {name: trained[name].astype(float) - sent[name] for name in ("w", "scalar")}


@pytest.mark.parametrize("name", list(STRATEGIES))
@pytest.mark.parametrize("packed", [True, False])
def test_every_strategy_that_merges_measures_the_agreement(name: str, packed: bool) -> None:
    if packed and name == "growing":
        pytest.skip("two parts have a tensor of the same name")
    strategy, sent = STRATEGIES[name](), {}

    def answer(key: str, message: Message) -> RecordDict:
        sent[key] = message
        content = drift(key, message)
        if packed:  # a site returns the decoders of its tasks only
            content["arrays"] = wire.select(content["arrays"], ["encoder", *(f"decoder.{t}" for t in SITES[key])])
        return content

    arrays = None
    if not packed:
        arrays = wire.record_of({"w": np.ones((3, 4), "f"), "scalar": np.float32(1), "seen": np.array(7)})
    merged = None
    for number in (1, 2):
        merged, metrics, _ = one_round(strategy, answer, 1, merged or arrays, number)
        got = strategy.train_result.agreement
        if not strategy.is_federated:
            assert got == strategy.train_result.weighted_agreement == {}
            continue
        x, y = (one_by_one(sent[key], key) for key in "ab")  # c has both tasks
        inner, squares, others = (
            {n: (left[n] * right[n]).sum() for n in x} for left, right in ((x, y), (x, x), (y, y))
        )
        cosine = {n: inner[n] / np.sqrt(squares[n] * others[n]) for n in x}
        both = sum(inner.values()) / np.sqrt(sum(squares.values()) * sum(others.values()))
        prefix = "encoder." if packed else ""
        expected = {"all": both, prefix + "w": cosine["w"], prefix + "scalar": cosine["scalar"]}
        expected |= {"encoder": both} if packed else {}
        assert got["x, y"] == pytest.approx(expected, abs=1e-3) and len(got) == 1
        assert not any("agreement" in name for name in metrics)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("strategy", [BayesianMatching, Rebasin, GrowingMatching])
def test_updates_are_compared_in_the_global_order_of_units(strategy: type[BayesianMatching], order: int) -> None:
    """Sites a and b take opposite steps, and their units are in other orders."""
    graph, network = frame()
    steps = {name: RNG(3).normal(scale=0.002, size=values.shape) for name, values in network.items()}

    def answer(key: str, message: Message) -> RecordDict:
        sign = -1 if key == "b" else 1
        trained = {name: (network[name] + sign * step).astype("f") for name, step in steps.items()}
        content = drifting(key, message)
        permuted = graph.permute(trained, orders(key, graph))
        parts = {part: {n: v for n, v in permuted.items() if n.startswith(PREFIXES[part])} for part in PARTS_OF[key]}
        content["arrays"] = wire.repack(message.content["arrays"], parts)
        return content

    own = strategy(axes=graph, **({"width_cap": 1.0} if strategy is GrowingMatching else {}))  # no new units
    one_round(own, answer, order, record(network, True))
    got, weighted = own.train_result.agreement["x, y"], own.train_result.weighted_agreement
    assert len(got) == 9 and got == pytest.approx(dict.fromkeys(got, -1.0), abs=0.02)
    assert bool(weighted) == (strategy is not Rebasin)  # which ignores precision
    if weighted:
        assert weighted["x, y"] == pytest.approx(dict.fromkeys(got, -1.0), abs=0.02)


def test_models_that_were_trained_apart_have_no_updates() -> None:
    graph, network = frame()
    for strategy in (BayesianMatching(graph, start="apart"), GrowingMatching(graph, start="apart")):
        merged, _, _ = one_round(strategy, drifting, 1, record(network, True), 1)
        assert not strategy.train_result.agreement
        one_round(strategy, drifting, 1, merged, 2)
        assert strategy.train_result.agreement


def test_fewer_than_two_tasks_have_no_agreement() -> None:
    def without_counts(key: str, message: Message) -> RecordDict:
        content = drift(key, message)
        content["metrics"] = MetricRecord({"num-examples": content["metrics"]["num-examples"]})
        return content

    strategy = TaskFedAvg()
    one_round(strategy, without_counts)
    assert strategy.train_result.agreement == {}
    one_round(strategy, drift, 1, None, 2, tasks=["x"])
    assert not strategy.train_result.weighted_agreement


def test_sites_with_all_tasks_are_not_read() -> None:
    arrays = wire.pack(random_parts(np.random.default_rng(0)))
    agreement = Agreement(arrays, frozenset("xy"))
    agreement.add({"x": 1.0, "y": 1.0}, {}, arrays)
    assert not agreement._groups and agreement.finish({}) == ({}, {})


def test_a_model_without_shared_parts_has_no_agreement() -> None:
    arrays = wire.pack({f"decoder.{task}": {f"{task}.w": np.ones(2)} for task in "xy"})
    agreement = Agreement(arrays)
    for task in "xy":
        agreement.add({task: 1.0}, wire.arrays_in(arrays), arrays)
    assert agreement.finish({}) == ({}, {})


def test_a_weight_is_divided_by_samples() -> None:
    assert split_weight(6.0, {"x": 1, "y": 2, "z": 0}) == {"x": 2.0, "y": 4.0}
    assert split_weight(6.0, {"x": 0}) == split_weight(6.0, {}) == {}


@pytest.mark.parametrize("weighting", ["samples", "uniform", "tasks"])
def test_sites_count_as_in_the_merge(weighting: str) -> None:
    strategy = TaskFedAvg(weighting=weighting, task_weights={"y": 4.0})
    shares: dict[str, dict[str, float]] = {}
    add = strategy.task_weights_of
    strategy.task_weights_of = lambda update: shares.setdefault(update.site, add(update))  # type: ignore[method-assign]
    one_round(strategy, drift)
    expected = {
        "samples": {"a": {"x": 10}, "b": {"y": 3}, "c": {"x": 5, "y": 40}},
        "uniform": {"a": {"x": 1}, "b": {"y": 1}, "c": {"x": 5 / 45, "y": 40 / 45}},
        "tasks": {"a": {"x": 10 / 15}, "b": {"y": 4 * 3 / 43}, "c": {"x": 5 / 15, "y": 4 * 40 / 43}},
    }[weighting]
    assert {site: pytest.approx(own) for site, own in expected.items()} == shares
