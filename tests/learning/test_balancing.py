"""Balancing, pieces and parts of a step against gradients taken task by task and image by image, in float64."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from helpers import SMALL, TASKS
from torch import Tensor, nn

from mtfed.config import Config, read_config
from mtfed.data.shard import Batch, Labels, Shard, standardise
from mtfed.errors import MtfedError
from mtfed.learning import acceleration as speed
from mtfed.learning.balancing import (
    BALANCING,
    ByGradient,
    DynamicWeights,
    GradNorm,
    PCGrad,
    backward_by_task,
    project,
    read_history,
    write_history,
)
from mtfed.learning.curvature import curvature
from mtfed.learning.train import load_parts, numpy_parts, split, train
from mtfed.models.build import assemble, build_model
from mtfed.models.specs import INITIAL_BALANCE
from mtfed.models.system import MultiTaskModel

torch.set_num_threads(1)
SIDE, IMAGES, SEED = 4, 12, 5
ROWS = {"lungs": range(4, 12), "pneumonia": range(0, 8), "side": range(2, 6)}  # the images that a task labels
SCALARS = {"lungs": 0.4, "pneumonia": -0.7, "side": 0.1}
HISTORY = {"lungs": [1.1, 0.9, 0.7], "pneumonia": [0.8, 0.6, 0.2], "side": [0.5, 0.4, 0.45]}
MORE = {"task.side.kind": "classification", "task.side.classes": "left, right", "task.lungs.loss": "cross-entropy"}


def config(**changes: object) -> Config:
    ours = {key.replace("_", "-"): value for key, value in changes.items()}
    return read_config(TASKS | MORE | SMALL | {"weight-decay": 0.0} | ours)


class Tiny(nn.Module):
    """Three tasks over a shared convolution and one task's stream, in double precision; some weights reach nothing."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        stream = [nn.Conv2d(3, 3, 3, padding=1), *([nn.BatchNorm2d(3)] if norm else [])]
        self.encoder = nn.ModuleDict({"shared": nn.Conv2d(1, 3, 3, padding=1), "unused": nn.Linear(2, 2),
                                      "streams": nn.ModuleDict({"lungs": nn.Sequential(*stream)})})  # fmt: skip
        self.decoders = nn.ModuleDict(
            {"lungs": nn.Conv2d(3, 2, 1), "pneumonia": nn.Linear(3, 2), "side": nn.Linear(3, 2)}
        )
        self.balance = nn.ParameterDict({task: torch.tensor(value) for task, value in SCALARS.items()})
        self.double()
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.8)

    def forward(self, images: Tensor, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        features = self.encoder["shared"](images.to(self.balance["lungs"].dtype)).tanh()
        features = features + self.encoder["streams"]["lungs"](features)
        own = {task: features[index] for task, index in rows.items()}
        return {t: self.decoders[t](x if t == "lungs" else x.mean((2, 3))) for t, x in own.items()}

    def parts(self) -> dict[str, dict[str, Tensor]]:
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.state_dict().items():
            kind, _, rest = name.partition(".")
            part = "decoder." + rest.partition(".")[0] if kind != "encoder" else "encoder"
            parts.setdefault("cross.lungs" if "streams" in name else part, {})[name] = tensor
        return parts


def tiny(norm: bool = False) -> MultiTaskModel:
    return cast(MultiTaskModel, Tiny(norm))


def shard() -> Shard:
    g = torch.Generator().manual_seed(0)
    labels = {
        task: Labels(torch.tensor(rows), torch.randint(0, 2, (len(rows), *((SIDE, SIDE) if task == "lungs" else ())),
                                                       generator=g))
        for task, rows in ROWS.items()
    }  # fmt: skip
    return Shard(torch.randint(0, 255, (IMAGES, 1, SIDE, SIDE), generator=g, dtype=torch.uint8), labels)


def one_step(model: MultiTaskModel, tasks: list[str] | None = None, **changes: object) -> dict[str, np.ndarray]:
    """Return the gradients of a step on all images, by name of the weight."""
    settings = config(batch_size=IMAGES, local_steps=1, **changes)
    told = train(model, shard(), tasks or list(ROWS), settings, seed=SEED, learning_rate=1e-3, history=HISTORY)
    assert told.steps == 1 and told.seen == {task: len(ROWS[task]) for task in tasks or ROWS}
    return {name: weight.grad.numpy() for name, weight in model.named_parameters() if weight.grad is not None}


def of_tasks() -> tuple[dict[str, float], dict[str, dict[str, np.ndarray]]]:
    """Return every task's loss and its gradients: means over images, and over pixels, one by one."""
    model, data = tiny(), shard()
    images = standardise(data.images)
    named = {name: weight for name, weight in model.named_parameters() if not name.startswith("balance")}
    losses, gradients = {}, {}
    for task, labels in data.labels.items():
        total = torch.zeros((), dtype=torch.float64)
        for row, value in zip(labels.rows, labels.values, strict=True):
            logs = model(images[row : row + 1], {task: torch.tensor([0])})[task][0].log_softmax(0).reshape(2, -1)
            for pixel, truth in enumerate(value.reshape(-1)):
                total = total - logs[truth, pixel] / logs.shape[1] / len(labels.rows)
        losses[task] = float(total.detach())
        found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        gradients[task] = {n: g.numpy() for n, g in zip(named, found, strict=True) if g is not None}
    return losses, gradients


SHARED = ["encoder.shared.weight", "encoder.shared.bias", "encoder.streams.lungs.0.weight",
          "encoder.streams.lungs.0.bias"]  # fmt: skip


def flat(gradient: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([gradient[name].ravel() for name in SHARED])


def added(gradients: dict[str, dict[str, np.ndarray]], weights: dict[str, float]) -> dict[str, np.ndarray]:
    total: dict[str, np.ndarray] = {}
    for task, gradient in gradients.items():
        for name, value in gradient.items():
            total[name] = total.get(name, 0.0) + weights[task] * value
    return total


# The rules as their papers write them.


def slow_equal(losses: dict, gradients: dict) -> dict:
    return added(gradients, dict.fromkeys(losses, 1.0))


def slow_uncertainty(losses: dict, gradients: dict) -> dict:
    weights = {task: 1 / (2 * math.exp(s)) for task, s in SCALARS.items()}
    return added(gradients, weights) | {f"balance.{t}": np.array(0.5 - losses[t] * w) for t, w in weights.items()}


def slow_dwa(losses: dict, gradients: dict) -> dict:
    raised = {task: math.exp(told[-1] / told[-2] / 2) for task, told in HISTORY.items()}
    return added(gradients, {task: 3 * value / sum(raised.values()) for task, value in raised.items()})


def gradnorm_weights(v: dict[str, float]) -> dict[str, float]:
    return {task: len(v) * math.exp(value) / sum(map(math.exp, v.values())) for task, value in v.items()}


def slow_gradnorm(losses: dict, gradients: dict) -> dict:
    norms = {task: np.linalg.norm(flat(gradient)) for task, gradient in gradients.items()}
    weights = gradnorm_weights(SCALARS)
    pace = {task: losses[task] / HISTORY[task][0] for task in losses}
    mean_pace = sum(pace.values()) / 3
    mean_norm = sum(weights[task] * norms[task] for task in norms) / 3
    aims = {task: mean_norm * (pace[task] / mean_pace) ** 1.5 for task in pace}  # held fixed

    def objective(v: dict[str, float]) -> float:
        return sum(abs(w * norms[task] - aims[task]) for task, w in gradnorm_weights(v).items())

    step = 1e-6
    slopes = {
        f"balance.{task}": np.array((objective(SCALARS | {task: v + step}) - objective(SCALARS | {task: v - step}))
                                    / (2 * step))
        for task, v in SCALARS.items()
    }  # fmt: skip
    return added(gradients, weights) | slopes


def slow_pcgrad(losses: dict, gradients: dict) -> dict:
    torch.manual_seed(SEED)
    torch.randperm(IMAGES)  # of the batch
    tasks = list(losses)
    given = [flat(gradients[task]) for task in tasks]
    total = np.zeros_like(given[0])
    for i in range(3):
        projected = given[i].copy()
        for j in torch.randperm(3).tolist():
            if j != i and projected @ given[j] < 0:
                projected -= projected @ given[j] / (given[j] @ given[j]) * given[j]
        total += projected
    expected, start = slow_equal(losses, gradients), 0
    for name in SHARED:
        size = expected[name].size
        expected[name], start = total[start : start + size].reshape(expected[name].shape), start + size
    return expected


SLOW: dict[str, Any] = {
    "equal": slow_equal,
    "uncertainty": slow_uncertainty,
    "dwa": slow_dwa,
    "gradnorm": slow_gradnorm,
    "pcgrad": slow_pcgrad,
}


@pytest.mark.parametrize("pieces", [1, 3, 5, 99])
@pytest.mark.parametrize("balancing", BALANCING)
def test_a_step_has_the_gradients_of_its_rule_in_any_number_of_pieces(balancing: str, pieces: int) -> None:
    expected = SLOW[balancing](*of_tasks())
    found = one_step(tiny(), balancing=balancing, accumulate=pieces)
    assert found.keys() == expected.keys()  # what nothing depends on gets no gradient, and does not decay
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-9, err_msg=name)
    assert any(weight @ other < 0 for weight in map(flat, of_tasks()[1].values())
               for other in map(flat, of_tasks()[1].values()))  # or PCGrad would have had nothing to do  # fmt: skip


@pytest.mark.parametrize("balancing", [name for name in BALANCING if name != "uncertainty"])
def test_one_task_is_trained_plainly(balancing: str) -> None:
    def trained(rule: str) -> list[Tensor]:
        model = tiny()
        one = read_config({key: value for key, value in (TASKS | SMALL).items() if "lungs" not in key}
                          | {"balancing": rule, "local-steps": 4, "batch-size": 5})  # fmt: skip
        train(model, shard(), ["pneumonia"], one, seed=0, learning_rate=1e-2, history={"pneumonia": [0.8, 0.6, 0.3]})
        return list(model.parameters())

    assert all(torch.equal(a, b) for a, b in zip(trained(balancing), trained("equal"), strict=True))


@pytest.mark.parametrize("rule", [GradNorm, PCGrad])
def test_the_scale_of_half_precision_reaches_every_gradient(rule: type[ByGradient]) -> None:
    found = []
    for factor in (1.0, 8.0):
        model, data = tiny(), shard()
        batch = next(data.batches(IMAGES))
        outputs = model(batch.images, {task: labels.rows for task, labels in batch.labels.items()})
        piece = {t: (nn.functional.cross_entropy(output, batch.labels[t].values), 1.0) for t, output in outputs.items()}
        own = {task: list(model.decoders[task].parameters()) for task in ROWS}
        torch.manual_seed(0)
        backward_by_task(rule(model.balance, HISTORY), list(ROWS), [piece], list(model.encoder.parameters()),
                         own, lambda loss, factor=factor: loss * factor)  # fmt: skip
        found.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], 8 * gradient)


# Properties.


def gram_of(vectors: Tensor) -> Tensor:
    return vectors @ vectors.T


def test_what_does_not_conflict_is_left_alone() -> None:
    vectors = torch.rand(4, 9, dtype=torch.float64)  # no product is below 0
    orders = [torch.randperm(4).tolist() for _ in range(4)]
    assert torch.equal(project(gram_of(vectors), orders), torch.eye(4, dtype=torch.float64))
    shared, own, slope = PCGrad({}).combine(list("abcd"), torch.ones(4), gram_of(vectors))
    assert shared.tolist() == own.tolist() == [1.0] * 4 and slope is None


def test_projection_is_that_of_the_vectors_themselves() -> None:
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


def test_initial_numbers() -> None:
    assert INITIAL_BALANCE.keys() == BALANCING.keys()
    assert INITIAL_BALANCE == {"uncertainty": -0.5, "equal": 0.0, "dwa": 0.0, "gradnorm": 0.0, "pcgrad": 0.0}
    for balancing, value in INITIAL_BALANCE.items():
        model = build_model(config(balancing=balancing))
        assert {float(s.detach()) for s in model.balance.values()} == {value}
    bare = assemble("hard-sharing", config().tasks, encoder="resnet_nano", image_size=32)
    assert {float(s.detach()) for s in bare.balance.values()} == {INITIAL_BALANCE[config().balancing]}


# What the server tells.


def test_history_is_told_and_read() -> None:
    lines = [
        {"round": r, "task": task, "loss": loss}
        for r in range(1, 5)
        for task, loss in (("a", 1 / r), ("b", 2.0 if r == 1 else None), ("c", float(r)), ("d", None))
    ]
    lines = json.loads(json.dumps(lines))
    for balancing in ("dwa", "gradnorm"):
        told = write_history(balancing, lambda: lines, ["a", "b", "d"])
        assert told == {"losses.a": [1.0, 1 / 3, 1 / 4], "losses.b": [2.0]}
        record = ConfigRecord({"learning-rate": 0.1, "server-round": 5, **told})
        assert read_history(record) == {"a": [1.0, 1 / 3, 1 / 4], "b": [2.0]}
        for known in range(1, 4):  # whatever the length, the first and the last two stand where they are read
            short = write_history(balancing, lambda n=known: [x for x in lines if x["round"] <= n], ["a"])["losses.a"]
            assert short == [1 / r for r in range(1, known + 1)]
    for balancing in ("equal", "uncertainty", "pcgrad"):
        assert write_history(balancing, lambda: 1 / 0, ["a"]) == {}  # type: ignore[arg-type,return-value]


# Pieces, parts, and how fast.


@pytest.mark.parametrize("pieces", [1, 2, 3, 5, 7, 40])
def test_pieces_make_up_the_batch(pieces: int) -> None:
    batch = next(shard().batches(7, torch.randperm(IMAGES)))
    found = list(split(batch, pieces))
    assert len(found) == {1: 1, 2: 2, 3: 3, 5: 4, 7: 7, 40: 7}[pieces]
    assert torch.equal(torch.cat([piece.images for piece in found]), batch.images)
    for task, labels in batch.labels.items():
        starts = np.cumsum([0, *(len(piece.images) for piece in found)])
        own = [(start, piece.labels[task]) for start, piece in zip(starts, found, strict=False) if task in piece.labels]
        assert torch.equal(torch.cat([piece.rows + start for start, piece in own]), labels.rows)
        assert torch.equal(torch.cat([piece.values for _, piece in own]), labels.values)


def test_one_piece_is_the_batch_itself() -> None:
    batch = Batch(torch.zeros(3, 1, 2, 2), {})
    assert [piece is batch for piece in split(batch, 1)] == [True]


@pytest.mark.parametrize("balancing", BALANCING)
@pytest.mark.parametrize("tasks", [["lungs", "side"], ["pneumonia", "side"]])
def test_parts_of_other_tasks_are_context(balancing: str, tasks: list[str]) -> None:
    model = tiny(norm=True)
    before = {part: {n: t.clone() for n, t in tensors.items()} for part, tensors in model.parts().items()}
    found = one_step(model, tasks, balancing=balancing)
    changed = {
        part for part, tensors in model.parts().items() if any(not t.equal(before[part][n]) for n, t in tensors.items())
    }
    own = {f"decoder.{task}" for task in tasks} | ({"cross.lungs"} if "lungs" in tasks else set())
    assert changed == {"encoder", *own}
    assert ("encoder.streams.lungs.0.weight" in found) == ("lungs" in tasks)
    assert all(weight.requires_grad for weight in model.parameters())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("tasks", [["lungs", "side"], ["pneumonia", "side"], ["side"]])
def test_curvature_is_of_the_weights_that_are_trained(tasks: list[str]) -> None:
    model = tiny(norm=True)
    found = curvature(model, shard(), tasks, config(balancing="equal"), seed=0)
    parts = {part for part, tensors in model.parts().items() if tensors.keys() & found.keys()}
    assert parts == {"encoder", *(f"decoder.{task}" for task in tasks)} | (
        {"cross.lungs"} if "lungs" in tasks else set()
    )
    assert all(value.any() for name, value in found.items() if "unused" not in name)
    assert all(weight.requires_grad for weight in model.parameters())


def test_the_same_seed_gives_the_same_weights() -> None:
    def trained(balancing: str, seed: int) -> Tensor:
        model, settings = tiny(), config(balancing=balancing, batch_size=5, local_steps=6, accumulate=2)
        train(model, shard(), list(ROWS), settings, seed=seed, learning_rate=1e-2, history=HISTORY)
        return torch.cat([weight.detach().flatten() for weight in model.parameters()])

    results = {name: trained(name, 0) for name in BALANCING}
    for name, weights in results.items():
        assert torch.equal(weights, trained(name, 0)) and not torch.equal(weights, trained(name, 1))
    assert all(not torch.equal(a, b) for a, b in pairwise(results.values()))


def test_half_precision() -> None:
    cpu = torch.device("cpu")
    assert [speed.half_precision(name, cpu) for name in ("auto", "none", "bfloat16")] == [None, None, torch.bfloat16]
    with pytest.raises(MtfedError, match="autocast: float16 needs a CUDA GPU, this is cpu"):
        speed.half_precision("float16", cpu)
    exact, rough = (one_step(tiny().float(), autocast=name) for name in ("none", "bfloat16"))
    for name, value in exact.items():
        assert rough[name].dtype == np.float32
        np.testing.assert_allclose(rough[name], value, atol=0.05 * np.abs(value).max() + 0.01, err_msg=name)
    assert any((rough[name] != value).any() for name, value in exact.items())


@pytest.mark.parametrize("balancing", ["uncertainty", "pcgrad"])
def test_channels_may_lie_last(balancing: str) -> None:
    weights = []
    for last in (False, True):
        model = build_model(config(balancing=balancing))
        if last:
            cast(Any, model).to(memory_format=speed.LAYOUTS[2])
            assert any(not t.is_contiguous() for part in model.parts().values() for t in part.values())
        g = torch.Generator().manual_seed(0)
        data = Shard(
            torch.randint(0, 255, (6, 1, 32, 32), generator=g, dtype=torch.uint8),
            {
                "lungs": Labels(torch.arange(4), torch.randint(0, 2, (4, 32, 32), generator=g)),
                "side": Labels(torch.arange(3, 6), torch.randint(0, 2, (3,), generator=g)),
            },
        )
        train(model, data, ["lungs", "side"], config(balancing=balancing, local_steps=2), seed=0, learning_rate=1e-3)
        weights.append(numpy_parts(model))
        copy = cast(Any, build_model(config(seed=1))).to(memory_format=speed.LAYOUTS[2])
        load_parts(copy, weights[-1])
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), copy.state_dict().values(), strict=True)
        )
    for part, tensors in weights[0].items():
        for name, value in tensors.items():
            np.testing.assert_allclose(weights[1][part][name], value, atol=2e-4, err_msg=name)
    speed.lay_out(copy := build_model(config()), config())  # on a CPU nothing is gained
    assert all(weight.is_contiguous() for weight in copy.parameters())


@pytest.mark.parametrize(
    ("works", "count"),
    [(99, 5), (0, 1), (1, 2), (3, 4)],  # calls before one fails; those made: the trial, and four steps
)
def test_compiling_changes_no_weights(
    works: int, count: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[bool] = []

    def compiler(forward: Any, dynamic: bool) -> Any:
        def compiled(*arguments: Any) -> Any:
            calls.append(dynamic)
            if len(calls) > works:
                raise RuntimeError("no compiler here\nas one sees")
            return forward(*arguments)

        return compiled

    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(speed, "_graphs", {})
    trained = {}
    for wanted in ("off", "auto", "on"):
        model = tiny(norm=True)
        names = list(model.state_dict())
        for seed in (0, 1):
            settings = config(compile=wanted, local_steps=2, batch_size=6)
            train(model, shard(), list(ROWS), settings, seed=seed, learning_rate=1e-2)
        assert list(model.state_dict()) == names
        trained[wanted] = [value.clone() for value in model.state_dict().values()]
        assert wanted == "on" or not calls  # on a CPU auto does not
    assert calls == [True] * count
    assert [record.getMessage() for record in caplog.records] == (
        ["torch.compile failed, training goes on without: RuntimeError: no compiler here"] if works < 99 else []
    )
    for other in ("auto", "on"):
        assert all(torch.equal(a, b) for a, b in zip(trained["off"], trained[other], strict=True))


def test_an_error_of_the_model_itself_is_not_the_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda forward, dynamic: forward)
    monkeypatch.setattr(speed, "_graphs", {})
    forward = speed.forward_of(model := tiny(), config(compile="on"), torch.device("cpu"), 1)
    images = torch.zeros(2, 1, SIDE, SIDE)
    assert forward(images, {"side": torch.tensor([0])})["side"].shape == (1, 2)
    with pytest.raises(KeyError, match="unheard-of"):
        forward(images, {"unheard-of": torch.tensor([0])})
    assert all(weight.grad is None for weight in model.parameters())
