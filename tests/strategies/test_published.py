"""The published merges as strategies, each against its formula written out, and on planted orders."""

from __future__ import annotations

import re
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from scipy.optimize import linear_sum_assignment
from torch import nn

from helpers import TASKS, mtfed
from helpers.growing import forward, numbers, perceptron
from helpers.planted import Network
from helpers.rounds import SITES, one_round, same, tensors_of
from mtfed.config import read_config
from mtfed.config_help import describe_keys, describe_strategies
from mtfed.errors import MtfedError
from mtfed.federation.strategy_settings import make_strategy
from mtfed.models.symmetry import derive_axes
from mtfed.strategies import STRATEGIES, FisherMerging, Fola, Pfnm, Rebasin, TaskFedAvg, TaskStrategy, wire
from mtfed.strategies.axes import AxisGraph
from mtfed.strategies.precision import write_precision
from mtfed.strategies.screening import Memory

COUNTS = {key: float(sum(tasks.values())) for key, tasks in SITES.items()}
PUBLISHED = {"fisher": FisherMerging, "fola": Fola, "rebasin": Rebasin, "pfnm": Pfnm}
X = np.random.default_rng(9).standard_normal((50, 12))


def record(network: Network) -> ArrayRecord:
    arrays = ArrayRecord()
    for name, values in network.items():
        arrays[name] = wire.FlatArray(values)
    return arrays


def model(*widths: int, seed: int = 0) -> tuple[AxisGraph, Network]:
    torch.manual_seed(seed)
    network = perceptron(*widths)
    return derive_axes(network), {name: values.astype("f") for name, values in numbers(network).items()}


def answering(networks: dict[str, Network], precision: dict[str, Network] | None = None) -> Any:
    """Return sites that send these networks, and their precision if it is given."""

    def answer(key: str, message: Message) -> RecordDict:
        content = {"arrays": record(networks[key]), "metrics": MetricRecord({"num-examples": COUNTS[key]})}
        if precision is not None:
            content["precision"] = write_precision(precision[key])
        return RecordDict(content)  # type: ignore[arg-type]

    return answer


def drifted(network: Network, noise: float = 0.05) -> dict[str, Network]:
    networks = {}
    for key in SITES:
        rng = np.random.default_rng(list(key.encode()))
        networks[key] = {
            n: (v + noise * v.std() * rng.standard_normal(v.shape)).astype("f") for n, v in network.items()
        }
    return networks


def fisher_of(networks: dict[str, Network]) -> dict[str, Network]:
    """Return powers of 2, which one byte represents exactly, and some zeros."""
    rng = np.random.default_rng(3)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return np.float32(np.exp2(rng.integers(-9, 4, shape)) * (rng.random(shape) > 0.2))

    return {key: {name: draw(values.shape) for name, values in net.items()} for key, net in networks.items()}


def test_fisher_merging_is_its_formula() -> None:
    _, start = model(12, 8, 4)
    networks = drifted(start)
    fisher = fisher_of(networks)
    for key in SITES:  # if the precision of a tensor is 0 at all sites, the mean remains
        fisher[key]["0.bias"][:] = 0
    merged = tensors_of(one_round(FisherMerging(), answering(networks, fisher), arrays=record(start))[0])
    for name, values in merged.items():
        weights = {key: np.maximum(fisher[key][name], 1e-6 * COUNTS[key]) for key in SITES}
        expected = sum(weights[key] * networks[key][name] for key in SITES) / sum(weights.values())
        np.testing.assert_allclose(values, expected, atol=1e-6)
    mean = sum(COUNTS[key] * networks[key]["0.bias"] for key in SITES) / sum(COUNTS.values())
    np.testing.assert_allclose(merged["0.bias"], mean, atol=1e-6)


def test_fola_takes_every_round_as_the_next_ones_prior() -> None:
    _, start = model(12, 8, 4)
    strategy, arrays = Fola(precision_floor=0.0), record(start)
    theta, precision = start, {name: np.zeros(values.shape) for name, values in start.items()}
    for number in (1, 2, 3):
        networks = drifted(tensors_of(arrays), 0.2)
        fisher = fisher_of(networks)
        strategy.memory = Memory()
        arrays, _, _ = one_round(strategy, answering(networks, fisher), arrays=arrays, number=number)
        for name, values in tensors_of(arrays).items():
            total = precision[name] + sum(fisher[key][name] for key in SITES)
            weighted = precision[name] * theta[name] + sum(fisher[key][name] * networks[key][name] for key in SITES)
            known = total > 0
            np.testing.assert_allclose(values[known], (weighted[known] / total[known]), atol=1e-5)
            np.testing.assert_array_equal(values[~known], theta[name][~known])
            np.testing.assert_allclose(strategy.posterior[name], total, rtol=1e-5)
        theta, precision = tensors_of(arrays), dict(strategy.posterior)


MODELS = {
    "one layer": lambda: perceptron(12, 16, 4),
    "two layers": lambda: perceptron(12, 16, 14, 4),
    "chain": lambda: nn.Sequential(
        nn.Conv2d(2, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(32, 4),
    ),
}  # fmt: skip


def planted(name: str) -> tuple[AxisGraph, Network, dict[str, Network], dict[str, Network]]:
    """Return a model, its drifted sites, and the same in orders of their own."""
    torch.manual_seed(0)
    network = MODELS[name]()
    graph, rng = derive_axes(network), np.random.default_rng(4)
    start = {n: v.astype("f") if v.ndim else v.astype(np.int64) for n, v in numbers(network).items()}
    for n in start:  # a new BatchNorm has equal units
        if n.startswith("1.") and start[n].ndim:
            start[n] = rng.uniform(0.5, 2, start[n].shape).astype("f")
    sites = {key: {n: v if v.ndim else start[n] for n, v in net.items()} for key, net in drifted(start).items()}
    moved = {
        key: graph.permute(net, {label: axis.random_permutation(rng) for label, axis in graph.axes.items()})
        for key, net in sites.items()
    }
    return graph, start, sites, moved


@pytest.mark.parametrize("name", MODELS)
def test_rebasin_brings_sites_back_to_the_last_global_model(name: str) -> None:
    graph, start, sites, moved = planted(name)
    strategy = Rebasin(axes=graph)
    merged, _, _ = one_round(strategy, answering(moved, fisher_of(moved)), arrays=record(start))
    reference, _, _ = one_round(TaskFedAvg(), answering(sites), arrays=record(start))
    for key, values in tensors_of(merged).items():
        if "running_var" not in key:  # those are of the pooled images
            np.testing.assert_allclose(values, tensors_of(reference)[key], atol=1e-6, err_msg=key)
    if name != "chain":  # without axes, it is the average
        left, right = (
            one_round(strategy_class(), answering(moved), arrays=record(start))[0]
            for strategy_class in (Rebasin, TaskFedAvg)
        )
        assert same(left, right)


@pytest.mark.parametrize("strategy_class", [Rebasin, Pfnm])
@pytest.mark.parametrize("name", ["one layer", "two layers"])
def test_sites_that_trained_apart_are_matched_with_each_other(strategy_class: type, name: str) -> None:
    graph, start, sites, moved = planted(name)
    noise = {n: np.random.default_rng(2).standard_normal(v.shape).astype("f") for n, v in start.items()}
    strategy = strategy_class(axes=graph, start="apart", **({"sigma0": 1e9} if strategy_class is Pfnm else {}))
    merged = tensors_of(one_round(strategy, answering(moved), arrays=record(noise))[0])
    weights = COUNTS if strategy_class is Rebasin else dict.fromkeys(SITES, 1.0)
    mean = {n: sum(weights[k] * sites[k][n] for k in SITES) / sum(weights.values()) for n in start}
    np.testing.assert_allclose(forward(merged, X), forward(mean, X), atol=1e-4)


@pytest.mark.parametrize("sigma0", [1.0, 0.25])
@pytest.mark.parametrize("name", MODELS)
def test_pfnm_finds_planted_orders_and_shrinks(name: str, sigma0: float) -> None:
    graph, start, sites, moved = planted(name)
    strategy = Pfnm(axes=graph, sigma0=sigma0)
    merged = tensors_of(one_round(strategy, answering(moved, fisher_of(moved)), arrays=record(start))[0])
    # The first site is the frame: where its units are in the planted order, all the others' are.
    shrink = len(SITES) / (len(SITES) + 1 / sigma0)
    expected = {n: shrink * np.mean([net[n] for net in sites.values()], axis=0) for n in start}
    tensor = "0.bias"
    order = linear_sum_assignment(abs(merged[tensor][:, None] - expected[tensor][None]))[1]
    np.testing.assert_allclose(merged[tensor], expected[tensor][order], atol=1e-6)
    if name == "chain":
        mean = np.mean([net["1.running_mean"] for net in sites.values()], axis=0)
        np.testing.assert_allclose(merged["1.running_mean"], mean[order], atol=1e-6)
        assert (merged["1.running_var"] > 0.4).all()
    else:
        np.testing.assert_allclose(forward(merged, X), forward(expected, X), atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_pfnm_maximises_the_published_objective(seed: int) -> None:
    graph, start = model(3, 4, 2)
    rng = np.random.default_rng(seed)
    networks = {key: {n: rng.standard_normal(v.shape).astype("f") for n, v in start.items()} for key in "ab"}
    for key in "ab":
        networks[key]["2.bias"] = start["2.bias"]
    strategy = Pfnm(axes=graph)
    answer = answering(networks)
    merged = tensors_of(one_round(strategy, lambda k, m: None if k == "c" else answer(k, m), arrays=record(start))[0])
    rows = [np.hstack([net["0.weight"], net["0.bias"][:, None], net["2.weight"].T]) for net in networks.values()]
    best = max(permutations(range(4)), key=lambda order: (np.square(rows[0] + rows[1][list(order)]) / 3).sum())
    atoms = (rows[0] + rows[1][list(best)]) / 3  # 2 / (2 + 1) of the mean
    units = np.hstack([merged["0.weight"], merged["0.bias"][:, None], merged["2.weight"].T])
    np.testing.assert_allclose(units[np.argsort(units[:, 0])], atoms[np.argsort(atoms[:, 0])], atol=1e-6)
    np.testing.assert_allclose(merged["2.bias"], start["2.bias"] * 2 / 3, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_pfnm_matches_from_the_top_down(seed: int) -> None:
    graph, start = model(5, 6, 7, 3)
    rng = np.random.default_rng(seed)
    a, b = ({n: rng.standard_normal(v.shape).astype("f") for n, v in start.items()} for _ in range(2))
    upper = [np.hstack([net["2.bias"][:, None], net["4.weight"].T]) for net in (a, b)]
    order = linear_sum_assignment(upper[0] @ upper[1].T, maximize=True)[1]
    lower = [
        np.hstack([net["0.weight"], net["0.bias"][:, None], net["2.weight"][rows].T])
        for net, rows in ((a, np.arange(7)), (b, order))
    ]
    below = linear_sum_assignment(lower[0] @ lower[1].T, maximize=True)[1]
    b_moved = graph.permute(b, {"2": order, "0": below})
    answer = answering({"a": a, "b": b})
    merged = one_round(Pfnm(axes=graph), lambda k, m: None if k == "c" else answer(k, m), arrays=record(start))[0]
    expected = {n: (a[n] + b_moved[n]) / 3 for n in start}
    np.testing.assert_allclose(forward(tensors_of(merged), X[:, :5]), forward(expected, X[:, :5]), atol=1e-5)


def test_pfnm_shrinks_in_every_round() -> None:
    graph, start = model(12, 8, 4)
    strategy, arrays = Pfnm(axes=graph), record(start)
    for number in (1, 2, 3):
        networks = dict.fromkeys(SITES, tensors_of(arrays))  # sites that learn nothing
        arrays, metrics, _ = one_round(strategy, answering(networks), arrays=arrays, number=number)
        assert metrics["merge.moved.0"] == 0
        np.testing.assert_allclose(tensors_of(arrays)["0.weight"], start["0.weight"] * 0.75**number, atol=1e-6)


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_that_a_paper_fixes_are_refused(name: str) -> None:
    strategy_class = PUBLISHED[name]
    for setting, value in strategy_class.fixed.items():
        with pytest.raises(TypeError, match=setting):
            strategy_class(**{setting: value})
    strategy: TaskStrategy = make_strategy(read_config(TASKS | {"strategy": name, "prior-strength": 0.25, "gate": 0.5}))
    assert type(strategy) is strategy_class and strategy.prior_strength == strategy_class.fixed["prior_strength"]


def test_a_prior_without_width_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected sigma0 to be a finite number that is above 0, got 0"):
        Pfnm(sigma0=0)


def test_the_help_lists_all_strategies() -> None:
    lines = describe_strategies().splitlines()
    assert [line.split()[0] for line in lines] == list(STRATEGIES)
    assert all(line.endswith(".") and len(line.split()) > 3 for line in lines)
    assert describe_strategies() in describe_keys()
    assert describe_strategies() in mtfed("simulate", "--help").stdout
    assert "pfnm" not in mtfed("report", "--help").stdout
    for name, hint in (("rebasn", "did you mean 'rebasin'? Expected"), ("zzz", "expected")):
        with pytest.raises(MtfedError, match=re.escape(f"Unknown strategy '{name}'; {hint} one of: alone, bayesian,")):
            make_strategy(read_config(TASKS | {"strategy": name}))
