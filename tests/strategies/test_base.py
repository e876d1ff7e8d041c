"""Strategies: averages against a slow reference, independence of arrival, failures, refusals."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from helpers.rounds import RNG, SITES, Sites, drift, normed, one_round, parts, same, tensors_of, update
from mtfed.strategies import (
    STRATEGIES,
    Alone,
    FederationError,
    SiteCard,
    TaskFedAdam,
    TaskFedAvg,
    TaskFedBN,
    TaskFedProx,
    TaskFedYogi,
    sites,
    wire,
)
from mtfed.strategies.local_norms import NORMS, norm_modules
from mtfed.strategies.wire import TensorEntry

from mtfed.record.run import Run


@pytest.mark.parametrize(
    ("weighting", "task_weights"),
    [("samples", {}), ("uniform", {}), ("tasks", {}), ("tasks", {"y": 4.0}), ("tasks", {"x": 0.5, "y": 3})],
)
def test_average_equals_a_slow_reference(weighting: str, task_weights: dict[str, float]) -> None:
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
        held = {k: (1 if weighting == "uniform" else s[task]) for k, s in SITES.items() if task in s}
        expected = sum(np.float64(own[k][f"decoder.{task}"]["v"]) * n for k, n in held.items()) / sum(held.values())
        np.testing.assert_allclose(got[f"decoder.{task}"]["v"], expected, rtol=1e-6)
    untouched = parts(np.random.default_rng(1))
    np.testing.assert_array_equal(got["decoder.z"]["v"], untouched["decoder.z"]["v"])  # nobody holds z
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
def test_a_task_weight_that_is_none(weight: float) -> None:
    with pytest.raises(ValueError, match="Expected a task weight above 0 for x, got"):
        TaskFedAvg(weighting="tasks", task_weights={"x": weight})


def test_result_does_not_depend_on_arrival() -> None:
    assert same(one_round(TaskFedAvg(), order=1)[0], one_round(TaskFedAvg(), order=-1)[0])


def test_a_site_is_sent_what_it_can_use() -> None:
    sent = {}
    one_round(TaskFedProx(proximal_mu=0.5), lambda key, message: sent.setdefault(key, message) and update(key, message))
    assert {key: sorted(wire.unpack(m.content["arrays"])) for key, m in sent.items()} == {
        "a": ["decoder.x", "encoder"],
        "b": ["decoder.y", "encoder"],
        "c": ["decoder.x", "decoder.y", "encoder"],
    }
    assert all(
        m.content["config"]["proximal-mu"] == 0.5 and m.content["config"]["server-round"] == 1 for m in sent.values()
    )


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


def test_sites_alone_keep_decoders_of_tasks_that_have_stopped() -> None:
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


LOCAL = {"body.norm1.weight", "body.ln_1.gain", "x.up.1.weight", "x.up.1.bias"} | {
    f"body.down.1.{name}" for name in ("weight", "running_mean", "num_batches_tracked")
}


@pytest.mark.parametrize("packed", [True, False])
def test_norms_stay_and_the_rest_is_averaged(packed: bool) -> None:
    strategy, reference, arrays = TaskFedBN(), TaskFedAvg(), normed(packed)
    own: dict[str, dict[str, np.ndarray]] = {}
    for number in (1, 2, 3):
        told: dict[str, tuple[dict, dict]] = {}

        def answer(key: str, message: Message, told: dict = told) -> RecordDict:
            content = drift(key, message)
            told[key] = tensors_of(message.content["arrays"]), tensors_of(content["arrays"])
            return content

        before = tensors_of(arrays)
        arrays, _, _ = one_round(strategy, answer, arrays=arrays, number=number)
        for key, (sent, _) in told.items():
            for name, value in sent.items():
                expected = own.get(key, before)[name] if name in LOCAL else before[name]
                np.testing.assert_array_equal(value, expected, err_msg=f"{key} {name} round {number}")
        own |= {key: given for key, (_, given) in told.items()}
        sites = strategy.trained_models(arrays)
        assert list(sites) == list(SITES)
        for key, model in sites.items():
            held = tensors_of(model)
            assert held.keys() == own[key].keys()
            for name, value in held.items():
                np.testing.assert_array_equal(value, own[key][name] if name in LOCAL else tensors_of(arrays)[name])
    # The global arrays are FedAvg's of what came, norms included: what a site that joins now is sent.
    first = one_round(TaskFedBN(), drift, arrays=normed(packed))[0]
    assert same(first, one_round(reference, drift, arrays=normed(packed))[0])
    newcomer = strategy.arrays_for(SiteCard("new", 1, frozenset("x")), arrays, ["x"])
    assert all(np.array_equal(value, tensors_of(arrays)[name]) for name, value in tensors_of(newcomer).items())


@pytest.mark.parametrize(
    ("module", "known"),
    [
        *[(name, True) for name in ("norm", "norm1", "bn", "bn2", "ln", "ln_1", "fc_norm", "norm_pre", "LayerNorm")],
        *[(f"a.{name}", True) for name in ("layernorm_before", "BatchNorm1", "q_norm", "group_norm", "conv_norm_out")],
        *[(name, False) for name in ("normal", "linear", "lnk", "bnn", "norm.proj", "conv1", "0", "vnorm")],
    ],
)  # fmt: skip
def test_which_names_are_norms(module: str, known: bool) -> None:
    tensors = [TensorEntry(f"{module}.weight", (4, 4), ...)]
    assert norm_modules(tensors, re.compile(NORMS, re.IGNORECASE)) == ({module} if known else set())


def test_other_norms_by_argument() -> None:
    strategy = TaskFedBN(norms="conv")
    arrays = one_round(strategy, drift, arrays=normed(True))[0]
    model, average = tensors_of(strategy.trained_models(arrays)["a"]), tensors_of(arrays)
    differ = {name for name, value in model.items() if not np.array_equal(value, average[name])}
    assert differ == LOCAL - {"body.norm1.weight", "body.ln_1.gain", "body.down.1.num_batches_tracked"} | {
        "body.conv.weight",
        "body.conv.bias",
    }


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_resumed_run_is_bit_equal(name: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    run, initial = Run(tmp_path), normed(True)
    straight, resumed = STRATEGIES[name](max_norm_ratio=50.0), STRATEGIES[name](max_norm_ratio=50.0)
    arrays = initial
    for number in (1, 2):
        arrays, _, _ = one_round(straight, drift, arrays=arrays, number=number)
    run.save("last", arrays, straight.state(), {})
    saved = run.load("last", initial)
    assert saved is not None
    again, state, _ = saved
    resumed.roster.refresh(Sites(drift))
    resumed.restore(state)
    for number in (3, 4):
        arrays, _, _ = one_round(straight, drift, arrays=arrays, number=number)
        again, _, _ = one_round(resumed, drift, arrays=again, number=number)
        assert same(arrays, again)
        left, right = straight.trained_models(arrays), resumed.trained_models(again)
        assert left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    left, right = straight.state(), resumed.state()
    assert left.keys() == right.keys() and all(same(left[group], right[group]) for group in left)


def broken(name: str) -> Callable[[str, Message], RecordDict | Error | None]:
    """Return an answer in which site b does something wrong."""

    def answer(key: str, message: Message) -> RecordDict | Error | None:
        content = update(key, message)
        if key != "b":
            return content
        arrays, record = content["arrays"], ArrayRecord()
        for k, v in arrays.items():
            record[k] = v
        content["arrays"] = record
        match name:
            case "error":
                return Error(2, "ValueError: no disk\nTraceback ...")
            case "silent":
                return None
            case "told":
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
        ("told", "OSError: no disk"),
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
def test_a_bad_answer_costs_only_its_site(name: str, reason: str) -> None:
    strategy = TaskFedAvg()
    merged, metrics, _ = one_round(strategy, broken(name))
    (failure,) = strategy.failures
    assert failure.site == "b"
    assert re.search(reason, failure.reason), failure.reason
    assert metrics["num-examples"] == 55 and np.isfinite(merged["encoder:float32"].numpy()).all()


def test_policies() -> None:
    with pytest.raises(FederationError, match=r"Site b failed to train in round 1.*on-failure"):
        one_round(TaskFedAvg(on_failure="fail"), broken("error"))
    with pytest.raises(FederationError, match="at least 3 of 3 sites"):
        one_round(TaskFedAvg(quorum=1.0), broken("silent"))
    with pytest.raises(FederationError, match=r"at least 1 of 3 sites .* 0 did"):
        one_round(TaskFedAvg(), lambda key, message: Error(2, "all fail"))

    calls = []

    def second_time_lucky(key: str, message: Message) -> RecordDict | Error:
        calls.append(key)
        return update(key, message) if key != "b" or calls.count("b") > 1 else Error(2, "once")

    strategy = TaskFedAvg(on_failure="retry", retries=2)
    _, metrics, _ = one_round(strategy, second_time_lucky)
    assert calls.count("b") == 2 and metrics["num-examples"] == 58


def test_a_draw_depends_on_seed_and_round_only() -> None:
    def drawn(order: int, seed: int) -> list[str]:
        return sorted(one_round(TaskFedAvg(fraction_train=0.34, seed=seed), order=order)[2].asked)

    assert drawn(1, 0) == drawn(-1, 0) and len(drawn(1, 0)) == 1
    assert len({tuple(drawn(1, seed)) for seed in range(12)}) > 1


def test_two_nodes_with_one_key() -> None:
    grid = Sites(update)
    grid.keys = {100: "a", 101: "a", 102: "c"}
    strategy = TaskFedAvg()
    messages = strategy.configure_train(1, wire.pack(parts(RNG)), ConfigRecord(), grid)
    assert len(messages) == 2 and "calls itself a" in strategy.roster.refused[101]


def test_a_site_that_restarts_is_let_in_again() -> None:
    grid = Sites(update)
    strategy = TaskFedAvg(min_sites=3)
    assert len(strategy.roster.refresh(grid)) == 3
    grid.keys = {100: "a", 101: "b", 102: "c", 103: "b"}  # b is back before Flower knows that its old node is gone
    assert [site.node_id for site in strategy.roster.refresh(grid)] == [100, 101, 102]
    grid.keys = {100: "a", 102: "c", 103: "b"}
    assert [site.node_id for site in strategy.roster.refresh(grid)] == [100, 103, 102]
    grid.keys = {100: "a"}  # min_sites is for the start
    assert len(strategy.roster.refresh(grid)) == 1


class Told(Sites):
    """Sites of which c tells other things of itself."""

    def __init__(self, told: dict, counts: dict) -> None:
        super().__init__(update)
        self.told, self.counts = told, counts

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        for reply in super().send_and_receive(messages, timeout=timeout):
            if self.keys[reply.metadata.src_node_id] == "c" and "site" in reply.content:
                reply.content["site"] = ConfigRecord({**reply.content["site"], **self.told})
                reply.content["counts"] = MetricRecord({**reply.content["counts"], **self.counts})
            yield reply


@pytest.mark.parametrize(
    ("told", "counts", "sentence"),
    [
        ({}, {"train.x": float("nan")}, "expected train.x to be a number of samples up to 1e+15, got nan"),
        ({}, {"train.x": float("inf")}, "expected train.x to be a number of samples up to 1e+15, got inf"),
        ({}, {"train.x": -5}, "expected train.x to be a number of samples up to 1e+15, got -5"),
        ({}, {"train.x": 1e16}, "expected train.x to be a number of samples up to 1e+15, got 1e+16"),
        ({"tasks": 3}, {}, "expected tasks to be a list of names, got 3"),
        ({"tasks": "xy"}, {}, "expected tasks to be a list of names, got 'xy'"),
        ({"tasks": [1]}, {}, "expected tasks to be a list of names, got [1]"),
        ({"num-partitions": "abc"}, {}, "expected num-partitions to be an integer of 1 or more, got 'abc'"),
        ({"num-partitions": 0}, {}, "expected num-partitions to be an integer of 1 or more, got 0"),
        ({"num-partitions": 10**9}, {}, None),  # nobody else says so
        ({}, {"class.x.normal": 3}, None),
    ],
)
def test_a_card_that_makes_no_sense_is_refused_alone(told: dict, counts: dict, sentence: str | None) -> None:
    grid, strategy = Told(told, counts), TaskFedAvg(weighting="tasks", join_timeout=1.0)
    messages = strategy.configure_train(1, wire.pack(parts(RNG)), ConfigRecord(), grid)
    strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert strategy.roster.refused == ({} if sentence is None else {102: sentence})
    assert strategy.train_result is not None and strategy.train_result.answered == (2 if sentence else 3)


def test_a_wait_for_more_sites_says_who_is_waited_for() -> None:
    grid = Told({"num-partitions": 10**9}, {})
    grid.keys = {102: "c"}
    with pytest.raises(FederationError, match=r"at least 1000000000 sites .* found c; .* lower the num-partitions"):
        TaskFedAvg(join_timeout=0.0).roster.refresh(grid)


def test_a_silent_node_is_asked_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[tuple[float, float]] = []
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, sleep=lambda seconds: None)
    monkeypatch.setattr(sites, "time", clock)

    class Silent(Sites):
        def get_node_ids(self) -> list[int]:
            return [*super().get_node_ids(), 999]

        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
            messages = list(messages)
            if any(message.metadata.dst_node_id == 999 for message in messages):
                assert timeout is not None
                waited.append((clock.now, timeout))
                clock.now += timeout
            yield from super().send_and_receive([m for m in messages if m.metadata.dst_node_id != 999])

    roster, grid = TaskFedAvg(min_sites=3).roster, Silent(update)
    while clock.now < 3600:
        assert len(roster.refresh(grid)) == 3
        clock.now += 10
    assert waited == [(0.0, 60.0), (180.0, 60.0), (480.0, 60.0), (1020.0, 60.0), (2040.0, 60.0)]
    waited.clear()
    with pytest.raises(FederationError, match=r"at least 4 sites within 600 s, found a, b, c; .* lower min-sites"):
        TaskFedAvg(min_sites=4).roster.refresh(grid)
    assert [seconds for _, seconds in waited] == [60.0, 120.0, 240.0, 180.0, 1.0]  # one may need long for its data


def test_a_round_without_sites_ends_the_run() -> None:
    grid, strategy, arrays = Sites(update), TaskFedAvg(), wire.pack(parts(RNG))
    assert not strategy.configure_train(1, arrays, ConfigRecord({"tasks": ["z"]}), grid)  # sites, but none for z
    grid.keys = {}
    with pytest.raises(FederationError, match="Round 2: expected sites to train, none is connected; start them again"):
        strategy.configure_train(2, arrays, ConfigRecord(), grid)


def test_only_sites_with_an_active_task_are_drawn() -> None:
    for server_round in range(20):
        grid = Sites(update)
        strategy = TaskFedAvg(fraction_train=0.3, seed=server_round)
        (message,) = strategy.configure_train(1, wire.pack(parts(RNG)), ConfigRecord({"tasks": ["x"]}), grid)
        assert grid.keys[message.metadata.dst_node_id] in {"a", "c"}


def test_every_strategy_has_a_row() -> None:
    assert set(STRATEGIES.values()) >= {TaskFedAvg, TaskFedProx, TaskFedAdam, TaskFedYogi, TaskFedBN, Alone}
