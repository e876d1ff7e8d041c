"""Properties of the balancing rules, and the loss history in messages."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from torch import Tensor

from helpers.three_tasks import config
from mtfed.config import Form
from mtfed.learning.balancing import (
    BALANCING,
    DynamicWeights,
    GradNorm,
    PCGrad,
    project,
    read_history,
    write_history,
)
from mtfed.models.build import assemble, build_model
from mtfed.models.specs import INITIAL_BALANCE

torch.set_num_threads(1)


def gram_of(vectors: Tensor) -> Tensor:
    return vectors @ vectors.T


def test_gradients_without_conflict_do_not_change() -> None:
    vectors = torch.rand(4, 9, dtype=torch.float64)  # no product is below 0
    orders = [torch.randperm(4).tolist() for _ in range(4)]
    assert torch.equal(project(gram_of(vectors), orders), torch.eye(4, dtype=torch.float64))
    shared, own, slope = PCGrad({}).combine(list("abcd"), torch.ones(4), gram_of(vectors))
    assert shared.tolist() == own.tolist() == [1.0] * 4 and slope is None


def test_projection_of_products_equals_projection_of_vectors() -> None:
    g = torch.Generator().manual_seed(0)
    for count in (2, 3, 6):
        for _ in range(20):
            vectors = torch.randn(count, 5, generator=g, dtype=torch.float64)
            orders = [torch.randperm(count, generator=g).tolist() for _ in range(count)]
            rows = project(gram_of(vectors), orders) @ vectors
            for i, order in enumerate(orders):
                slow = vectors[i].clone()
                for j in order:
                    if j != i and slow @ vectors[j] < 0:
                        slow -= slow @ vectors[j] / (vectors[j] @ vectors[j]) * vectors[j]
                torch.testing.assert_close(rows[i], slow)
            if count == 2:
                assert float(rows[0] @ vectors[1]) > -1e-12 and float(rows[1] @ vectors[0]) > -1e-12
    zero = torch.zeros(2, 2, dtype=torch.float64)
    assert torch.equal(project(zero, [[0, 1], [1, 0]]), torch.eye(2, dtype=torch.float64))


def test_a_gradient_whose_square_vanishes_projects_nothing() -> None:
    vectors = torch.tensor([[1.0, 0.0], [-1e-23, 0.0]])
    gram = gram_of(vectors).double()  # in single precision, as a step has it
    assert gram[0, 1] < 0 and gram[1, 1] == 0
    rows = project(gram, [[0, 1], [1, 0]])
    assert rows[0].tolist() == [1.0, 0.0] and rows[1].tolist() == pytest.approx([1e-23, 1.0])


@pytest.mark.parametrize(
    ("history", "weights"),
    [
        ({}, {"a": 1.0, "b": 1.0}),
        ({"a": [0.5], "b": [0.7]}, {"a": 1.0, "b": 1.0}),
        ({"a": [0.5, 0.5], "b": [0.7]}, {"a": 1.0, "b": 1.0}),  # a alone is weighed, among one
        ({"a": [1.0, 1.0], "b": [2.0, 1.0]}, {"a": 1.1243530, "b": 0.8756470}),
        ({"a": [9.0, 1.0, 1.0], "b": [9.0, 2.0, 1.0]}, {"a": 1.1243530, "b": 0.8756470}),
        ({"a": [1.0, 1.0, 1.0], "b": [0.0, 0.0, 0.0]}, {"a": 1.2449187, "b": 0.7550813}),
        ({"a": [1.0, 1.0], "b": [1e-300, 1e200]}, {"a": 0.0, "b": 2.0}),  # overflows nothing
    ],
)
def test_dynamic_weights(history: dict, weights: dict) -> None:
    rule = DynamicWeights({}, history)
    assert rule.weights(["a", "b"]) == pytest.approx(weights, abs=1e-6)
    assert sum(rule.weights(["a", "b"]).values()) == pytest.approx(2)
    assert float(rule.term("a", torch.tensor(3.0))) == pytest.approx(3 * weights["a"], abs=1e-6)


def test_gradnorm_slows_the_task_that_trains_faster() -> None:
    balance = {task: torch.zeros((), dtype=torch.float64) for task in "abc"}
    rule = GradNorm(balance, {"a": [2.0], "b": [1.0], "c": [4.0]})
    losses = torch.tensor([0.4, 0.8, 2.0], dtype=torch.float64)  # .2, .8 and .5 of the first
    gram = torch.diag(torch.tensor([1.0, 1.0, 4.0], dtype=torch.float64))
    for _ in range(3000):
        slope = rule.combine(list("abc"), losses, gram)[2]
        assert slope is not None and abs(float(slope.sum())) < 1e-9
        for task, value in zip("abc", slope, strict=True):
            balance[task] -= 1e-3 * value
    weights = rule.weights(list("abc"))
    assert sum(weights.values()) == pytest.approx(3)
    assert weights["a"] < weights["b"]
    norms = np.array([weights["a"], weights["b"], 2 * weights["c"]])
    # The aims do not add up to the norms. An L1 objective then leaves all that is missing to one task.
    np.testing.assert_allclose((norms / norms.mean())[[0, 2]], [0.4**1.5, 1.0], rtol=0.02)


def test_gradnorm_waits_for_the_first_round() -> None:
    rule = GradNorm({task: torch.tensor(0.3) for task in "ab"}, {"a": [1.0]})
    assert rule.weights(["a", "b"]) == {"a": 1.0, "b": 1.0} and rule.weights(["a"]) == {"a": 1.0}
    shared, own, slope = rule.combine(["a", "b"], torch.ones(2), torch.eye(2, dtype=torch.float64))
    assert shared.tolist() == own.tolist() == [1.0, 1.0] and slope is None


def test_initial_balance() -> None:
    assert INITIAL_BALANCE.keys() == BALANCING.keys()
    assert INITIAL_BALANCE == {"uncertainty": -0.5, "equal": 0.0, "dwa": 0.0, "gradnorm": 0.0, "pcgrad": 0.0}
    for balancing, value in INITIAL_BALANCE.items():
        model = build_model(config(balancing=balancing))
        assert {float(s.detach()) for s in model.balance.values()} == {value}
    bare = assemble("hard-sharing", config().tasks, (Form(2, 32),), encoder="resnet_nano")
    assert {float(s.detach()) for s in bare.balance.values()} == {INITIAL_BALANCE[config().balancing]}


def test_history_is_written_and_read() -> None:
    lines = [
        {"round": r, "task": task, "loss": loss}
        for r in range(1, 5)
        for task, loss in (("a", 1 / r), ("b", 2.0 if r == 1 else None), ("c", float(r)), ("d", None))
    ]
    lines = json.loads(json.dumps(lines))
    for balancing in ("dwa", "gradnorm"):
        settings = write_history(balancing, lambda: lines, ["a", "b", "d"])
        assert settings == {"losses.a": [1.0, 1 / 3, 1 / 4], "losses.b": [2.0]}
        record = ConfigRecord({"learning-rate": 0.1, "server-round": 5, **settings})
        assert read_history(record) == {"a": [1.0, 1 / 3, 1 / 4], "b": [2.0]}
        for known in range(1, 4):  # whatever the length, the first and the last two stand where they are read
            short = write_history(balancing, lambda n=known: [x for x in lines if x["round"] <= n], ["a"])["losses.a"]
            assert short == [1 / r for r in range(1, known + 1)]
    for balancing in ("equal", "uncertainty", "pcgrad"):
        assert write_history(balancing, lambda: 1 / 0, ["a"]) == {}  # type: ignore[arg-type,return-value]
