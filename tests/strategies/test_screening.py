"""Replays and outliers are recognised by earlier updates."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, RecordDict

from helpers.rounds import drift, one_round, parts, update
from mtfed.strategies import Alone, TaskFedAdam, TaskFedAvg, TaskFedBN, Update, wire
from mtfed.strategies.screening import MAX_DISTANCES, MAX_UPDATES, RECENT_ROUNDS, Memory, distances

SAME, OTHER = np.random.default_rng(1), np.random.default_rng(2)


FIRST, SECOND = wire.pack(parts(SAME)), wire.pack(parts(OTHER))


@pytest.mark.parametrize(
    ("sent", "given", "refused"),  # a letter for each round: the model that is sent, and the update that site b returns
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


def test_a_site_may_return_the_update_of_another_site() -> None:
    strategy = TaskFedAvg()

    def answer(key: str, message: Message) -> RecordDict:
        content = drift("abc"[("abc".index(key) + message.content["config"]["server-round"]) % 3], message)
        content["metrics"] = drift(key, message)["metrics"]
        return content

    one_round(strategy, answer, arrays=FIRST)
    one_round(strategy, answer, arrays=SECOND, number=2)
    assert not strategy.failures


@pytest.mark.parametrize("strategy_class", [TaskFedAvg, TaskFedAdam, TaskFedBN, Alone])
def test_a_replay_is_recognised_after_a_restart(strategy_class: type[TaskFedAvg]) -> None:
    strategy, after = strategy_class(), strategy_class()
    arrays, _, _ = one_round(strategy, drift)

    def stale(key: str, message: Message) -> RecordDict:
        message.content["config"]["server-round"] = 1
        content = drift(key, message)
        if key == "b":  # its update of round 1, whatever it is sent
            content["arrays"] = first["b"]
        return content

    first: dict[str, ArrayRecord] = {}
    one_round(strategy_class(), lambda key, m: first.update({key: (content := drift(key, m))["arrays"]}) or content)
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
    outcomes = []
    for number in range(1, 12):
        memory.begin_round(number, sent)
        for site in "abcde":
            parts = ["encoder", "decoder.x"] if site in "ace" else ["encoder"]
            far = {part: float(rng.lognormal(sigma=1.0)) for part in parts}
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
                outcomes.append(False)
            except ValueError as error:
                assert "times the other sites' median of" in str(error)
                outcomes.append(True)
            assert outcomes[-1] == refused, (number, site)
            if not refused:
                accepted += [(number, site, part, distance) for part, distance in far.items()]
    assert any(outcomes) == bool(ratio) and not all(outcomes)


@pytest.mark.parametrize(
    ("moves", "refused"),
    [
        ({"a": 1.0, "b": 1.0, "c": 9.0}, []),
        ({"a": 1.0, "b": 1.0, "c": 11.0}, ["c"]),
        ({"a": 1e9, "b": 1.0, "c": 1.0}, []),  # nothing can be compared with the first
        ({"a": 0.0, "b": 0.0, "c": 1.0}, []),  # the median is 0
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
