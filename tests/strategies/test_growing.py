"""A growing width under real rounds: functions are averaged, sites get their part, and no unit is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict
from safetensors.numpy import load_file

from helpers.growing import forward, numbers, perceptron
from helpers.planted import Network
from helpers.rounds import SITES, Sites, one_round, same, tensors_of
from mtfed.config import read_config
from mtfed.federation.app_folder import find_app
from mtfed.federation.simulate import simulate
from mtfed.models.build import build_model
from mtfed.models.symmetry import derive_axes
from mtfed.record.run import Run
from mtfed.strategies import GrowingMatching, SiteCard, TaskFedAvg, wire
from mtfed.strategies.axes import AxisError, AxisGraph
from mtfed.strategies.precision import write_precision
from mtfed.strategies.screening import Memory
from mtfed.strategies.widths import submodel

COUNTS = {key: sum(tasks.values()) for key, tasks in SITES.items()}
WIDTH, POOL = 8, 12
# Sites keep the units that they were sent but two, which become others of the pool; a keeps all.
UNITS_OF = {"a": [*range(8)], "b": [0, 1, 2, 3, 4, 5, 8, 9], "c": [10, 11, 2, 3, 4, 5, 6, 7]}
X = np.random.default_rng(9).standard_normal((50, 20))


def pool() -> tuple[AxisGraph, Network]:
    """Return the table of axes of a perceptron of 8 hidden units, and one with 12 that they come from."""
    network = {
        n: np.random.default_rng(5).standard_normal(v.shape) for n, v in numbers(perceptron(20, POOL, 4)).items()
    }
    return derive_axes(perceptron(20, WIDTH, 4)), {name: values.astype("f") for name, values in network.items()}


def begin(packed: bool) -> ArrayRecord:
    graph, network = pool()
    first = submodel(graph.resize({"0": POOL}), network, {"0": np.arange(WIDTH)})
    return record(first, packed)


def record(network: Network, packed: bool) -> ArrayRecord:
    if packed:
        return wire.pack({"encoder": network})
    plain = ArrayRecord()
    for name, values in network.items():
        plain[name] = wire.FlatArray(values)
    return plain


def trained(key: str, noise: float = 0.05) -> Network:
    """Return a site's network: its units of the pool, sending on what they did and a little else."""
    graph, network = pool()
    own = submodel(graph.resize({"0": POOL}), network, {"0": np.array(UNITS_OF[key])})
    step = noise * np.random.default_rng(list(key.encode())).standard_normal(own["2.weight"].shape)
    return own | {"2.weight": (own["2.weight"] + step).astype("f")}


def reply(network: Network, key: str, message: Message) -> RecordDict:
    packed = wire.is_packed(message.content["arrays"])
    arrays = record(network, packed)
    metrics = {"num-examples": COUNTS[key]}
    return RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)})


def first(key: str, message: Message) -> RecordDict:
    return reply(trained(key), key, message)


def drift(key: str, message: Message) -> RecordDict:
    """Return what a site was sent, and small steps that differ from round to round."""
    rng = np.random.default_rng([*key.encode(), message.content["config"]["server-round"]])
    sent = tensors_of(message.content["arrays"])
    stepped = {name: (v + 0.01 * rng.standard_normal(v.shape)).astype("f") for name, v in sent.items()}
    return reply(stepped, key, message)


def grown(packed: bool = False, **settings: object) -> tuple[GrowingMatching, ArrayRecord]:
    strategy = GrowingMatching(pool()[0], precision="none", **settings)
    arrays, _, _ = one_round(strategy, first, arrays=begin(packed))
    return strategy, arrays


@pytest.mark.parametrize("packed", [True, False])
def test_the_global_model_is_the_mean_of_the_sites_functions(packed: bool) -> None:
    strategy, arrays = grown(packed)
    network = tensors_of(arrays)
    assert network["0.weight"].shape == (POOL, 20) and network["2.weight"].shape == (4, POOL)
    mean = sum(COUNTS[key] * forward(trained(key), X) for key in SITES) / sum(COUNTS.values())
    np.testing.assert_allclose(forward(network, X), mean, atol=1e-4)
    np.testing.assert_array_equal(network["0.weight"][:WIDTH], pool()[1]["0.weight"][:WIDTH])  # the frame's come first
    assert strategy.merge_metrics()["merge.width.0"] == POOL
    assert strategy.merge_metrics()["merge.moved.0"] == pytest.approx(4 / 24)
    shares = [strategy.merge_metrics()[f"merge.share.{'encoder' if packed else 'model'}.{key}"] for key in SITES]
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("packed", [True, False])
def test_a_site_is_sent_its_own_units(packed: bool) -> None:
    strategy, arrays = grown(packed)
    network, sent = tensors_of(arrays), {}
    one_round(strategy, lambda key, message: sent.setdefault(key, message) and drift(key, message), arrays=arrays)
    for key, message in sent.items():
        own, before = tensors_of(message.content["arrays"]), trained(key)
        assert {name: values.shape for name, values in own.items()} == {n: v.shape for n, v in before.items()}
        np.testing.assert_array_equal(own["0.weight"], before["0.weight"])  # in the order of the site
        np.testing.assert_array_equal(own["2.weight"], network["2.weight"][:, strategy.units[key]["0"]])
    new_site = tensors_of(strategy.arrays_for(SiteCard("new", 1), arrays, None))
    count = np.zeros(POOL, int)
    for units in strategy.units.values():
        count[units["0"]] += 1
    usual = np.sort(np.argsort(-count, kind="stable")[:WIDTH])
    np.testing.assert_array_equal(new_site["0.weight"], network["0.weight"][usual])
    assert list(usual) == list(range(WIDTH))  # two or more sites have each of these, only one has an added unit


def test_units_that_no_site_has_stay() -> None:
    strategy, arrays = grown()
    before = tensors_of(arrays)

    def alone(key: str, message: Message) -> RecordDict | Error:
        return drift(key, message) if key == "a" else Error(2, "not today")

    after = tensors_of(one_round(strategy, alone, arrays=arrays, number=2)[0])
    own = strategy.units["a"]["0"]
    others = np.setdiff1d(np.arange(POOL), own)
    assert len(others) == 4
    for name, axis in (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)):
        np.testing.assert_array_equal(after[name].take(others, axis), before[name].take(others, axis))
        assert (after[name].take(own, axis) != before[name].take(own, axis)).any()


def test_widths_stay_and_units_are_recognised_over_rounds() -> None:
    strategy, arrays = grown(True)
    units = {key: own["0"].copy() for key, own in strategy.units.items()}
    for number in (2, 3, 4):
        arrays, metrics, _ = one_round(strategy, drift, arrays=arrays, number=number)
        assert metrics["merge.width.0"] == POOL and metrics["merge.moved.0"] == 0
    assert all((own["0"] == units[key]).all() for key, own in strategy.units.items())


@pytest.mark.parametrize("packed", [True, False])
def test_a_resumed_run_is_bit_equal(packed: bool, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    settings = {"prior_strength": 0.5}
    straight, arrays = grown(packed, **settings)
    resumed, again, state = GrowingMatching(pool()[0], precision="none", **settings), arrays, straight.state()
    if packed:  # through a file, whose model is wider than the one that a run starts with
        run = Run(tmp_path)
        run.save("last", arrays, straight.state(), {})
        saved = run.load("last", begin(True))
        assert saved is not None
        again, state, _ = saved
    resumed.roster.refresh(Sites(drift))
    resumed.restore(state)
    for number in (2, 3):
        arrays, _, _ = one_round(straight, drift, arrays=arrays, number=number)
        again, _, _ = one_round(resumed, drift, arrays=again, number=number)
        assert same(arrays, again)
    left, right = straight.state(), resumed.state()
    assert left.keys() == right.keys() and all(same(left[group], right[group]) for group in left)


def informed(key: str, message: Message) -> RecordDict:
    """Return a site's update; a and b send their precision, c counts by its samples."""
    content = first(key, message)
    if key != "c":
        content["precision"] = write_precision(site_precision(key))
    return content


def site_precision(key: str) -> dict[str, np.ndarray]:
    generator = np.random.default_rng([7, *key.encode()])
    return {name: np.exp2(generator.integers(0, 4, v.shape)).astype("f") for name, v in trained(key).items()}


@pytest.mark.parametrize("prior", [0.0, 1.0])
def test_precision_against_a_slow_reference(prior: float) -> None:
    strategy, floor = GrowingMatching(pool()[0], precision_floor=0.1, prior_strength=prior), 0.1
    arrays, previous = begin(False), None
    for number in (1, 2):
        frame = tensors_of(arrays)
        strategy.memory = Memory()  # the sites send the same updates again
        arrays, _, _ = one_round(strategy, informed, arrays=arrays, number=number)
        network, units = tensors_of(arrays), {key: own["0"] for key, own in strategy.units.items()}
        for name, axis in (("0.weight", 0), ("0.bias", 0), ("2.weight", 1), ("2.bias", None)):
            precision = {key: site_precision(key)[name] * 1.0 for key in "ab"}
            for key, values in precision.items():
                rows = values.mean(axis=1, keepdims=True) if values.ndim > 1 else values.mean()
                precision[key] = values + floor * rows + floor**2 * values.mean()
            usual = sum(values.mean() for values in precision.values()) / (COUNTS["a"] + COUNTS["b"])
            precision["c"] = np.full(trained("c")[name].shape, usual * COUNTS["c"])
            top, bottom = np.zeros(network[name].shape), np.zeros(network[name].shape)
            if prior and previous is not None:
                top, bottom = top + previous[name] * frame[name], bottom + previous[name]
            for key, own in precision.items():
                for place in np.ndindex(network[name].shape):
                    unit = None if axis is None else place[axis]
                    if unit is None or unit in units[key]:
                        at = list(place)
                        if axis is not None:
                            at[axis] = list(units[key]).index(unit)
                        bottom[place] += own[tuple(at)]
                        top[place] += own[tuple(at)] * trained(key)[name][tuple(at)]
                    elif name == "2.weight":  # weight 0, at the mean precision of the units that it has
                        bottom[place] += own[place[0]].mean()
            np.testing.assert_allclose(network[name], top / bottom, atol=1e-4, err_msg=name)
            np.testing.assert_allclose(strategy.posterior[name], bottom, rtol=1e-4)
        previous = dict(strategy.posterior)


@pytest.mark.parametrize("axes", [True, False])
def test_without_growth_it_is_the_average(axes: bool) -> None:
    graph = pool()[0] if axes else None
    strategy, average, arrays = GrowingMatching(graph, precision="none", width_cap=1.0), TaskFedAvg(), begin(True)
    again = arrays
    for number in (1, 2):
        arrays, _, _ = one_round(strategy, drift, arrays=arrays, number=number)
        again, _, _ = one_round(average, drift, arrays=again, number=number)
        assert same(arrays, again)


def test_sites_that_trained_apart_are_aligned_first() -> None:
    graph, network = pool()

    def apart(key: str, message: Message) -> RecordDict:
        order = np.random.default_rng(list(key.encode())).permutation(WIDTH)
        return reply(graph.permute(trained(key), {"0": order}), key, message)

    strategy = GrowingMatching(graph, precision="none", start="apart")
    noise = {name: np.random.default_rng(1).standard_normal(v.shape).astype("f") for name, v in trained("a").items()}
    arrays, _, _ = one_round(strategy, apart, arrays=record(noise, False))
    merged = tensors_of(arrays)
    assert merged["0.bias"].shape == (POOL,)  # nothing is left of the server's own units
    assert set(merged["0.bias"]) == set(network["0.bias"])
    mean = sum(COUNTS[key] * forward(trained(key), X) for key in SITES) / sum(COUNTS.values())
    np.testing.assert_allclose(forward(merged, X), mean, atol=1e-4)
    arrays, metrics, _ = one_round(strategy, drift, arrays=arrays, number=2)
    assert metrics["merge.width.0"] == POOL and metrics["merge.moved.0"] == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"gamma": 0}, "Expected gamma to be a finite number that is above 0, got 0."),
        ({"width_cap": 0.9}, "Expected width_cap to be a finite number that is at least 1, got 0.9."),
    ],
)
def test_impossible_settings_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        GrowingMatching(**settings)


def run_of(config: dict) -> Run:
    assert simulate(find_app("pneumonia"), config, 3, "local", 2) == 0
    (path,) = Path(config["out"]).glob("*/config.json")
    return Run.open(path.parent)


def test_a_run_whose_model_grows_is_tested_kept_and_resumed(small: dict, tmp_path: Path) -> None:
    config = small | {"strategy": "growing", "gamma": 100, "width-cap": 2, "schedule": "constant", "test-every": 1}
    config |= {"local-steps": 3, "rounds": 3}
    whole = run_of(config | {"out": str(tmp_path / "whole")})
    part = run_of(config | {"out": str(tmp_path / "part"), "rounds": 2})
    again = {"out": str(tmp_path / "part"), "resume": str(part.folder)}
    resumed = run_of(config | again)
    left, right = (load_file(run.folder / "checkpoints" / "last.safetensors") for run in (whole, resumed))
    assert left.keys() == right.keys() and all(left[key].tobytes() == right[key].tobytes() for key in left)
    assert whole.lines("metrics.jsonl") == resumed.lines("metrics.jsonl")
    widths = whole.lines("rounds.jsonl")[-1]["merge"]
    hidden = {key: n for key, n in widths.items() if key.startswith("width.") and key.endswith("mlp.hidden")}
    assert hidden and max(hidden.values()) > 256  # of vit_nano_patch8
    for key, n in hidden.items():
        assert len(left[key.removeprefix("width.").removesuffix("hidden") + "fc1.weight"]) == n
    summary = whole.read_json("summary.json")
    assert summary["tasks"]["lungs"]["test"] and summary["parameters"] > build_parameters(config)
    assert (whole.folder / "examples.npz").exists() and (whole.folder / "report.html").exists()
    sent = {line["bytes_down"] for line in whole.lines("rounds.jsonl")}
    assert max(sent) < 1.01 * min(sent)  # the sites' width is the same in every round


def build_parameters(config: dict) -> int:
    return sum(weight.numel() for weight in build_model(read_config(config)).parameters())


def test_parts_that_share_a_name_are_refused_before_any_work() -> None:
    arrays = wire.pack({"encoder": {"weight": np.ones(2, "f")}, "decoder.x": {"weight": np.ones(2, "f")}})
    with pytest.raises(AxisError, match="weight: 2 parts contain a tensor of this name"):
        one_round(GrowingMatching(pool()[0]), arrays=arrays)
