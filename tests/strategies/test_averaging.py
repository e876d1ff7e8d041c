"""FedAvg, FedProx and sites alone, against a slow reference."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from helpers.rounds import SITES, drift, one_round, parts, same, update
from mtfed.strategies import (
    Alone,
    TaskFedAvg,
    wire,
)


@pytest.mark.parametrize(
    ("weighting", "task_weights"),
    [("samples", {}), ("uniform", {}), ("tasks", {}), ("tasks", {"y": 4.0}), ("tasks", {"x": 0.5, "y": 3})],
)
def test_the_average_equals_a_slow_reference(weighting: str, task_weights: dict[str, float]) -> None:
    merged, metrics, _ = one_round(TaskFedAvg(weighting=weighting, task_weights=task_weights))
    own = {key: parts(np.random.default_rng(list(key.encode()))) for key in SITES}
    totals = {task: sum(s.get(task, 0) for s in SITES.values()) for task in "xy"}
    weights = {
        "samples": {key: sum(s.values()) for key, s in SITES.items()},
        "uniform": dict.fromkeys(SITES, 1),
        "tasks": {k: sum(task_weights.get(t, 1) * n / totals[t] for t, n in s.items()) for k, s in SITES.items()},
    }[weighting]
    got = wire.unpack(merged)
    for name in ("w", "scalar"):
        expected = sum(np.float64(own[k]["encoder"][name]) * weights[k] for k in SITES) / sum(weights.values())
        np.testing.assert_allclose(got["encoder"][name], expected, rtol=1e-6)
    for task in "xy":
        counts = {k: (1 if weighting == "uniform" else s[task]) for k, s in SITES.items() if task in s}
        expected = sum(np.float64(own[k][f"decoder.{task}"]["v"]) * n for k, n in counts.items()) / sum(counts.values())
        np.testing.assert_allclose(got[f"decoder.{task}"]["v"], expected, rtol=1e-6)
    untouched = parts(np.random.default_rng(1))
    np.testing.assert_array_equal(got["decoder.z"]["v"], untouched["decoder.z"]["v"])  # no site has z
    assert got["encoder"]["seen"] == 7 and got["encoder"]["scalar"].shape == ()
    assert metrics["num-examples.y"] == 43 and metrics["curve"] == [3.0, 3.0]


@pytest.mark.parametrize("weighting", ["samples", "uniform", "tasks"])
def test_without_counts_by_task_all_parts_count_by_samples(weighting: str) -> None:
    def answer(key: str, message: Message) -> RecordDict:
        content = update(key, message)
        content["metrics"] = MetricRecord({"num-examples": content["metrics"]["num-examples"]})
        return content

    got = wire.unpack(one_round(TaskFedAvg(weighting=weighting), answer)[0])
    own = {key: parts(np.random.default_rng(list(key.encode()))) for key in SITES}
    for part, name, holders in (("encoder", "w", "abc"), ("decoder.x", "v", "ac"), ("decoder.y", "v", "bc")):
        weights = [1 if weighting == "uniform" else sum(SITES[key].values()) for key in holders]
        expected = np.average([np.float64(own[key][part][name]) for key in holders], axis=0, weights=weights)
        np.testing.assert_allclose(got[part][name], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_an_impossible_task_weight_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="Expected a task weight above 0 for x, got"):
        TaskFedAvg(weighting="tasks", task_weights={"x": weight})


def test_the_result_does_not_depend_on_arrival() -> None:
    assert same(one_round(TaskFedAvg(), order=1)[0], one_round(TaskFedAvg(), order=-1)[0])


def test_plain_state_dicts_are_averaged_whole() -> None:
    plain = ArrayRecord()
    plain["w"] = wire.FlatArray(np.zeros(3, "f"))

    def answer(key: str, message: Message) -> RecordDict:
        record = ArrayRecord([np.full(3, len(SITES[key]), "f")])
        record["w"] = record.pop("0")
        return RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 1})})

    merged, _, _ = one_round(TaskFedAvg(), answer, arrays=plain)
    np.testing.assert_allclose(merged["w"].numpy(), 4 / 3)


def test_sites_alone_keep_their_own_weights() -> None:
    strategy = Alone()
    merged, _, _ = one_round(strategy)
    assert (
        merged["encoder:float32"].numpy().tobytes()
        == wire.pack(parts(np.random.default_rng(1)))["encoder:float32"].numpy().tobytes()
    )
    own = wire.unpack(strategy.trained_models(merged)["a"])
    np.testing.assert_array_equal(own["encoder"]["w"], parts(np.random.default_rng(list(b"a")))["encoder"]["w"])
    other = Alone()
    other.restore(strategy.state())
    assert other.trained_models(merged).keys() == SITES.keys()


def test_sites_alone_keep_decoders_of_tasks_that_stopped() -> None:
    strategy, sent = Alone(), {}

    def answer(key: str, message: Message) -> RecordDict:
        sent[key] = sorted(wire.unpack(message.content["arrays"]))
        return drift(key, message)

    one_round(strategy, answer, tasks=["x"])  # y may have stopped before a site joins
    merged, _, _ = one_round(strategy, answer)
    before = wire.unpack(strategy.trained_models(merged)["c"])
    one_round(strategy, answer, number=2, tasks=["x"])
    assert sent == {"a": ["decoder.x", "encoder"], "b": ["decoder.y", "encoder"], "c": ["decoder.x", "encoder"]}
    after = wire.unpack(strategy.trained_models(merged)["c"])
    np.testing.assert_array_equal(after["decoder.y"]["v"], before["decoder.y"]["v"])
    assert not np.array_equal(after["decoder.x"]["v"], before["decoder.x"]["v"])
