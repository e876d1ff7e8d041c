"""Half precision, memory formats and the compiler change no result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from helpers.three_tasks import ROWS, SIDE, config, one_step, shard, tiny
from mtfed.data.shard import Labels, Shard
from mtfed.errors import MtfedError
from mtfed.learning import acceleration
from mtfed.learning.parts import load_parts, numpy_parts
from mtfed.learning.train import train
from mtfed.models.build import build_model

torch.set_num_threads(1)


def test_half_precision() -> None:
    cpu = torch.device("cpu")
    dtypes = [acceleration.half_precision(name, cpu) for name in ("auto", "none", "bfloat16")]
    assert dtypes == [None, None, torch.bfloat16]
    with pytest.raises(MtfedError, match="autocast: float16 needs a CUDA GPU, this is cpu"):
        acceleration.half_precision("float16", cpu)
    exact, rough = (one_step(tiny().float(), autocast=name) for name in ("none", "bfloat16"))
    for name, value in exact.items():
        assert rough[name].dtype == np.float32
        np.testing.assert_allclose(rough[name], value, atol=0.05 * np.abs(value).max() + 0.01, err_msg=name)
    assert any((rough[name] != value).any() for name, value in exact.items())


@pytest.mark.parametrize("balancing", ["uncertainty", "pcgrad"])
def test_channels_last_changes_no_result(balancing: str) -> None:
    weights = []
    for last in (False, True):
        model = build_model(config(balancing=balancing))
        if last:
            acceleration.channels_last(model)
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
        acceleration.channels_last(copy := build_model(config(seed=1)))
        load_parts(copy, weights[-1])
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), copy.state_dict().values(), strict=True)
        )
    for part, tensors in weights[0].items():
        for name, value in tensors.items():
            np.testing.assert_allclose(weights[1][part][name], value, atol=2e-4, err_msg=name)
    acceleration.set_memory_format(copy := build_model(config()), config())  # on a CPU nothing is gained
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
    monkeypatch.setattr(acceleration, "_compiled_forwards", {})
    trained = {}
    for mode in ("off", "auto", "on"):
        model = tiny(norm=True)
        names = list(model.state_dict())
        for seed in (0, 1):
            settings = config(compile=mode, local_steps=2, batch_size=6)
            train(model, shard(), list(ROWS), settings, seed=seed, learning_rate=1e-2)
        assert list(model.state_dict()) == names
        trained[mode] = [value.clone() for value in model.state_dict().values()]
        assert mode == "on" or not calls  # on a CPU auto does not
    assert calls == [True] * count
    assert [record.getMessage() for record in caplog.records] == (
        ["torch.compile failed, training continues without it: RuntimeError: no compiler here"] if works < 99 else []
    )
    for other in ("auto", "on"):
        assert all(torch.equal(a, b) for a, b in zip(trained["off"], trained[other], strict=True))


def test_an_error_of_the_model_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda forward, dynamic: forward)
    monkeypatch.setattr(acceleration, "_compiled_forwards", {})
    forward = acceleration.training_forward(model := tiny(), config(compile="on"), torch.device("cpu"), 1)
    images = torch.zeros(2, 1, SIDE, SIDE)
    assert forward(images, {"side": torch.tensor([0])})["side"].shape == (1, 2)
    with pytest.raises(KeyError, match="unheard-of"):
        forward(images, {"unheard-of": torch.tensor([0])})
    assert all(weight.grad is None for weight in model.parameters())
