"""FedAdam and FedYogi against a slow reference, tensor by tensor and number by number."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, RecordDict

from helpers.rounds import SITES, as_record, drift, one_round, same, tensors_of
from mtfed.strategies import TaskFedAdam, TaskFedYogi, wire
from mtfed.strategies.adaptive import TaskFedOpt

MODEL = {  # part -> tensor -> shape
    "encoder": {"w": (3, 4), "scale": (), "bn.running_mean": (4,), "b": (3,), "bn.running_var": (4,), "bn.seen": ()},
    "decoder.x": {"x.v": (5,)},
    "decoder.y": {"y.v": (2, 2)},
    "decoder.z": {"z.v": (2,)},
}
STATISTICS = {"bn.running_mean", "bn.running_var"}
UPDATE_RULES: dict[type[TaskFedOpt], Callable[[float, float, float], float]] = {
    TaskFedAdam: lambda v, d, beta: beta * v + (1 - beta) * d**2,
    TaskFedYogi: lambda v, d, beta: v - (1 - beta) * d**2 * ((v > d**2) - (v < d**2)),
}


def model(packed: bool, dtype: str = "float32") -> ArrayRecord:
    rng = np.random.default_rng(5)
    tensors = {
        part: {
            name: np.array(9) if name == "bn.seen" else np.asarray(rng.normal(size=shape), dtype)
            for name, shape in shapes.items()
        }
        for part, shapes in MODEL.items()
    }
    return as_record(tensors, packed)


def weights_of(name: str, packed: bool, tasks: list[str]) -> dict[str, float]:
    """Return how much each site counts in a tensor; a plain record is averaged whole."""
    asked = {key: counts for key, counts in SITES.items() if counts.keys() & set(tasks)}
    part = next(part for part, shapes in MODEL.items() if name in shapes)
    if part == "encoder" or not packed:
        return {key: sum(counts.values()) for key, counts in asked.items()}
    task = part.removeprefix("decoder.")
    return {key: counts[task] for key, counts in asked.items() if task in counts and task in tasks}


@pytest.mark.parametrize("strategy_class", UPDATE_RULES)
@pytest.mark.parametrize(
    ("packed", "settings"),
    [
        (True, {}),
        (False, {}),
        (True, {"server_learning_rate": 1.0, "server_beta1": 0.0, "server_beta2": 0.5, "server_tau": 0.1}),
    ],
)
def test_steps_equal_a_slow_reference(
    strategy_class: type[TaskFedOpt], packed: bool, settings: dict[str, float]
) -> None:
    strategy, arrays = strategy_class(**settings), model(packed)
    rate, beta1, beta2, tau = (
        settings.get(f"server_{name}", default)
        for name, default in (("learning_rate", 0.01), ("beta1", 0.9), ("beta2", 0.99), ("tau", 1e-3))
    )
    moments: dict[tuple[str, int], tuple[float, float]] = {}
    for number, tasks in enumerate((["x", "y"], ["y"], ["x", "y"]), start=1):  # x rests in round 2
        given: dict[str, dict[str, np.ndarray]] = {}

        def answer(key: str, message: Message, given: dict = given) -> RecordDict:
            content = drift(key, message)
            given[key] = tensors_of(content["arrays"])
            return content

        before = tensors_of(arrays)
        arrays, _, _ = one_round(strategy, answer, arrays=arrays, number=number, tasks=tasks)
        after = tensors_of(arrays)
        for name, start in before.items():
            counted = weights_of(name, packed, tasks)
            for i, w in enumerate(start.reshape(-1).tolist()):
                sent = [(float(given[key][name].reshape(-1)[i]), n) for key, n in counted.items()]
                if not sent:
                    expected = w
                elif name == "bn.seen":
                    expected = max(value for value, _ in sent)
                else:
                    average = sum(value * n for value, n in sent) / sum(n for _, n in sent)
                    m, v = moments.get((name, i), (0.0, tau**2))
                    m, v = beta1 * m + (1 - beta1) * (average - w), UPDATE_RULES[strategy_class](v, average - w, beta2)
                    moments[name, i] = m, v
                    expected = average if name in STATISTICS else w + rate * m / (math.sqrt(v) + tau)
                got = float(after[name].reshape(-1)[i])
                assert got == pytest.approx(expected, rel=1e-5, abs=1e-6), (name, i, number)
                assert sent or got == w


@pytest.mark.parametrize("strategy_class", UPDATE_RULES)
def test_parts_that_no_site_trained_keep_their_moments(strategy_class: type[TaskFedOpt]) -> None:
    strategy = strategy_class()
    arrays, _, _ = one_round(strategy, drift, arrays=model(True))
    before = strategy.state()
    merged, _, _ = one_round(strategy, drift, arrays=arrays, number=2, tasks=["y"])
    after = strategy.state()
    for group in ("@first-moment", "@second-moment"):
        assert set(before[group]) == {"encoder:float32", "decoder.x:float32", "decoder.y:float32"}
        for key, rests in (("decoder.x:float32", True), ("decoder.y:float32", False), ("encoder:float32", False)):
            assert np.array_equal(before[group][key].numpy(), after[group][key].numpy()) == rests
    assert np.array_equal(merged["decoder.x:float32"].numpy(), arrays["decoder.x:float32"].numpy())


@pytest.mark.parametrize(("dtype", "stored"), [("float16", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_moments_are_stored_in_single_precision_or_better(dtype: str, stored: str) -> None:
    strategy = TaskFedAdam()
    arrays, _, _ = one_round(strategy, drift, arrays=model(True, dtype))
    assert arrays[f"encoder:{dtype}"].numpy().dtype == dtype
    assert {array.dtype for array in strategy.state()["@second-moment"].values()} == {stored}


def test_a_small_step_is_taken_in_proportion_and_a_large_one_is_bounded() -> None:
    """With momentum off, the step for a pseudo-gradient d is about rate * d / tau if small, and never above rate."""
    for size, low, high in ((1e-6, 0.9e-5 / 2, 1.1e-5 / 2), (10.0, 0.0, 0.1)):

        def answer(key: str, message: Message, size: float = size) -> RecordDict:
            content = drift(key, message)
            start = message.content["arrays"]["w"].numpy()
            content["arrays"]["w"] = wire.FlatArray(start + start.dtype.type(size))
            return content

        arrays = ArrayRecord()
        arrays["w"] = wire.FlatArray(np.zeros(3))
        merged, _, _ = one_round(TaskFedAdam(server_beta1=0.0), answer, arrays=arrays)
        assert low <= merged["w"].numpy().min() <= merged["w"].numpy().max() <= high


def test_arrival_does_not_matter() -> None:
    forward, backward = (one_round(TaskFedYogi(), drift, order, model(True))[0] for order in (1, -1))
    assert same(forward, backward)
