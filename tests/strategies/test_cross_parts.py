"""Parts ``cross.TASK``: all sites are sent all of them; sites with the task return them and count by its samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from mtfed.strategies import STRATEGIES, wire
from mtfed.strategies.axes import Axis, AxisGraph

TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
SITES = {"left": {"a": 30}, "right": {"b": 10}, "whole": {"a": 10, "b": 50}}
SHAPES = {
    "encoder": {"encoder.fc1.weight": (4, 3), "encoder.fc2.weight": (3, 4)},
    "cross.a": {"cross.a.fc1.weight": (5, 3), "cross.a.norm.weight": (3,), "cross.a.norm.bias": (3,)},
    "cross.b": {"cross.b.fc1.weight": (5, 3), "cross.b.norm.weight": (3,), "cross.b.norm.bias": (3,)},
    "decoder.a": {"a.weight": (2, 3)},
    "decoder.b": {"b.weight": (2, 3)},
}
AXES = AxisGraph(
    {"encoder.fc1.weight": (None, ("hidden", None)), "encoder.fc2.weight": (None, (None, "hidden"))},
    {"hidden": Axis(4, growable=True, readers=("encoder.fc2.weight",))},
)
Parts = dict[str, dict[str, np.ndarray]]


def parts(seed: list[int]) -> Parts:
    rng = np.random.default_rng(seed)
    return {
        part: {name: rng.normal(size=shape).astype("f") for name, shape in tensors.items()}
        for part, tensors in SHAPES.items()
    }


def near(key: str) -> Parts:
    """Return what a site has trained: the first model and a little of its own."""
    first, own = parts([0]), parts(list(key.encode()))
    return {part: {name: x + 0.01 * own[part][name] for name, x in tensors.items()} for part, tensors in first.items()}


class Sites(Grid):
    """Sites that return the parts they train."""

    def __init__(self) -> None:
        self.keys = dict(enumerate(SITES, start=100))
        self.sent: dict[str, set[str]] = {}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        for message in messages:
            key = self.keys[message.metadata.dst_node_id]
            tasks = SITES[key]
            if message.metadata.message_type == "query.describe":
                counts = MetricRecord({f"train.{task}": n for task, n in tasks.items()})
                card = {"site": ConfigRecord({"key": key, "tasks": list(tasks)}), "counts": counts}
                yield Message(RecordDict(card), reply_to=message)
                continue
            arrays = message.content["arrays"]
            assert isinstance(arrays, ArrayRecord)
            self.sent[key] = set(wire.unpack(arrays))
            own = wire.select(arrays, [part for part in self.sent[key] if wire.task_of(part) in ("", *tasks)])
            metrics = {"num-examples": sum(tasks.values()), **{f"num-examples.{task}": n for task, n in tasks.items()}}
            reply = {"arrays": wire.repack(own, near(key)), "metrics": MetricRecord(metrics)}
            yield Message(RecordDict(reply), reply_to=message)

    def get_node_ids(self) -> list[int]:
        return list(self.keys)

    create_message = push_messages = pull_messages = run = set_run = None  # type: ignore[assignment]


Sites.__abstractmethods__ = frozenset()


def one_round(strategy: Any) -> tuple[Parts, Sites, ArrayRecord]:
    grid, arrays = Sites(), wire.pack(parts([0]))
    messages = strategy.configure_train(1, arrays, ConfigRecord(), grid)
    merged, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
    return wire.unpack(merged), grid, merged


PARTS = [
    ("encoder", ""),
    ("decoder.lungs", "lungs"),
    ("cross.lungs", "lungs"),
    ("cross.left-lung_2", "left-lung_2"),
    ("stem.0", ""),
    ("", ""),
]


@pytest.mark.parametrize(("part", "task"), PARTS)
def test_which_task_a_part_belongs_to(part: str, task: str) -> None:
    assert wire.task_of(part) == task


SETTINGS: dict[str, dict[str, Any]] = {"bayesian": {"axes": AXES}, "growing": {"axes": AXES}, "rebasin": {"axes": AXES}}


@pytest.mark.parametrize("weighting", ["samples", "uniform", "tasks"])
@pytest.mark.parametrize("name", ["fedavg", "fedprox", "bayesian", "growing", "rebasin", "fola", "fisher", "fedbn"])
def test_a_tasks_part_is_the_mean_over_its_sites(name: str, weighting: str) -> None:
    merged, grid, _ = one_round(STRATEGIES[name](weighting=weighting, **SETTINGS.get(name, {})))
    shared = {"encoder", "cross.a", "cross.b"}
    decoders = {key: {f"decoder.{task}" for task in tasks} for key, tasks in SITES.items()}
    assert grid.sent == {key: shared | own for key, own in decoders.items()}
    samples = {task: sum(tasks.get(task, 0) for tasks in SITES.values()) for task in "ab"}
    shares = {
        "samples": {key: sum(tasks.values()) for key, tasks in SITES.items()},
        "uniform": dict.fromkeys(SITES, 1),
        "tasks": {key: sum(n / samples[task] for task, n in tasks.items()) for key, tasks in SITES.items()},
    }[weighting]
    for part, tensors in SHAPES.items():
        task = wire.task_of(part)
        counts = {key: tasks.get(task, 0) for key, tasks in SITES.items()} if task else shares
        if weighting == "uniform":
            counts = {key: int(n > 0) for key, n in counts.items()}
        for tensor in tensors:
            mean = sum(n * np.float64(near(key)[part][tensor]) for key, n in counts.items()) / sum(counts.values())
            np.testing.assert_allclose(merged[part][tensor], mean, rtol=1e-5, atol=1e-7, err_msg=tensor)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_results_in_complete_models(name: str) -> None:
    strategy = STRATEGIES[name](**SETTINGS.get(name, {}))
    _, grid, merged = one_round(strategy)
    for site, model in strategy.trained_models(merged).items():
        names = set(wire.unpack(model))
        assert names == (grid.sent[site] if site else set(SHAPES))


def test_norms_of_parts_that_a_site_does_not_train_are_the_average() -> None:
    strategy = STRATEGIES["fedbn"]()
    _, _, merged = one_round(strategy)
    left = wire.unpack(strategy.trained_models(merged)["left"])
    np.testing.assert_array_equal(left["cross.a"]["cross.a.norm.bias"], near("left")["cross.a"]["cross.a.norm.bias"])
    average = wire.unpack(merged)["cross.b"]["cross.b.norm.bias"]
    np.testing.assert_array_equal(left["cross.b"]["cross.b.norm.bias"], average)
