"""The in-process engine with real workers: results do not depend on their number, and no process is left behind."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from mtfed.federation.local.grid import run_local
from mtfed.strategies import FederationError, TaskFedAvg, wire

echo = ClientApp()


@echo.train()
def train(message: Message, context: Context) -> Message:
    """Reply and count messages in the node's state; fail, hang or die if the message's config names this node."""
    node, config = int(context.node_config["partition-id"]), message.content["config"]
    if node == config.get("fails"):
        raise ValueError("no such scan")
    if node == config.get("hangs"):
        time.sleep(60)
    if node == config.get("dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    seen = context.state.get("seen", MetricRecord({"count": 0}))["count"] + 1
    context.state["seen"] = MetricRecord({"count": seen})
    record = ArrayRecord()
    for key, array in message.content["arrays"].items():
        record[key] = wire.FlatArray(array.numpy() + np.asarray(node + 1, array.dtype))
    metrics = MetricRecord({"num-examples": node + 1, "pid": os.getpid(), "seen": seen, "node": node})
    return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)


def run(main: Callable[[Grid], None], sites: int = 4, workers: int | None = 2, client: ClientApp = echo) -> None:
    """Run a function as the ServerApp of a simulated federation."""
    app = ServerApp()
    app.main()(lambda grid, context: main(grid))
    before = children()
    run_local(app, client, {}, sites, workers)
    assert children() <= before, "a worker was left behind"


def children() -> set[str]:
    """Return the child processes of this process, including those of other tests."""
    pids = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return {pid for pid in pids if not is_zombie(pid)}


def is_zombie(pid: str) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def messages(grid: Grid, size: int = 5, **config: int) -> list[Message]:
    record = ArrayRecord()
    record["a"] = wire.FlatArray(np.arange(size, dtype="f"))
    record["plain"] = Array(np.arange(3))
    content = RecordDict({"arrays": record, "config": ConfigRecord(config)})
    return [Message(content, dst_node_id=node, message_type="train") for node in sorted(grid.get_node_ids())]


def by_node(replies: Iterator[Message]) -> dict[int, Message]:
    return {reply.metadata.src_node_id - 1000: reply for reply in replies}


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_arrays_and_state_travel_both_ways(workers: int) -> None:
    def main(grid: Grid) -> None:
        for round_, size in enumerate((5, 70_000, 3, 1_000_000), start=1):  # buffers grow and are reused
            replies = by_node(grid.send_and_receive(messages(grid, size)))
            assert sorted(replies) == [0, 1, 2, 3]
            for node, reply in replies.items():
                np.testing.assert_array_equal(
                    reply.content["arrays"]["a"].numpy(), np.arange(size, dtype="f") + node + 1
                )
                np.testing.assert_array_equal(reply.content["arrays"]["plain"].numpy(), np.arange(3) + node + 1)
                assert reply.content["metrics"]["seen"] == round_
            assert len({reply.content["metrics"]["pid"] for reply in replies.values()}) <= workers

    run(main, workers=workers)


def test_an_exception_at_one_site_does_not_affect_others() -> None:
    def main(grid: Grid) -> None:
        replies = by_node(grid.send_and_receive(messages(grid, fails=2)))
        assert replies[2].error.code == 2
        assert replies[2].error.reason.startswith("ValueError: no such scan\nTraceback")
        assert all(replies[i].has_content() for i in (0, 1, 3))

    run(main)


def test_a_worker_that_dies_is_replaced() -> None:
    def main(grid: Grid) -> None:
        replies = by_node(grid.send_and_receive(messages(grid, dies=1)))
        assert replies[1].error.code == 8 and "exit code -9" in replies[1].error.reason
        assert all(reply.has_content() for reply in by_node(grid.send_and_receive(messages(grid))).values())

    run(main)


def test_a_worker_that_hangs_is_stopped() -> None:
    def main(grid: Grid) -> None:
        start = time.monotonic()
        replies = by_node(grid.send_and_receive(messages(grid, hangs=0), timeout=1.5))
        assert sorted(replies) == [1, 2, 3] and time.monotonic() - start < 10
        assert sorted(by_node(grid.send_and_receive(messages(grid)))) == [0, 1, 2, 3]

    run(main)


def test_messages_can_be_sent_while_others_are_unanswered() -> None:
    def main(grid: Grid) -> None:
        replies = grid.send_and_receive(messages(grid))
        first = next(replies)
        again = by_node(
            grid.send_and_receive(messages(grid))
        )  # also collects replies that the first call still waits for
        assert sorted(again) == [0, 1, 2, 3]
        assert len({first.metadata.src_node_id, *(r.metadata.src_node_id for r in replies)}) == 4

    run(main)


def test_push_and_pull() -> None:
    def main(grid: Grid) -> None:
        ids = set(grid.push_messages(messages(grid)))
        deadline = time.monotonic() + 20
        while ids and time.monotonic() < deadline:
            ids -= {reply.metadata.reply_to_message_id for reply in grid.pull_messages(ids)}
        assert not ids

    run(main)


def test_flowers_own_fedavg_runs_on_this_engine() -> None:
    def main(grid: Grid) -> None:
        record = ArrayRecord()
        record["a"] = Array(np.zeros(3, "f"))
        result = FedAvg(fraction_evaluate=0, min_train_nodes=4, min_available_nodes=4).start(grid, record, num_rounds=2)
        expected = sum((i + 1) * (i + 1) for i in range(4)) / 10 * 2
        np.testing.assert_allclose(result.arrays["a"].numpy(), expected)

    run(main)


def test_an_error_in_the_server_leaves_no_process() -> None:
    def main(grid: Grid) -> None:
        next(grid.send_and_receive(messages(grid, hangs=3)))
        raise FederationError("stop")

    before = children()
    with pytest.raises(FederationError, match="stop"):
        run(main)
    assert children() <= before


def test_memory_does_not_grow_with_rounds() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def main(grid: Grid) -> None:
        strategy, arrays = TaskFedAvg(), ArrayRecord()
        arrays["a"] = wire.FlatArray(np.zeros(500_000, "f"))
        for server_round in range(40):
            if server_round == 10:
                before = resident()
            arrays, _ = strategy.aggregate_train(
                server_round,
                grid.send_and_receive(strategy.configure_train(server_round, arrays, ConfigRecord(), grid)),
            )
        assert resident() - before < 4 * 2_000_000  # 30 rounds moved 240 MB

    run(main)


@pytest.mark.parametrize("strategy", ["fedavg", "bayesian"])
def test_the_same_weights_with_any_number_of_workers(strategy: str, small: dict, tmp_path: Path) -> None:
    from mtfed.clients.app import app as client_app
    from mtfed.record.run import Run
    from mtfed.server import app as server_app

    results = []
    for workers in (1, 2, 3):
        out = tmp_path / str(workers)
        run_local(server_app, client_app, small | {"out": str(out), "strategy": strategy}, 4, workers)
        (folder,) = out.iterdir()
        digest = hashlib.sha256((folder / "checkpoints" / "last.safetensors").read_bytes()).hexdigest()
        results.append((digest, Run.open(folder).lines("metrics.jsonl")))
    assert results[0] == results[1] == results[2]


def test_a_worker_that_dies_while_idle_is_replaced() -> None:
    def main(grid: Grid) -> None:
        replies = by_node(grid.send_and_receive(messages(grid)))
        for pid in {reply.content["metrics"]["pid"] for reply in replies.values()}:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
        assert len(by_node(grid.send_and_receive(messages(grid)))) == 4

    run(main)


def test_large_state_does_not_block() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        count = int(context.state["big"]["count"].numpy()[0]) + 1 if "big" in context.state else 1
        context.state["big"] = ArrayRecord([np.zeros(500_000)])
        context.state["big"]["count"] = Array(np.array([count]))
        return Message(RecordDict({"metrics": MetricRecord({"count": count})}), reply_to=message)

    def main(grid: Grid) -> None:
        for server_round in (1, 2, 3):
            replies = by_node(grid.send_and_receive(messages(grid), timeout=30))
            assert [reply.content["metrics"]["count"] for reply in replies.values()] == [server_round] * 4

    run(main, client=app)


def test_our_strategy_runs_an_app_without_a_describe_function() -> None:
    def main(grid: Grid) -> None:
        record = ArrayRecord()
        record["a"] = Array(np.zeros(3, "f"))
        result = TaskFedAvg(evaluate=False).start(grid, record, num_rounds=2)
        np.testing.assert_allclose(result.arrays["a"].numpy(), sum((i + 1) * (i + 1) for i in range(4)) / 10 * 2)

    run(main)


def test_large_messages_do_not_block() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    def main(grid: Grid) -> None:
        for _ in (1, 2):  # a worker whose jobs are short gets its next message early
            content = RecordDict({"config": ConfigRecord({"blob": b"x" * 1_000_000})})
            out = [Message(content, dst_node_id=node, message_type="train") for node in grid.get_node_ids()]
            assert len(by_node(grid.send_and_receive(out))) == 4

    run(main, workers=1, client=app)


def test_workers_compute_with_several_threads() -> None:
    import torch

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(2)
        torch.ones(200_000).exp()
        return Message(RecordDict(), reply_to=message)

    def main(grid: Grid) -> None:
        torch.ones(200_000).exp()
        assert len(by_node(grid.send_and_receive(messages(grid), timeout=10))) == 1

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(main, sites=1, client=app)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
