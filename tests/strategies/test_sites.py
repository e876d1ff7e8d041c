"""The roster of sites: cards, restarts, silent nodes, and the wait for sites that are missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord

from helpers.rounds import RNG, Sites, parts, update
from mtfed.strategies import (
    FederationError,
    TaskFedAvg,
    sites,
    wire,
)


def test_the_second_of_two_nodes_with_one_key_is_refused() -> None:
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


class OtherCard(Sites):
    """Sites, of which c has a different card."""

    def __init__(self, card: dict, counts: dict) -> None:
        super().__init__(update)
        self.card, self.counts = card, counts

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        for reply in super().send_and_receive(messages, timeout=timeout):
            if self.keys[reply.metadata.src_node_id] == "c" and "site" in reply.content:
                reply.content["site"] = ConfigRecord({**reply.content["site"], **self.card})
                reply.content["counts"] = MetricRecord({**reply.content["counts"], **self.counts})
            yield reply


@pytest.mark.parametrize(
    ("card", "counts", "sentence"),
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
        ({"num-partitions": 10**9}, {}, None),  # no other site reports it
        ({}, {"class.x.normal": 3}, None),
    ],
)
def test_only_an_invalid_card_is_refused(card: dict, counts: dict, sentence: str | None) -> None:
    grid, strategy = OtherCard(card, counts), TaskFedAvg(weighting="tasks", join_timeout=1.0)
    messages = strategy.configure_train(1, wire.pack(parts(RNG)), ConfigRecord(), grid)
    strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert strategy.roster.refused == ({} if sentence is None else {102: sentence})
    assert strategy.train_result.answered == (2 if sentence else 3)


def test_the_error_after_waiting_names_the_sites_that_joined() -> None:
    grid = OtherCard({"num-partitions": 10**9}, {})
    grid.keys = {102: "c"}
    with pytest.raises(FederationError, match=r"at least 1000000000 sites .* found c; .* lower the num-partitions"):
        TaskFedAvg(join_timeout=0.0).roster.refresh(grid)


def test_a_silent_node_is_asked_at_growing_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
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
    # Before the first round the timeout grows, because a site may need long to read its data.
    assert [seconds for _, seconds in waited] == [60.0, 120.0, 240.0, 180.0, 1.0]
