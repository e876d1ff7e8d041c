"""Sites with a small multi-task vision transformer whose units may be in another order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from helpers.planted import RNG, Network, multitask, shaken
from helpers.rounds import SITES, one_round, tensors_of
from mtfed.strategies import BayesianMatching, wire
from mtfed.strategies.axes import AxisGraph
from mtfed.strategies.precision import write_precision

PREFIXES = {"encoder": ("encoder.",), "decoder.x": ("decoders.kind.", "balance.kind"),
            "decoder.y": ("decoders.lungs.", "balance.lungs")}  # fmt: skip


PARTS_OF = {key: ["encoder", *(f"decoder.{task}" for task in tasks)] for key, tasks in SITES.items()}


Answer = Callable[[str, Message], RecordDict]


@cache
def frame() -> tuple[AxisGraph, Network]:
    """Return the axes of a small multi-task vision transformer, and its weights in single precision."""
    graph, network = multitask()
    return graph, {name: values.astype("f") for name, values in network.items()}


def record(network: Network, packed: bool, parts: Sequence[str] = tuple(PREFIXES)) -> ArrayRecord:
    own = {part: {n: v for n, v in network.items() if n.startswith(PREFIXES[part])} for part in parts}
    if packed:
        return wire.pack(own)
    plain = ArrayRecord()
    for tensors in own.values():
        for name, value in tensors.items():
            plain[name] = wire.FlatArray(value)
    return plain


def orders(key: str, graph: AxisGraph) -> dict[str, np.ndarray]:
    generator = RNG([*key.encode(), 7])
    return {label: axis.random_permutation(generator) for label, axis in graph.axes.items()}


def own(key: str, network: Network, noise: float = 0.05) -> Network:
    generator = RNG(list(key.encode()))
    return {name: value.astype("f") for name, value in shaken(network, noise, generator).items()}


def precision_of(key: str, network: Network) -> Network:
    generator = RNG([*key.encode(), 3])
    return {name: generator.exponential(5.0, value.shape).astype("f") for name, value in network.items()}


def metrics_of(key: str) -> MetricRecord:
    counts = {f"num-examples.{task}": n for task, n in SITES[key].items()}
    return MetricRecord({"num-examples": sum(SITES[key].values()), **counts})


def sites(packed: bool, moved: str = "", measuring: str = "abc", gauge: Any = "none", noise: float = 0.05) -> Answer:
    """Return sites that drifted from the frame; those in ``moved`` have their units in another order."""

    def answer(key: str, message: Message) -> RecordDict:
        graph, network = frame()
        values, precision = own(key, network, noise), precision_of(key, network)
        if key in moved:
            values, precision = (graph.permute(net, orders(key, graph)) for net in (values, precision))
            for label in graph.axes:
                turns = graph.random_gauge(values, label, gauge, RNG([*key.encode(), 5]))
                values = {n: v.astype("f") for n, v in graph.regauge(values, label, turns).items()}
        content = RecordDict({"arrays": record(values, packed, PARTS_OF[key]), "metrics": metrics_of(key)})
        if packed:
            content["arrays"][wire.MANIFEST] = message.content["arrays"][wire.MANIFEST]
        if key in measuring:
            arrays = record(precision, packed, PARTS_OF[key])
            content["precision"] = write_precision({k: a.numpy() for k, a in arrays.items() if k != wire.MANIFEST})
        return content

    return answer


def merged(answer: Answer, packed: bool = True, order: int = 1, **settings: Any) -> tuple[ArrayRecord, MetricRecord]:
    strategy = BayesianMatching(frame()[0], **settings)
    got, metrics, _ = one_round(strategy, answer, order, record(frame()[1], packed))
    assert not strategy.failures
    return got, metrics


def drifting(key: str, message: Message) -> RecordDict:
    """Return what a site was sent, its units in another order, plus steps and a precision of this round."""
    number, sent = message.content["config"]["server-round"], message.content["arrays"]
    generator, arrays = RNG([*key.encode(), number]), ArrayRecord()
    for name, array in sorted(sent.items()):
        step = generator.normal(scale=0.02, size=array.numpy().shape) if array.numpy().dtype.kind == "f" else 0
        arrays[name] = wire.FlatArray((array.numpy() + step).astype(array.dtype))
    moved = frame()[0].permute(tensors_of(arrays), orders(key, frame()[0]) if number % 2 else {})
    parts = {part: {n: v for n, v in moved.items() if n.startswith(PREFIXES[part])} for part in PARTS_OF[key]}
    arrays = wire.repack(sent, parts)
    precision = {k: generator.exponential(1.0, a.numpy().shape).astype("f") for k, a in arrays.items() if ":" in k}
    return RecordDict({"arrays": arrays, "metrics": metrics_of(key), "precision": write_precision(precision)})
