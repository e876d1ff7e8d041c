"""Cavities: on quadratic losses one round under the others' posterior ends in the mode of all, wherever it starts."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from helpers.rounds import SITES, one_round, same
from mtfed.strategies import BayesianMatching, wire
from mtfed.strategies.precision import write_precision
from mtfed.strategies.screening import Memory

CURVATURE = {"a": 2.0, "b": 30.0, "c": 7.0}  # curvature of a site's whole loss, the same in every weight
MODE = {key: np.random.default_rng(list(key.encode())).normal(size=6) for key in SITES}
SAMPLES = {key: sum(counts.values()) for key, counts in SITES.items()}


def plain(values: np.ndarray) -> ArrayRecord:
    record = ArrayRecord()
    record["w"] = wire.FlatArray(values.astype("f"))
    return record


def solve(key: str, message: Message, pulled: bool = True) -> RecordDict:
    """Return the minimum of a site's loss, a mean over its samples, plus the pull."""
    start, curvature = message.content["arrays"]["w"].numpy(), CURVATURE[key]
    pull = float(message.content["pull"]["w"]) * SAMPLES[key] if "pull" in message.content else 0.0
    values = (curvature * MODE[key] + pull * start) / (curvature + pull)
    precision = write_precision({"w": np.full(6, curvature)})
    metrics = MetricRecord({"num-examples": SAMPLES[key], "pulled": int(pulled and pull > 0)})
    return RecordDict({"arrays": plain(values), "metrics": metrics, "precision": precision})


def mode() -> np.ndarray:
    return sum(CURVATURE[key] * MODE[key] for key in SITES) / sum(CURVATURE.values())


@pytest.mark.parametrize("cavity", [0.0, 0.3, 1.0])
def test_every_round_ends_in_the_mode_of_all(cavity: float) -> None:
    strategy = BayesianMatching(cavity=cavity, precision_floor=0.0)
    for number in (1, 2, 3):
        strategy.memory = Memory()  # unpulled sites that minimise their losses exactly send the same every round
        start = plain(np.random.default_rng(number).normal(size=6))
        merged, _, grid = one_round(strategy, solve, arrays=start, number=number)
        assert grid.asked == sorted(SITES)
        np.testing.assert_allclose(merged["w"].numpy(), mode(), rtol=2e-5, atol=2e-6)


def test_the_step_of_a_site_that_was_not_pulled_is_averaged() -> None:
    strategy = BayesianMatching(precision_floor=0.0)
    one_round(strategy, solve, arrays=plain(np.zeros(6)))
    start = np.ones(6)
    merged, _, _ = one_round(strategy, lambda key, m: solve(key, m, pulled=False), arrays=plain(start), number=2)
    others = {key: (sum(CURVATURE.values()) - CURVATURE[key]) / len(SITES) for key in SITES}
    steps = {k: (CURVATURE[k] * MODE[k] + others[k] * start) / (CURVATURE[k] + others[k]) for k in SITES}
    mean = sum(CURVATURE[key] * steps[key] for key in SITES) / sum(CURVATURE.values())
    np.testing.assert_allclose(merged["w"].numpy(), mean, rtol=2e-5, atol=2e-6)


def test_a_pull_is_one_number_for_each_tensor_from_the_second_round_on() -> None:
    strategy, sent = BayesianMatching(precision_floor=0.0), []

    def answer(key: str, message: Message) -> RecordDict:
        sent.append(message.content.get("pull"))
        return solve(key, message)

    for number in (1, 2):
        one_round(strategy, answer, arrays=plain(np.full(6, float(number))), number=number)
    assert sent[:3] == [None] * 3
    assert all(isinstance(pull, ConfigRecord) and list(pull) == ["w"] for pull in sent[3:])


def test_steps_are_at_most_doubled() -> None:
    strategy = BayesianMatching(precision_floor=0.0)
    one_round(strategy, solve, arrays=plain(np.zeros(6)))
    for factors in strategy.cavities.factors.values():  # a precision of the last round that was much too high
        factors["w"] *= 1e6

    def step(key: str, message: Message) -> RecordDict:
        content = solve(key, message)
        content["arrays"] = plain(message.content["arrays"]["w"].numpy() + 1)
        return content

    merged, _, _ = one_round(strategy, step, arrays=plain(np.zeros(6)), number=2)
    np.testing.assert_allclose(merged["w"].numpy(), 2.0, rtol=1e-5)


def test_a_resumed_run_continues_under_the_same_cavities() -> None:
    def run(number: int, strategy: BayesianMatching) -> ArrayRecord:
        merged, _, _ = one_round(strategy, solve, arrays=plain(np.full(6, float(number))), number=number)
        return merged

    whole, begun, resumed = (BayesianMatching() for _ in range(3))
    run(1, whole)
    run(1, begun)
    resumed.restore(begun.state())
    assert same(run(2, whole), run(2, resumed))


def test_a_tensor_with_precision_0_at_all_sites_stays() -> None:
    def answer(key: str, message: Message) -> RecordDict:
        content = solve(key, message)
        content["precision"] = write_precision({"w": np.zeros(6)})
        return content

    strategy = BayesianMatching()
    for number in (1, 2, 3):
        merged, _, _ = one_round(strategy, answer, arrays=plain(np.full(6, float(number))), number=number)
        assert merged["w"].numpy().tolist() == [number] * 6


def test_two_sites_learn_nothing_about_each_other() -> None:
    def answer(key: str, message: Message) -> RecordDict | Error:
        assert "pull" not in message.content
        return solve(key, message) if key != "b" else Error(code=0, reason="down")

    strategy = BayesianMatching()
    for number in (1, 2):
        one_round(strategy, answer, arrays=plain(np.full(6, float(number))), number=number)
    assert list(strategy.cavities.factors) == ["a", "c"]


def test_a_site_that_fails_once_keeps_its_factor() -> None:
    strategy = BayesianMatching(precision_floor=0.0)
    one_round(strategy, solve, arrays=plain(np.zeros(6)))
    fails = lambda key, message: Error(code=0, reason="down") if key == "b" else solve(key, message)  # noqa: E731
    one_round(strategy, fails, arrays=plain(np.ones(6)), number=2)
    assert strategy.cavities.factors["b"]["w"] == pytest.approx(CURVATURE["b"])
    merged, _, _ = one_round(strategy, solve, arrays=plain(np.full(6, 3.0)), number=3)
    np.testing.assert_allclose(merged["w"].numpy(), mode(), rtol=2e-5, atol=2e-6)
