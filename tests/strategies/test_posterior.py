"""The posterior: resumed runs, priors, and models drawn from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, RecordDict

from helpers.bayesian import (
    drifting,
    frame,
    record,
    sites,
)
from helpers.planted import RNG
from helpers.rounds import Sites, drift, normed, one_round, same
from mtfed.record.run import Run
from mtfed.strategies import BayesianMatching, GrowingMatching, Pfnm, TaskFedAvg, wire
from mtfed.strategies.precision import write_precision


@pytest.mark.parametrize("settings", [{}, {"prior_strength": 0.5}, {"prior_strength": 1.0, "start": "apart"}])
def test_a_resumed_run_is_bit_equal(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    run, initial = Run(tmp_path), record(frame()[1], True)
    straight, resumed = (BayesianMatching(frame()[0], **settings) for _ in range(2))
    arrays, _, _ = one_round(straight, drifting, arrays=initial, number=1)
    run.save("last", arrays, straight.state(), {})
    saved = run.load("last", initial)
    assert saved is not None
    again, state, _ = saved
    resumed.roster.refresh(Sites(drifting))
    resumed.restore(state)
    for number in (2, 3):
        arrays, metrics, _ = one_round(straight, drifting, arrays=arrays, number=number)
        again, same_metrics, _ = one_round(resumed, drifting, arrays=again, number=number)
        assert same(arrays, again) and dict(metrics) == dict(same_metrics)
    assert straight.posterior.keys() == resumed.posterior.keys() == {k for k in initial if k != wire.MANIFEST}
    for key, precision in straight.posterior.items():
        assert precision.shape == initial[key].numpy().shape
        np.testing.assert_array_equal(precision, resumed.posterior[key])


def test_a_prior_slows_the_model_down() -> None:
    def moved(strength: float) -> float:
        strategy = BayesianMatching(prior_strength=strength)
        arrays, _, _ = one_round(strategy, sites(True), arrays=record(frame()[1], True))
        after, _, _ = one_round(strategy, drifting, arrays=arrays, number=2)
        return float(np.abs(after["encoder:float32"].numpy() - arrays["encoder:float32"].numpy()).mean())

    assert moved(1.0) < 0.9 * moved(0.3) < 0.9 * moved(0.0)
    counting = BayesianMatching(prior_strength=1.0, precision="none")  # its posterior is one number an array
    first, _, _ = one_round(counting, sites(True, measuring=""), arrays=record(frame()[1], True))
    second, _, _ = one_round(counting, sites(True, measuring="", noise=0.2), arrays=first, number=2)
    plain, _, _ = one_round(TaskFedAvg(), sites(True, measuring="", noise=0.2), arrays=first, number=2)
    key = "encoder:float32"
    mean = (first[key].numpy().astype(float) + plain[key].numpy()) / 2
    np.testing.assert_allclose(second[key].numpy(), mean, rtol=1e-5, atol=1e-6)


def test_samples_have_the_posteriors_mean_and_spread() -> None:
    arrays = normed(True)
    strategy = BayesianMatching()
    key = "encoder:float32"
    values = arrays[key].numpy()
    precision = np.where(np.arange(values.size) % 5, RNG(0).uniform(4, 400, values.size), 0.0).astype("f")
    strategy.posterior, strategy.measured_keys = {key: precision, "decoder.y:float32": np.array(25.0, "f")}, {key}
    for temperature in (1.0, 0.25):
        draws = [strategy.sample(arrays, seed, temperature) for seed in range(400)]
        drawn = np.stack([draw[key].numpy() for draw in draws])
        statistics = np.zeros(values.size, bool)
        for tensor in wire.tensors_in(arrays)[key]:
            statistics[tensor.place] = "running" in tensor.name
        still = statistics | (precision == 0)
        assert np.array_equal(drawn[:, still], np.broadcast_to(values[still], (400, still.sum()))) and still.sum() > 5
        spread = np.sqrt(temperature / precision[~still])
        np.testing.assert_allclose(drawn[:, ~still].mean(0), values[~still], atol=5 * spread.max() / 20)
        np.testing.assert_allclose(drawn[:, ~still].std(0), spread, rtol=0.2)
        for name in arrays.keys() - {key}:  # the posterior of decoder.y is only a number of samples
            assert draws[0][name] is arrays[name]
    assert same(strategy.sample(arrays, 3), strategy.sample(arrays, 3))
    assert drawn.dtype == values.dtype
    with pytest.raises(ValueError, match="Expected a temperature of 0 or more, got -1"):
        strategy.sample(arrays, 3, temperature=-1)


@pytest.mark.parametrize("prior", [0.0, 0.5])
@pytest.mark.parametrize("strategy_class", [BayesianMatching, GrowingMatching, Pfnm])
def test_weights_without_measured_precision_are_not_drawn(strategy_class: type[BayesianMatching], prior: float) -> None:
    plain, measured = ArrayRecord(), False
    for name, values in {"w": np.ones((4, 4), "f"), "scale": np.array(1.0, "f")}.items():
        plain[name] = wire.FlatArray(values)

    def answer(key: str, message: Message) -> RecordDict:
        content = drift(key, message)
        if measured:
            content["precision"] = write_precision({"w": np.full((4, 4), 9.0)})
        return content

    strategy = strategy_class() if strategy_class is Pfnm else strategy_class(prior_strength=prior)
    for number, measured in enumerate((False, True, False), start=1):
        plain, _, _ = one_round(strategy, answer, arrays=plain, number=number)
        drawn = strategy.sample(plain, 0)
        assert same(drawn, plain) == (strategy_class is Pfnm or not (measured or (prior and number == 3)))
        assert drawn["scale"] is plain["scale"]
        again = strategy_class()
        again.restore(strategy.state())
        assert same(again.sample(plain, 0), drawn)
