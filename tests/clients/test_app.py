"""The client's reply: the trained weights, and their curvature if the server requests it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from mtfed.clients import app as clients
from mtfed.config import read_config
from mtfed.learning.curvature import curvature
from mtfed.learning.device import derive_seed
from mtfed.learning.parts import numpy_parts
from mtfed.learning.train import TrainingResult
from mtfed.models.build import build_model
from mtfed.strategies import wire
from mtfed.strategies.precision import read_precision

TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
torch.set_num_threads(1)


def reply(run_config: dict[str, Any], partition: int, server_round: int, precision: str | None) -> RecordDict:
    """Return what a simulated site answers when it is asked to train the initial model."""
    settings = read_config(run_config)
    arrays = wire.pack(numpy_parts(build_model(settings)))
    asked: dict[str, Any] = {"server-round": server_round} | ({"precision": precision} if precision else {})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord(asked)})
    message = Message(content, dst_node_id=1, message_type="train")
    context = Context(1, 1, {"partition-id": partition, "num-partitions": 8}, RecordDict(), run_config)
    return cast(Message, clients.train_round(message, context)).content


def trained(content: RecordDict) -> dict[str, bytes]:
    arrays = content["arrays"]
    assert isinstance(arrays, ArrayRecord), content["failure"]
    return {key: array.numpy().tobytes() for key, array in arrays.items()}


def test_training_does_not_depend_on_curvature(small: dict) -> None:
    rounds = [(partition, number) for number in (1, 2) for partition in (0, 1)]
    plain = {at: reply(small, *at, None) for at in rounds}
    with_curvature = {at: reply(small, *at, "fisher") for at in rounds}
    without = {at: reply(small, *at, "none") for at in rounds}
    for at in rounds:
        assert trained(plain[at]) == trained(with_curvature[at]) == trained(without[at])
        assert "precision" not in plain[at] and "precision" not in without[at]
        metrics = {key: value for key, value in with_curvature[at]["metrics"].items() if key != "curvature-seconds"}
        assert {**metrics, "seconds": 0} == {**plain[at]["metrics"], "seconds": 0}
    assert trained(plain[0, 1]) != trained(plain[0, 2]) != trained(plain[1, 2])


def test_a_round_is_a_part_of_the_run(small: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = []

    def train(*args: Any, span: tuple[float, float], **settings: Any) -> TrainingResult:
        spans.append(span)
        return TrainingResult()

    monkeypatch.setattr(clients, "train", train)
    for number in (1, 2, 4):
        reply(small | {"rounds": 4}, 0, number, None)
    assert spans == [(0, 0.25), (0.25, 0.5), (0.75, 1)]


def test_only_the_first_rounds_are_backforward(small: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []

    def train(*args: Any, backforward: bool, **settings: Any) -> TrainingResult:
        chosen.append(backforward)
        return TrainingResult()

    monkeypatch.setattr(clients, "train", train)
    for count in (0, 2):
        for number in (1, 2, 3):
            reply(small | {"rounds": 4, "backforward-rounds": count}, 0, number, None)
    assert chosen == [False, False, False, True, True, False]


def test_the_reply_contains_the_curvature_of_the_trained_model(small: dict) -> None:
    content = reply(small, 0, 1, "fisher")
    arrays, precision = content["arrays"], content["precision"]
    assert isinstance(arrays, ArrayRecord) and isinstance(precision, ArrayRecord)
    sent = {key: array.numpy() for key, array in arrays.items() if key != wire.MANIFEST}
    result = read_precision(precision, sent)
    assert result.keys() == sent.keys()
    settings = read_config(small)
    site = clients.open_site(
        Context(1, 1, {"partition-id": 0, "num-partitions": 8}, RecordDict(), small), settings
    )  # fmt: skip
    model = build_model(settings)
    clients.load_parts(model, wire.unpack(arrays))
    expected = curvature(
        model, site.shard("train"), site.tasks(), settings, seed=derive_seed(settings.seed, site.key, 1, "curvature"),
        samples=settings.curvature_samples,
    )  # fmt: skip
    for key, tensors in wire.tensors_in(arrays).items():
        own_task = {tensor.name: expected.get(tensor.name, torch.zeros(tensor.shape)) for tensor in tensors}
        largest = max(float(value.max()) for value in own_task.values())
        for tensor in tensors:  # a site has no information about the decoder of a task that it lacks
            own, decoded = own_task[tensor.name].numpy().ravel(), result[key].decode()[tensor.place]
            known = own > 1e-15 * largest
            assert np.abs(np.log2(decoded[known] / own[known])).max(initial=0) <= 0.126
            assert (decoded[own == 0] == 0).all()
