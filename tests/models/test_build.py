"""Models by name, and their parts."""

from __future__ import annotations

import pytest
import torch

from helpers.two_tasks import config
from mtfed.config import Form
from mtfed.errors import MtfedError
from mtfed.learning.parts import load_parts, numpy_parts
from mtfed.models.build import assemble, build_model

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("encoder", "size", "strides"),
    [
        ("vit_mini_patch8", 64, [8] * 4),
        ("vit_tiny_patch16_224", 48, [16] * 4),
        ("swin_tiny_patch4_window7_224", 64, [4, 8, 16, 32]),
        ("pvt_v2_b0", 64, [4, 8, 16, 32]),
        ("convnext_atto", 64, [4, 8, 16, 32]),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_encoders_by_name(encoder: str, size: int, strides: list[int], channels: int) -> None:
    model = build_model(config(model="hard-sharing", encoder=encoder, image_size=size, channels=channels))
    assert model.encoder.encoder.strides == strides
    images = torch.randn(3, channels, size, size)
    out = model(images, {"pneumonia": torch.tensor([0, 2]), "lungs": torch.tensor([1])})
    assert out["pneumonia"].shape == (2, 2) and out["lungs"].shape == (1, 2, size, size)
    sum(x.sum() for x in out.values()).backward()
    unused = [
        name for name, weight in model.named_parameters() if weight.grad is None and not name.startswith("balance")
    ]
    assert not unused


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"encoder": "vit_tinny_patch16_224"},
            "Unknown encoder 'vit_tinny_patch16_224'; nearest in timm: .*vit_tiny_patch16_224",
        ),
        ({"encoder": "vit_tiny_patch16_224", "image_size": 8}, "cannot take images of 8 px"),
        ({"model": "mtmedforma"}, "Unknown model 'mtmedforma'; did you mean 'mtmedformer'"),
    ],
)
def test_impossible_models_are_refused(changes: dict, sentence: str) -> None:
    with pytest.raises(MtfedError, match=sentence):
        build_model(config(**changes))


def test_parts_are_the_whole_model_and_share_its_memory() -> None:
    model = build_model(config())
    parts = model.parts()
    assert list(parts) == ["encoder", "decoder.lungs", "decoder.pneumonia"]
    assert sorted(name for tensors in parts.values() for name in tensors) == sorted(model.state_dict())
    other = build_model(config(seed=1))
    assert not torch.equal(other.encoder.body.pos_embed, model.encoder.body.pos_embed)
    load_parts(other, numpy_parts(model))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    before = torch.get_rng_state()
    build_model(config())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("task", ["copy", "get", "setdefault", "fromkeys", "keys", "forward", "training", "type"])
def test_names_that_pytorch_uses_are_refused(task: str) -> None:
    message = f"Config key task.{task}: PyTorch uses this name itself; choose another"
    with pytest.raises(MtfedError, match=message):
        assemble("hard-sharing", {task: config().tasks["pneumonia"]}, (Form(2, 32),), encoder="resnet_nano")
