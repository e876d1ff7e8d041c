"""Screening: what is refused, what is let in, and what a round does of which nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from helpers.rounds import drift, one_round, parts, same, update
from mtfed.strategies import Alone, BayesianMatching, FederationError, TaskFedAdam, TaskFedAvg, TaskFedBN, Update, wire
from mtfed.strategies.memory import MAX_DISTANCES, MAX_UPDATES, RECENT_ROUNDS, Memory, distances

from mtfed.federation.round_record import mean_losses
from mtfed.learning.metrics import TaskMetrics, pool
from mtfed.tasks.task import Task

Answer = Callable[[str, Message], RecordDict | Error | None]


def without(*keys: str) -> Answer:
    """Return an answer in which site c leaves arrays out."""

    def answer(key: str, message: Message) -> RecordDict:
        content = drift(key, message)
        for name in keys if key == "c" else ():
            del content["arrays"][name]
        return content

    return answer


def told(**metrics: float) -> Answer:
    """Return an answer in which site c tells other metrics."""

    def answer(key: str, message: Message) -> RecordDict:
        content = drift(key, message)
        for name, value in metrics.items() if key == "c" else ():
            content["metrics"][name.replace("_", "-")] = value
        return content

    return answer


def filled(value: float) -> Answer:
    """Return an answer in which site c gives an encoder of one number."""

    def answer(key: str, message: Message) -> RecordDict:
        content = drift(key, message)
        if key == "c":
            content["arrays"]["encoder:float32"] = wire.FlatArray(np.full(13, value, "f"))
        return content

    return answer


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            without("encoder:int64"),
            "it contains 'encoder' without 'encoder:int64'; a part must be whole or left out",
        ),
        (
            without("encoder:float32"),
            "it contains 'encoder' without 'encoder:float32'; a part must be whole or left out",
        ),
        (
            without("encoder:float32", "encoder:int64", "decoder.x:float32", "decoder.y:float32"),
            "it contains no arrays",
        ),
        (told(num_examples=0), "it was trained on no samples: its num-examples is 0"),
        (told(num_examples=-3), "num-examples should be a number of samples up to 1e+15, it is -3"),
        (told(num_examples=float("nan")), "num-examples should be a number of samples up to 1e+15, it is nan"),
        (told(num_examples=1e16), "num-examples should be a number of samples up to 1e+15, it is 1e+16"),
        (filled(-2e10), "'encoder:float32' contains values beyond 1e+10; its training diverged"),
        (filled(float("nan")), "'encoder:float32' contains values that are not finite; its training diverged"),
        (filled(1e10), None),
        (without("decoder.x:float32"), None),
        (without("encoder:float32", "encoder:int64"), None),
        (without("manifest"), None),
        (told(num_examples=1), None),
    ],
)
def test_a_part_is_whole_or_left_out_and_somebody_was_counted(answer: Answer, reason: str | None) -> None:
    strategy = TaskFedAvg()
    one_round(strategy, answer)
    expected = [] if reason is None else [("c", f"its update was refused: {reason}")]
    assert [(failure.site, failure.reason) for failure in strategy.failures] == expected


def archive() -> bytes:
    buffer = BytesIO()
    np.savez(buffer, a=np.zeros(19, "f"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("record", "name"), [("arrays", "encoder:float32"), ("arrays", "manifest"), ("precision", "encoder:float32")]
)
@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"\x93NUMPY", b"\x80\x04K\x01.", archive()],
    ids=["nothing", "zip", "torn", "pickle", "archive"],
)
def test_bytes_that_are_no_array_are_refused_alone(record: str, name: str, content: bytes) -> None:
    def answer(key: str, message: Message) -> RecordDict:
        given = drift(key, message)
        if key == "c":
            told = ArrayRecord(dict(given["arrays"].items()) if record == "arrays" else {})
            told[name] = Array("float32", (19,), "numpy.ndarray", content)
            given[record] = told
        return given

    strategy = BayesianMatching()
    one_round(strategy, answer)
    assert [failure.site for failure in strategy.failures] == ["c"]
    assert f"{name!r} cannot be read as an array" in strategy.failures[0].reason


def test_a_part_left_out_is_averaged_over_those_who_gave_it() -> None:
    merged, _, _ = one_round(TaskFedAvg(), without("decoder.x:float32"))
    given: dict[str, np.ndarray] = {}
    one_round(TaskFedAvg(), lambda key, message: given.setdefault(key, content := drift(key, message)) and content)
    np.testing.assert_array_equal(
        merged["decoder.x:float32"].numpy(), given["a"]["arrays"]["decoder.x:float32"].numpy()
    )


# Metrics.


@pytest.mark.parametrize(
    ("forms", "left"),  # of the metric of sites a, b and c
    [
        ([[1.0], 1.0, 1.0], "a"),
        ([1.0, [1.0], [1.0, 2.0]], "bc"),
        ([[1.0], [1.0, 2.0], [1.0, 2.0]], "a"),
        ([1.0, 1.0, 1.0], ""),
        ([None, 1.0, 1.0], ""),
    ],
)
def test_metrics_of_another_form_than_most_are_left_out(forms: list, left: str) -> None:
    def answer(key: str, message: Message) -> RecordDict:
        given, form = drift(key, message), forms["abc".index(key)]
        if form is not None:
            given["metrics"]["loss-sum.x"] = form
        return given

    strategy, samples = TaskFedAvg(), {"a": 10, "b": 3, "c": 45}
    merged, metrics, grid = one_round(strategy, answer)
    assert same(merged, one_round(TaskFedAvg(), drift)[0]) and not strategy.failures  # nobody lost its weights
    assert metrics["num-examples"] == sum(n for key, n in samples.items() if key not in left)
    messages = strategy.configure_evaluate(1, merged, ConfigRecord(), grid)
    assert strategy.aggregate_evaluate(1, grid.send_and_receive(messages)) == metrics
    assert "".join(failure.site for failure in strategy.failures) == left
    result = strategy.evaluate_result
    assert result is not None and (result.server_round, result.asked, result.answered) == (1, 3, 3 - len(left))
    assert result.site_metrics.keys() == set("abc") - set(left) and list(result.failures) == strategy.failures


def test_sums_of_another_form_are_no_figures() -> None:
    task = Task(name="x", kind="classification", classes=("a", "b"))
    sums = TaskMetrics(task).sums() | {"x.count": 3}
    (name, *_) = [name for name, value in sums.items() if isinstance(value, list) and len(value) > 1]
    assert pool([task], sums).keys() == {"x"}
    for wrong in ({name: [1.0]}, {name: 1.0}, {"x.count": [3.0]}):
        assert not pool([task], sums | wrong)
    assert mean_losses({"seen.x": 2, "loss-sum.x": 3.0, "seen.y": [2], "loss-sum.y": 3.0}) == {"x": 1.5}
    assert np.isnan(mean_losses({"seen.x": 2, "loss-sum.x": [3.0]})["x"])


# A replay.

SAME, OTHER = np.random.default_rng(1), np.random.default_rng(2)
FIRST, SECOND = wire.pack(parts(SAME)), wire.pack(parts(OTHER))


@pytest.mark.parametrize(
    ("sent", "given", "refused"),  # a letter a round: which of two models is sent, which of two updates site b gives
    [
        ("ab", "xx", [2]),
        ("ab", "xy", []),
        ("aa", "xx", []),  # sent the same, its training changes nothing
        ("aba", "xyx", []),
        ("abb", "xyx", [3]),
        ("abab", "xxyx", [2, 4]),
        ("abba", "xxxx", [2, 3]),
    ],
)
def test_a_replay_is_refused(sent: str, given: str, refused: list[int]) -> None:
    strategy = TaskFedAvg()
    for number, (model, choice) in enumerate(zip(sent, given, strict=True), start=1):

        def answer(key: str, message: Message, choice: str = choice) -> RecordDict:
            if key != "b":
                return drift(key, message)
            content, values = update(key, message), parts(np.random.default_rng(ord(choice)))
            content["arrays"] = wire.repack(message.content["arrays"], values)
            del content["metrics"]["curve"]
            return content

        one_round(strategy, answer, arrays={"a": FIRST, "b": SECOND}[model], number=number)
    assert [(failure.site, failure.server_round) for failure in strategy.failures] == [("b", n) for n in refused]
    assert all("repeats an update of an earlier round" in failure.reason for failure in strategy.failures)


def test_a_site_may_give_what_another_gave() -> None:
    strategy = TaskFedAvg()

    def answer(key: str, message: Message) -> RecordDict:
        content = drift("abc"[("abc".index(key) + message.content["config"]["server-round"]) % 3], message)
        content["metrics"] = drift(key, message)["metrics"]
        return content

    one_round(strategy, answer, arrays=FIRST)
    one_round(strategy, answer, arrays=SECOND, number=2)
    assert not strategy.failures


@pytest.mark.parametrize("kind", [TaskFedAvg, TaskFedAdam, TaskFedBN, Alone])
def test_a_replay_is_known_after_a_restart(kind: type[TaskFedAvg]) -> None:
    strategy, after = kind(), kind()
    arrays, _, _ = one_round(strategy, drift)

    def stale(key: str, message: Message) -> RecordDict:
        message.content["config"]["server-round"] = 1
        content = drift(key, message)
        if key == "b":  # what it gave in round 1, whatever it is sent
            content["arrays"] = first["b"]
        return content

    first: dict[str, ArrayRecord] = {}
    one_round(kind(), lambda key, m: first.update({key: (content := drift(key, m))["arrays"]}) or content)
    after.restore(strategy.state())
    one_round(after, stale, arrays=arrays, number=2)
    assert [failure.site for failure in after.failures] == ["b"]


def test_the_memory_is_bounded() -> None:
    memory, arrays = Memory(max_norm_ratio=1e9), ArrayRecord()
    arrays["w"] = wire.FlatArray(np.zeros(2))
    for number in range(1, 40):
        memory.begin_round(number, arrays)
        for site in map(str, range(20)):
            values = {"w": np.array([number, int(site)], float)}
            memory.remember(site, memory.check(Update(site, values, 1, {}), arrays))
    assert {len(pairs) for pairs in memory._checksums.values()} == {MAX_UPDATES}
    assert {part: len(rows) for part, rows in memory._distances.items()} == {"": MAX_DISTANCES}


# An outlier.


def test_distances_are_euclidean_part_by_part() -> None:
    rng = np.random.default_rng(0)
    sent = wire.pack(parts(rng))
    given = {key: array.numpy() + 1 for key, array in wire.pack(parts(rng)).items() if key != wire.MANIFEST}
    got = distances(given, sent, chunk=3)
    expected: dict[str, float] = {}
    for key, values in given.items():
        for a, b in zip(values.tolist(), sent[key].numpy().tolist(), strict=True):
            part, dtype = key.split(":")
            expected[part] = expected.get(part, 0.0) + (float(a - b) ** 2 if dtype == "float32" else 0.0)
    assert got == pytest.approx({part: total**0.5 for part, total in expected.items()}, rel=1e-5)


@pytest.mark.parametrize("ratio", [1.5, 3.0, 0.0])
def test_outliers_equal_a_slow_reference(ratio: float) -> None:
    rng, memory = np.random.default_rng(4), Memory(ratio)
    sent = ArrayRecord()
    for part in ("encoder", "decoder.x"):
        sent[f"{part}:float64"] = wire.FlatArray(np.zeros(3))
    accepted: list[tuple[int, str, str, float]] = []
    told = []
    for number in range(1, 12):
        memory.begin_round(number, sent)
        for site in "abcde":
            held = ["encoder", "decoder.x"] if site in "ace" else ["encoder"]
            far = {part: float(rng.lognormal(sigma=1.0)) for part in held}
            refused = False
            for part, distance in far.items():
                others = sorted(d for r, s, p, d in accepted if p == part and s != site and number - r <= RECENT_ROUNDS)
                half = len(others) // 2
                if others and ratio:
                    median = others[half] if len(others) % 2 else (others[half - 1] + others[half]) / 2
                    refused |= distance > ratio * median
            values = {f"{part}:float64": np.array([0.0, distance, 0.0]) for part, distance in far.items()}
            try:
                memory.remember(site, memory.check(Update(site, values, 1, {}), sent))
                told.append(False)
            except ValueError as error:
                assert "times the other sites' median of" in str(error)
                told.append(True)
            assert told[-1] == refused, (number, site)
            if not refused:
                accepted += [(number, site, part, distance) for part, distance in far.items()]
    assert any(told) == bool(ratio) and not all(told)


@pytest.mark.parametrize(
    ("moves", "refused"),
    [
        ({"a": 1.0, "b": 1.0, "c": 9.0}, []),
        ({"a": 1.0, "b": 1.0, "c": 11.0}, ["c"]),
        ({"a": 1e9, "b": 1.0, "c": 1.0}, []),  # nobody has come before the first
        ({"a": 0.0, "b": 0.0, "c": 1.0}, []),  # nobody has moved: nothing to compare with
        ({"a": 1.0, "b": 50.0, "c": 1.0}, ["b"]),
    ],
)
def test_the_site_that_moved_too_far_is_named(moves: dict[str, float], refused: list[str]) -> None:
    strategy, arrays = TaskFedAvg(max_norm_ratio=10.0), ArrayRecord()
    arrays["w"] = wire.FlatArray(np.zeros(4))

    def answer(key: str, message: Message) -> RecordDict:
        content = drift(key, message)
        content["arrays"]["w"] = wire.FlatArray(np.array([0.0, moves[key], 0.0, 0.0]))
        return content

    one_round(strategy, answer, arrays=arrays)
    assert [failure.site for failure in strategy.failures] == refused
    assert all("its model moved by" in f.reason and "more than 10 times" in f.reason for f in strategy.failures)


# A round of which nothing is left.


def diverged(key: str, message: Message) -> RecordDict:
    content = drift(key, message)
    (name, *_) = [name for name in content["arrays"] if name.endswith("float32")]
    content["arrays"][name] = wire.FlatArray(np.full_like(content["arrays"][name].numpy(), np.nan))
    return content


def one_diverged(key: str, message: Message) -> RecordDict | Error | None:
    return {"a": diverged(key, message), "b": Error(2, "no disk"), "c": None}[key]


@pytest.mark.parametrize("kind", [TaskFedAvg, TaskFedAdam, TaskFedBN, Alone])
@pytest.mark.parametrize(("answer", "refused"), [(diverged, 3), (one_diverged, 1)])
def test_a_round_that_was_all_refused_keeps_the_model(
    kind: type[TaskFedAvg], answer: Answer, refused: int, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = kind()
    arrays, _, _ = one_round(strategy, drift)
    merged, metrics, _ = one_round(strategy, answer, arrays=arrays, number=2)
    assert same(merged, arrays) and dict(metrics) == {}
    assert strategy.train_result is not None and strategy.train_result.answered == 0
    assert caplog.messages[-1] == (
        f"Round 2: no reply could be used, {refused} of 3 were refused; the model stays as it was."
    )
    assert len(strategy.failures) == 3
    after, metrics, _ = one_round(strategy, drift, arrays=merged, number=3)  # and the run goes on
    assert metrics["num-examples"] == 58 and (kind is Alone or not same(after, merged))


def test_a_merge_that_is_not_finite_keeps_the_array(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(TaskFedAvg):
        def finish_merge(self) -> dict[str, np.ndarray]:
            return super().finish_merge() | {"decoder.x:float32": np.full(5, np.inf, "f")}

    merged, _, _ = one_round(Broken(), drift, arrays=FIRST)
    sound, _, _ = one_round(TaskFedAvg(), drift, arrays=FIRST)
    sound["decoder.x:float32"] = FIRST["decoder.x:float32"]
    assert same(merged, sound) and "the merge of 'decoder.x:float32' is not finite" in caplog.messages[-1]


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
