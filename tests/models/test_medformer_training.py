"""Training of a Medformer on images and volumes: accumulation, compiled batches, memory formats."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from helpers.medformers import TASKS, images, medformer, rows, scheme, words
from helpers.two_tasks import config
from mtfed.data.shard import Labels, MixedShard, Shard
from mtfed.learning import acceleration
from mtfed.learning.acceleration import channels_last
from mtfed.learning.train import train

torch.set_num_threads(1)


def mixed_shard(count: int = 6) -> Shard:
    generator = torch.Generator().manual_seed(0)
    shards = []
    for size, (whole, drawn) in (((32, 32), ("grade", "lungs")), ((16, 16, 16), ("nodule", "liver"))):
        pixels = torch.randint(0, 255, (count, 1, *size), generator=generator, dtype=torch.uint8)
        index = torch.arange(count)
        labels = {whole: Labels(index, index % 2), drawn: Labels(index[::2], (pixels[::2, 0] > 99).long())}
        shards.append(Shard(pixels, labels, words=words(*count * [("ct", "chest")])))
    return MixedShard(shards)


def trained(**settings: object) -> dict[str, Tensor]:
    own = config(local_steps=4, batch_size=4, **settings).model_copy(update={"tasks": TASKS})
    model = medformer()
    train(model, mixed_shard(), list(TASKS), own, seed=0, learning_rate=1e-3)
    return model.state_dict()


def test_accumulation_gives_the_same_weights() -> None:
    whole, pieces, initial = trained(), trained(accumulate=2), medformer().state_dict()
    for name in whole:  # the biases of keys change nothing: their gradients are rounding errors
        if not name.endswith("kv.bias"):
            torch.testing.assert_close(pieces[name], whole[name], atol=2e-4, rtol=0, msg=name)
    assert max(float((x - initial[name]).abs().max()) for name, x in whole.items()) > 2e-3


def test_compiled_batches_have_their_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda forward, dynamic: forward)
    monkeypatch.setattr(acceleration, "_compiled_forwards", {})
    plain, compiled = trained(), trained(compile="on")
    assert all(compiled[name].equal(x) for name, x in plain.items())
    assert not plain["encoder.modality.ct"].equal(medformer().state_dict()["encoder.modality.ct"])


@torch.no_grad()
def test_channels_last_changes_no_output() -> None:
    model = medformer().eval()
    other = copy.deepcopy(model)
    channels_last(other)
    assert any(not weight.is_contiguous() for weight in scheme(other).patches.parameters())
    for size, task in (((32, 32), "lungs"), ((16, 16, 16), "liver")):
        own = rows(**{task: [0, 1]})
        torch.testing.assert_close(
            other(images(*size), own)[task], model(images(*size), own)[task], rtol=1e-4, atol=1e-4
        )
