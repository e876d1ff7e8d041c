"""Rounds of a strategy against sites that answer from a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from mtfed.strategies import wire

TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
RNG = np.random.default_rng(0)
SITES = {  # key -> samples per task
    "a": {"x": 10},
    "b": {"y": 3},
    "c": {"x": 5, "y": 40},
}


def parts(rng: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    return {
        "encoder": {"w": rng.normal(size=(3, 4)).astype("f"), "scalar": np.float32(rng.normal()), "seen": np.array(7)},
        "decoder.x": {"v": rng.normal(size=5).astype("f")},
        "decoder.y": {"v": rng.normal(size=(2, 2)).astype("f")},
        "decoder.z": {"v": rng.normal(size=2).astype("f")},
    }


class Sites(Grid):
    """Sites that answer from a table, in an order of the test's choosing."""

    def __init__(self, answer: Callable[[str, Message], RecordDict | Error | None], order: int = 1) -> None:
        self.keys = dict(enumerate(SITES, start=100))
        self.answer = answer
        self.order = order
        self.asked: list[str] = []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        for message in list(messages)[:: self.order]:
            key = self.keys[message.metadata.dst_node_id]
            if message.metadata.message_type == "query.describe":
                counts = {f"train.{task}": n for task, n in SITES[key].items()}
                content = {
                    "site": ConfigRecord({"key": key, "tasks": list(SITES[key])}),
                    "counts": MetricRecord(counts),
                }
                yield Message(RecordDict(content), reply_to=message)
                continue
            self.asked.append(key)
            reply = self.answer(key, message)
            if reply is not None:
                yield Message(reply, reply_to=message)

    def get_node_ids(self) -> list[int]:
        return list(self.keys)[:: self.order]

    create_message = push_messages = pull_messages = run = set_run = None  # type: ignore[assignment]


Sites.__abstractmethods__ = frozenset()


def update(key: str, message: Message) -> RecordDict:
    """Return a site's own random weights, the same whenever it is asked."""
    rng = np.random.default_rng(list(key.encode()))
    counts = {f"num-examples.{task}": n for task, n in SITES[key].items()}
    metrics = MetricRecord({"num-examples": sum(SITES[key].values()), **counts, "curve": [1.0, float(len(key))]})
    return RecordDict({"arrays": wire.repack(message.content["arrays"], parts(rng)), "metrics": metrics})


def drift(key: str, message: Message) -> RecordDict:
    """Return what a site was sent plus small steps of its own, which differ from round to round."""
    arrays, counts = ArrayRecord(), {f"num-examples.{task}": n for task, n in SITES[key].items()}
    rng = np.random.default_rng([*key.encode(), message.content["config"]["server-round"]])
    for name, array in sorted(message.content["arrays"].items()):
        values = array.numpy()
        step = rng.normal(scale=1e-2, size=values.shape) if values.dtype.kind == "f" else name != wire.MANIFEST
        arrays[name] = wire.FlatArray((values + step).astype(values.dtype))
    metrics = MetricRecord({"num-examples": sum(SITES[key].values()), **counts})
    return RecordDict({"arrays": arrays, "metrics": metrics})


def one_round(strategy, answer=update, order: int = 1, arrays: ArrayRecord | None = None, number: int = 1, **config):
    grid = Sites(answer, order)
    arrays = arrays or wire.pack(parts(np.random.default_rng(1)))
    messages = strategy.configure_train(number, arrays, ConfigRecord(config), grid)
    merged, metrics = strategy.aggregate_train(number, grid.send_and_receive(messages))
    return merged, metrics, grid


def same(left: ArrayRecord, right: ArrayRecord) -> bool:
    return left.keys() == right.keys() and all(left[k].numpy().tobytes() == right[k].numpy().tobytes() for k in left)


NORMED = {  # part -> tensor -> shape; one name for each way to recognise a normalisation
    "encoder": {
        "body.norm1.weight": (4,),
        "body.conv.weight": (2, 4),
        "body.conv.bias": (2,),
        "body.ln_1.gain": (3, 3),
        "body.down.1.weight": (5,),
        "body.down.1.running_mean": (5,),
        "body.down.1.num_batches_tracked": (),
        "scale": (),
    },
    "decoder.x": {"x.up.0.weight": (3, 3, 1, 1), "x.up.1.weight": (3,), "x.up.1.bias": (3,)},
    "decoder.y": {"y.head.weight": (2, 3), "y.head.bias": (2,)},
}


def as_record(parts: dict[str, dict[str, np.ndarray]], packed: bool) -> ArrayRecord:
    """Return tensors by part as a packed record, or by name as a plain state dict."""
    if packed:
        return wire.pack(parts)
    return wire.record_of({name: value for tensors in parts.values() for name, value in tensors.items()})


def normed(packed: bool) -> ArrayRecord:
    """Return a model with norms, packed or as a plain state dict."""
    rng, counter = np.random.default_rng(3), "num_batches_tracked"
    tensors = {
        part: {
            name: np.array(5) if name.endswith(counter) else np.asarray(rng.normal(size=shape), "f")
            for name, shape in shapes.items()
        }
        for part, shapes in NORMED.items()
    }
    return as_record(tensors, packed)


def tensors_of(arrays: ArrayRecord) -> dict[str, np.ndarray]:
    if not wire.is_packed(arrays):
        return {name: array.numpy() for name, array in arrays.items()}
    return {name: value for own in wire.unpack(arrays).values() for name, value in own.items()}
