"""Batch norms of small batches."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from helpers.encoders import disturb, image
from mtfed.models.encoders import Encoder
from mtfed.models.norms import BatchNorm, BatchNormAct, replace_norms
from mtfed.models.timm_library import timm

torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["resnet_nano", "efficientnet_b0", "regnetx_002", "mobilenetv2_035"])
def test_one_small_image_trains(name: str) -> None:
    torch.manual_seed(0)
    made = Encoder(name, 32, 1).train()
    features = made(image(2, 32, batch=1))
    assert features.maps[-1].shape[2:] == (1, 1)
    (features.pooled.square().sum() + features.maps[0].square().sum()).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in made.parameters())
    assert all(tensor.isfinite().all() for tensor in made.state_dict().values())
    norms = [m for m in made.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(isinstance(norm, BatchNorm) for norm in norms)


@torch.no_grad()
def test_replaced_norms_with_an_activation_compute_the_same() -> None:
    original = timm.layers.BatchNormAct2d(4, eps=1e-3, momentum=0.3, act_layer=nn.PReLU, drop_layer=nn.Hardtanh)
    disturb(original)
    pair = [nn.Sequential(original), replace_norms(nn.Sequential(deepcopy(original)))]
    assert type(pair[1][0]) is BatchNormAct
    for training in (True, False):
        first, second = (norm.train(training)(image(2, 5, 4)) for norm in pair)
        assert torch.equal(first, second) and first.min() < 0 < first.max()
        states = [norm.state_dict() for norm in pair]
        assert list(states[0]) == list(states[1]) and "0.act.weight" in states[0]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    single = image(2, 1, 4, batch=1)
    pair[0].eval(), pair[1].train()
    torch.testing.assert_close(pair[1](single), pair[0](single))
