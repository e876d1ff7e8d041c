"""A model with input parts, and sites that have different kinds of images and answer from a table."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from mtfed.strategies import wire
from mtfed.strategies.axes import Axis, AxisGraph
from mtfed.strategies.precision import write_precision

TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
Parts = dict[str, dict[str, np.ndarray]]
RNG = np.random.default_rng
TASKS = {"left": {"a": 30}, "right": {"b": 10}, "upper": {"a": 7}, "whole": {"a": 10, "b": 50}}
INPUTS = {"left": ["2d", "ct"], "right": ["3d", "ct"], "upper": ["2d", "x-ray"], "whole": ["2d", "3d"]}
UNKNOWN = "input.mri"  # no site has such images
WIDTH, HIDDEN = 6, 8
SHAPES = {
    "encoder": {"up.weight": (HIDDEN, WIDTH), "down.weight": (WIDTH, HIDDEN), "norm.weight": (WIDTH,)},
    "input.2d": {"flat.weight": (WIDTH, 5), "flat.norm.weight": (WIDTH,), "flat.norm.bias": (WIDTH,)},
    "input.3d": {"deep.weight": (WIDTH, 9), "deep.reader": (4, HIDDEN), "deep.writer": (HIDDEN, 3)},
    "input.ct": {"ct.latent": (WIDTH,)},
    "input.x-ray": {"x-ray.latent": (WIDTH,)},
    UNKNOWN: {"mri.latent": (WIDTH,), "mri.reader": (2, HIDDEN)},
    "decoder.a": {"a.weight": (2, WIDTH)},
    "decoder.b": {"b.weight": (2, WIDTH)},
}
AXES = AxisGraph(
    {
        "up.weight": (None, ("hidden", "width")), "down.weight": (None, ("width", "hidden")),
        "deep.weight": (None, ("width", None)), "deep.reader": (None, (None, "hidden")),
        "deep.writer": (None, ("hidden", None)), "flat.weight": (None, ("width", None)),
        "mri.reader": (None, (None, "hidden")), "a.weight": (None, (None, "width")),
        "b.weight": (None, (None, "width")),
        **{f"{name}": (None, ("width",)) for name in ("norm.weight", "flat.norm.weight", "flat.norm.bias",
                                                       "ct.latent", "x-ray.latent", "mri.latent")},
    },
    {"hidden": Axis(HIDDEN, growable=True, readers=("down.weight", "deep.reader", "mri.reader")), "width": Axis(WIDTH)},
)  # fmt: skip
MATCHING: dict[str, dict[str, Any]] = {name: {"axes": AXES} for name in ("bayesian", "growing", "rebasin", "pfnm")}


def draw(seed: list[int]) -> Parts:
    rng = RNG(seed)
    return {
        part: {name: rng.normal(size=shape).astype("f") for name, shape in tensors.items()}
        for part, tensors in SHAPES.items()
    }


def step(key: str, number: int, sent: Parts, size: float = 0.01) -> Parts:
    """Return what a site was sent plus steps of its own; they depend on the site, the round and the tensor alone."""
    return {
        part: {
            name: (x + size * RNG([*key.encode(), number, *name.encode()]).normal(size=x.shape)).astype("f")
            for name, x in own.items()
        }
        for part, own in sent.items()
    }


def reordered(key: str, parts: Parts) -> Parts:
    """Return a site's parts with its units in another order."""
    moved, rng = {name: x for own in parts.values() for name, x in own.items()}, RNG([*key.encode(), 3])
    moved = AXES.permute(moved, {label: axis.random_permutation(rng) for label, axis in AXES.axes.items()})
    return {part: {name: moved[name] for name in own} for part, own in parts.items()}


def precision_of(key: str, parts: Parts) -> Parts:
    return {
        part: {
            name: RNG([*key.encode(), *name.encode()]).exponential(5.0, x.shape).astype("f") for name, x in own.items()
        }
        for part, own in parts.items()
    }


class InputSites(Grid):
    """Sites that return all parts that they are sent, in an order of the test's choosing.

    With ``measured`` they also send their precision; with ``reports``, their cards contain their inputs. The units of
    the sites ``moved`` are in another order.
    """

    def __init__(
        self, order: int = 1, *, measured: bool = False, reports: bool = True, moved: Collection[str] = ()
    ) -> None:
        self.keys = dict(enumerate(TASKS, start=100))
        self.order, self.measured, self.reports, self.moved = order, measured, reports, moved
        self.inputs = INPUTS
        self.sent: dict[str, set[str]] = {}
        self.returned: dict[str, Parts] = {}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        for message in list(messages)[:: self.order]:
            key = self.keys[message.metadata.dst_node_id]
            describes = message.metadata.message_type == "query.describe"
            yield Message(self._card(key) if describes else self._train(key, message), reply_to=message)

    def _card(self, key: str) -> RecordDict:
        card = {"key": key, "tasks": list(TASKS[key])} | ({"inputs": self.inputs[key]} if self.reports else {})
        counts = MetricRecord({f"train.{task}": n for task, n in TASKS[key].items()})
        return RecordDict({"site": ConfigRecord(card), "counts": counts})

    def _train(self, key: str, message: Message) -> RecordDict:
        arrays = message.content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        sent = wire.unpack(arrays)
        self.sent[key] = set(sent)
        own = step(key, int(message.content["config"]["server-round"]), sent)
        precision = precision_of(key, own)
        if key in self.moved:
            own, precision = reordered(key, own), reordered(key, precision)
        self.returned[key] = own
        counts = {f"num-examples.{task}": n for task, n in TASKS[key].items()}
        metrics = {"num-examples": sum(TASKS[key].values()), "pulled": int("pull" in message.content), **counts}
        reply = {"arrays": wire.repack(arrays, own), "metrics": MetricRecord(metrics)}
        if self.measured:
            reply["precision"] = write_precision(wire.arrays_in(wire.repack(arrays, precision)))
        return RecordDict(reply)

    def get_node_ids(self) -> list[int]:
        return list(self.keys)[:: self.order]

    create_message = push_messages = pull_messages = run = set_run = None  # type: ignore[assignment]


InputSites.__abstractmethods__ = frozenset()


def play(strategy: Any, grid: InputSites, arrays: ArrayRecord, number: int = 1) -> ArrayRecord:
    """Return the global arrays after a round."""
    messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
    merged, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
    assert merged is not None and not strategy.failures, strategy.failures
    return merged
