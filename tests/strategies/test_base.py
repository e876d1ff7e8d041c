"""Behaviour that all strategies share: the draw of sites, the parts they are sent, and a resumed run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord

from helpers.rounds import RNG, Sites, drift, normed, one_round, parts, same, update
from mtfed.record.run import Run
from mtfed.strategies import (
    STRATEGIES,
    FederationError,
    TaskFedAvg,
    TaskFedProx,
    wire,
)


def test_a_site_is_sent_the_parts_it_can_use() -> None:
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


def test_the_draw_depends_on_seed_and_round_only() -> None:
    def drawn(order: int, seed: int) -> list[str]:
        return sorted(one_round(TaskFedAvg(fraction_train=0.34, seed=seed), order=order)[2].asked)

    assert drawn(1, 0) == drawn(-1, 0) and len(drawn(1, 0)) == 1
    assert len({tuple(drawn(1, seed)) for seed in range(12)}) > 1


def test_only_sites_with_an_active_task_are_drawn() -> None:
    for server_round in range(20):
        grid = Sites(update)
        strategy = TaskFedAvg(fraction_train=0.3, seed=server_round)
        (message,) = strategy.configure_train(1, wire.pack(parts(RNG)), ConfigRecord({"tasks": ["x"]}), grid)
        assert grid.keys[message.metadata.dst_node_id] in {"a", "c"}


def test_a_round_without_sites_ends_the_run() -> None:
    grid, strategy, arrays = Sites(update), TaskFedAvg(), wire.pack(parts(RNG))
    assert not strategy.configure_train(1, arrays, ConfigRecord({"tasks": ["z"]}), grid)  # sites, but none for z
    grid.keys = {}
    with pytest.raises(FederationError, match="Round 2: expected sites to train, none is connected; start them again"):
        strategy.configure_train(2, arrays, ConfigRecord(), grid)


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


def test_a_merge_that_is_not_finite_keeps_the_array(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(TaskFedAvg):
        def finish_merge(self) -> dict[str, np.ndarray]:
            return super().finish_merge() | {"decoder.x:float32": np.full(5, np.inf, "f")}

    arrays = wire.pack(parts(RNG))
    merged, _, _ = one_round(Broken(), drift, arrays=arrays)
    expected, _, _ = one_round(TaskFedAvg(), drift, arrays=arrays)
    expected["decoder.x:float32"] = arrays["decoder.x:float32"]
    assert same(merged, expected) and "the merge of 'decoder.x:float32' is not finite" in caplog.messages[-1]
