"""Failures in a round: their reasons, the policies, and rounds without a usable reply."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict

from helpers.rounds import drift, one_round, same, update
from mtfed.strategies import (
    Alone,
    FederationError,
    TaskFedAdam,
    TaskFedAvg,
    TaskFedBN,
    wire,
)

Answer = Callable[[str, Message], RecordDict | Error | None]


def broken(name: str) -> Callable[[str, Message], RecordDict | Error | None]:
    """Return an answer in which site b does something wrong."""

    def answer(key: str, message: Message) -> RecordDict | Error | None:
        content = update(key, message)
        if key != "b":
            return content
        record = ArrayRecord(dict(content["arrays"].items()))
        content["arrays"] = record
        match name:
            case "error":
                return Error(2, "ValueError: no disk\nTraceback ...")
            case "silent":
                return None
            case "reported":
                return RecordDict({"failure": ConfigRecord({"reason": "OSError: no disk"})})
            case "nan":
                record["encoder:float32"] = wire.FlatArray(np.full(13, np.nan, "f"))
            case "shape":
                record["encoder:float32"] = wire.FlatArray(np.zeros(12, "f"))
            case "dtype":
                record["encoder:float32"] = wire.FlatArray(np.zeros(13, "d"))
            case "extra":
                record["decoder.x:float32"] = wire.FlatArray(np.zeros(5, "f"))
            case "count":
                content["metrics"]["num-examples"] = -1
            case "too many":
                content["metrics"]["num-examples.y"] = 1e12
            case "not finite":
                content["metrics"]["curve"] = [1.0, float("nan")]
            case "empty":
                del content["arrays"]
        return content

    return answer


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("error", "ValueError: no disk"),
        ("silent", "no reply in time"),
        ("reported", "OSError: no disk"),
        ("nan", "not finite"),
        ("shape", r"float32\[13\], it is float32\[12\]"),
        ("dtype", "float64"),
        ("extra", "was not sent"),
        ("count", "num-examples should be"),
        ("too many", "it reports 1e.12 samples of y, on joining it reported 3"),
        ("not finite", "curve is not finite"),
        ("empty", "expected records"),
    ],
)
def test_a_bad_reply_costs_only_its_site(name: str, reason: str) -> None:
    strategy = TaskFedAvg()
    merged, metrics, _ = one_round(strategy, broken(name))
    (failure,) = strategy.failures
    assert failure.site == "b"
    assert re.search(reason, failure.reason), failure.reason
    assert metrics["num-examples"] == 55 and np.isfinite(merged["encoder:float32"].numpy()).all()


def test_each_policy_on_failures() -> None:
    with pytest.raises(FederationError, match=r"Site b failed to train in round 1.*on-failure"):
        one_round(TaskFedAvg(on_failure="fail"), broken("error"))
    with pytest.raises(FederationError, match="at least 3 of 3 sites"):
        one_round(TaskFedAvg(quorum=1.0), broken("silent"))
    with pytest.raises(FederationError, match=r"at least 1 of 3 sites .* 0 did"):
        one_round(TaskFedAvg(), lambda key, message: Error(2, "all fail"))

    calls = []

    def succeeds_when_repeated(key: str, message: Message) -> RecordDict | Error:
        calls.append(key)
        return update(key, message) if key != "b" or calls.count("b") > 1 else Error(2, "once")

    strategy = TaskFedAvg(on_failure="retry", retries=2)
    _, metrics, _ = one_round(strategy, succeeds_when_repeated)
    assert calls.count("b") == 2 and metrics["num-examples"] == 58


def test_a_result_contains_the_failures_of_its_phase_only() -> None:
    strategy = TaskFedAvg()
    one_round(strategy, broken("error"))
    first = strategy.train_result
    one_round(strategy, drift, number=2)
    second = strategy.train_result
    assert (first.server_round, first.asked, first.answered) == (1, 3, 2)
    assert [failure.site for failure in first.failures] == ["b"] and first.site_metrics.keys() == {"a", "c"}
    assert (second.server_round, second.answered, second.failures) == (2, 3, ())
    assert strategy.failures == list(first.failures)


def test_failures_of_a_phase_that_raises_are_recorded(caplog: pytest.LogCaptureFixture) -> None:
    strategy = TaskFedAvg(quorum=1.0)
    with pytest.raises(FederationError):
        one_round(strategy, broken("reported"))
    assert [failure.reason for failure in strategy.failures] == ["OSError: no disk"]
    with pytest.raises(RuntimeError, match="call aggregate_train first"):
        _ = strategy.train_result
    assert "Round 1: site b failed to train: OSError: no disk" in caplog.messages


def diverged(key: str, message: Message) -> RecordDict:
    content = drift(key, message)
    (name, *_) = [name for name in content["arrays"] if name.endswith("float32")]
    content["arrays"][name] = wire.FlatArray(np.full_like(content["arrays"][name].numpy(), np.nan))
    return content


def one_diverged(key: str, message: Message) -> RecordDict | Error | None:
    return {"a": diverged(key, message), "b": Error(2, "no disk"), "c": None}[key]


@pytest.mark.parametrize("strategy_class", [TaskFedAvg, TaskFedAdam, TaskFedBN, Alone])
@pytest.mark.parametrize(("answer", "refused"), [(diverged, 3), (one_diverged, 1)])
def test_a_round_with_only_refused_updates_keeps_the_model(
    strategy_class: type[TaskFedAvg], answer: Answer, refused: int, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = strategy_class()
    arrays, _, _ = one_round(strategy, drift)
    merged, metrics, _ = one_round(strategy, answer, arrays=arrays, number=2)
    assert same(merged, arrays) and dict(metrics) == {}
    assert strategy.train_result.answered == 0
    assert caplog.messages[-1] == (
        f"Round 2: no reply could be used, {refused} of 3 were refused; the model stays as it was."
    )
    assert len(strategy.failures) == 3
    after, metrics, _ = one_round(strategy, drift, arrays=merged, number=3)  # and the run goes on
    assert metrics["num-examples"] == 58 and (strategy_class is Alone or not same(after, merged))


@pytest.mark.parametrize(
    ("settings", "answer", "sentence"),
    [
        ({"quorum": 0.1}, diverged, "at least 1 of 3 sites to train in round 1, 0 did"),
        ({"quorum": 0.5}, one_diverged, "at least 1.5 of 3 sites to train in round 1, 0 did"),
        ({}, lambda key, message: Error(2, "no disk"), "at least 1 of 3 sites to train in round 1, 0 did"),
        ({}, lambda key, message: None, "at least 1 of 3 sites to train in round 1, 0 did"),
        ({"on_failure": "fail"}, diverged, "Site a failed to train in round 1: its update was refused"),
    ],
)
def test_a_round_that_ends_the_run(settings: dict, answer: Answer, sentence: str) -> None:
    with pytest.raises(FederationError, match=sentence):
        one_round(TaskFedAvg(**settings), answer)
