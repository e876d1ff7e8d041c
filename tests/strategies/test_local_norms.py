"""FedBN: norms stay at their site, and the rest is averaged."""

from __future__ import annotations

import re

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from helpers.rounds import SITES, drift, normed, one_round, same, tensors_of
from mtfed.strategies import (
    SiteCard,
    TaskFedAvg,
    TaskFedBN,
)
from mtfed.strategies.local_norms import NORMS, norm_modules
from mtfed.strategies.wire import TensorEntry

LOCAL = {"body.norm1.weight", "body.ln_1.gain", "x.up.1.weight", "x.up.1.bias"} | {
    f"body.down.1.{name}" for name in ("weight", "running_mean", "num_batches_tracked")
}


@pytest.mark.parametrize("packed", [True, False])
def test_norms_stay_at_their_site_and_the_rest_is_averaged(packed: bool) -> None:
    strategy, reference, arrays = TaskFedBN(), TaskFedAvg(), normed(packed)
    own: dict[str, dict[str, np.ndarray]] = {}
    for number in (1, 2, 3):
        rounds: dict[str, tuple[dict, dict]] = {}

        def answer(key: str, message: Message, rounds: dict = rounds) -> RecordDict:
            content = drift(key, message)
            rounds[key] = tensors_of(message.content["arrays"]), tensors_of(content["arrays"])
            return content

        before = tensors_of(arrays)
        arrays, _, _ = one_round(strategy, answer, arrays=arrays, number=number)
        for key, (sent, _) in rounds.items():
            for name, value in sent.items():
                expected = own.get(key, before)[name] if name in LOCAL else before[name]
                np.testing.assert_array_equal(value, expected, err_msg=f"{key} {name} round {number}")
        own |= {key: given for key, (_, given) in rounds.items()}
        sites = strategy.trained_models(arrays)
        assert list(sites) == list(SITES)
        for key, model in sites.items():
            tensors = tensors_of(model)
            assert tensors.keys() == own[key].keys()
            for name, value in tensors.items():
                np.testing.assert_array_equal(value, own[key][name] if name in LOCAL else tensors_of(arrays)[name])
    # The global arrays are FedAvg's average, norms included; a site that joins now is sent these.
    first = one_round(TaskFedBN(), drift, arrays=normed(packed))[0]
    assert same(first, one_round(reference, drift, arrays=normed(packed))[0])
    newcomer = strategy.arrays_for(SiteCard("new", 1, frozenset("x")), arrays, ["x"])
    assert all(np.array_equal(value, tensors_of(arrays)[name]) for name, value in tensors_of(newcomer).items())


@pytest.mark.parametrize(
    ("module", "known"),
    [
        *[(name, True) for name in ("norm", "norm1", "bn", "bn2", "ln", "ln_1", "fc_norm", "norm_pre", "LayerNorm")],
        *[(f"a.{name}", True) for name in ("layernorm_before", "BatchNorm1", "q_norm", "group_norm", "conv_norm_out")],
        *[(name, False) for name in ("normal", "linear", "lnk", "bnn", "norm.proj", "conv1", "0", "vnorm")],
    ],
)  # fmt: skip
def test_normalisation_is_recognised_by_name(module: str, known: bool) -> None:
    tensors = [TensorEntry(f"{module}.weight", (4, 4), ...)]
    assert norm_modules(tensors, re.compile(NORMS, re.IGNORECASE)) == ({module} if known else set())


def test_other_norms_can_be_given() -> None:
    strategy = TaskFedBN(norms="conv")
    arrays = one_round(strategy, drift, arrays=normed(True))[0]
    model, average = tensors_of(strategy.trained_models(arrays)["a"]), tensors_of(arrays)
    differ = {name for name, value in model.items() if not np.array_equal(value, average[name])}
    assert differ == LOCAL - {"body.norm1.weight", "body.ln_1.gain", "body.down.1.num_batches_tracked"} | {
        "body.conv.weight",
        "body.conv.bias",
    }
