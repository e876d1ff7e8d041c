"""Sharing schemes: shapes, rows, parts, and parts of other tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from helpers.sharing import ALL, ENCODERS, ROWS, SCHEMES, TASKS, build, close, image, rows
from mtfed.errors import MtfedError
from mtfed.models.ctan import CrossTaskAttention
from mtfed.models.encoders import Encoder
from mtfed.models.sharing import Sharing
from mtfed.strategies.wire import task_of

torch.set_num_threads(1)


@pytest.mark.parametrize(("scheme", "encoder"), ALL)
def test_features_are_those_of_the_rows_and_of_the_encoders_shape(scheme: str, encoder: str) -> None:
    model, x = build(scheme, encoder).eval(), image(encoder)
    everything = {task: torch.arange(len(x)) for task in TASKS}
    with torch.no_grad():
        some, whole = model(x, rows()), model(x, everything)
    assert list(some) == list(ROWS)
    reads = model.encoder
    side, dims = ENCODERS[encoder]
    for task, index in rows().items():
        close(some[task], whole[task].rows(index))
        assert some[task].pooled.shape == (len(index), reads.dim)
        sizes = [(len(index), c, *(side // s,) * dims) for c, s in zip(reads.channels, reads.strides, strict=True)]
        assert [tuple(level.shape) for level in some[task].maps] == sizes


@pytest.mark.parametrize("scheme", SCHEMES)
def test_unused_rows_change_nothing(scheme: str) -> None:
    model, x = build(scheme).eval(), image()
    with torch.no_grad():
        whole, part = model(x, rows({"kind": [1], "lungs": [2]})), model(x[1:], rows({"kind": [0], "lungs": [1]}))
        assert model(x, {}) == {}
    assert list(whole) == ["kind", "lungs"]
    for task in whole:
        close(whole[task], part[task])


def calls(model: nn.Module, run: Callable[[], Any]) -> Counter[str]:
    """Count the images that every module sees."""
    seen: Counter[str] = Counter()
    for name, module in model.named_modules():
        if not list(module.children()):
            hook = lambda module, inputs, name=name: seen.update({name: len(inputs[0])})  # noqa: E731
            module.register_forward_pre_hook(hook)
    run()
    return seen


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_task_without_rows_costs_nothing_unless_others_attend_to_it(scheme: str) -> None:
    model = build(scheme).eval()
    seen = calls(model, lambda: model(image(), rows({"lungs": [1]})))
    foreign = {model.part(name) for name in seen} - {"encoder", "decoder.lungs", "cross.lungs"}
    # CTAE runs its layers as products of all tasks, which no hook sees; the bottleneck's modules are called.
    attended = {"cross.kind", "cross.left-lung_2"} if scheme in ("ctan", "ctan, bottleneck only") else set()
    assert foreign == attended
    assert {count for name, count in seen.items() if model.part(name) in attended} <= {
        1,
        2,
    }  # 2: two tasks attend


def test_streams_of_other_tasks_are_attended_to() -> None:
    for scheme, read in {"hard": False, "mtan": False, "ctan": True, "ctan, encoder only": True}.items():
        model, x = build(scheme).eval(), image()
        with torch.no_grad():
            before = model(x, rows({"lungs": [1]}))["lungs"].pooled
            for name, weight in model.named_parameters():
                if model.part(name).endswith(".kind"):
                    weight.mul_(1.5)
            after = model(x, rows({"lungs": [1]}))["lungs"].pooled
        assert torch.equal(before, after) != read, scheme


def test_a_bottleneck_computes_only_its_own_rows() -> None:
    model = build("ctan").eval()
    seen = calls(model, lambda: model(image(), rows()))
    for task, index in ROWS.items():
        assert seen[f"cross.{task}.bottleneck.embed"] == 3  # other tasks attend to these
        assert seen[f"cross.{task}.bottleneck.attention.q"] == len(index)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("tasks", [("kind",), ("kind", "lungs"), TASKS])
def test_any_number_of_tasks(scheme: str, tasks: tuple[str, ...]) -> None:
    model = build(scheme, tasks=tasks)
    features = model(image(), {task: torch.arange(3) for task in tasks})
    torch.stack([f.pooled.sum() + sum(level.sum() for level in f.maps) for f in features.values()]).sum().backward()
    assert list(features) == list(tasks)
    unused = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert unused == []


def test_ctan_without_attention_is_refused() -> None:
    with pytest.raises(MtfedError, match="in the encoder, at the bottleneck, or both, got neither; use HardSharing"):
        CrossTaskAttention(Encoder("resnet_nano", 32, 1), TASKS, in_encoder=False, at_bottleneck=False)


NAMES = [  # scheme, prefix of a tensor's name, its part
    ("hard", "body.", "encoder"),
    ("separate", "own.kind.body.", "decoder.kind"),
    ("mtan", "body.", "encoder"),
    ("mtan", "attention.left-lung_2.3.", "decoder.left-lung_2"),
    ("mtan", "bottlenecks.2.residual.", "encoder"),
    ("ctan", "body.", "encoder"),
    ("ctan", "cross.left-lung_2.stages.0.own.", "cross.left-lung_2"),
    ("ctan", "cross.kind.bottleneck.attention.", "cross.kind"),
]


@pytest.mark.parametrize(("scheme", "prefix", "part"), NAMES)
def test_part_of_a_tensor(scheme: str, prefix: str, part: str) -> None:
    model = build(scheme)
    names = [name for name in model.state_dict() if name.startswith(prefix)]
    assert names and {model.part(name) for name in names} == {part}


OWN = {"hard": 0, "separate": 3, "mtan": 3, "ctan": 3, "ctan, encoder only": 3, "ctan, bottleneck only": 3}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_tensor_is_in_one_part(scheme: str) -> None:
    model = build(scheme)
    storage = [tensor.data_ptr() for tensor in model.state_dict(keep_vars=True).values() if tensor.numel()]
    assert len(set(storage)) == len(storage)
    parts = {model.part(name) for name in model.state_dict()}
    assert len(parts - {"encoder"}) == OWN[scheme] and ("encoder" in parts) == (scheme != "separate")
    assert (
        set(model.state_dict()) >= {f"body.{name}" for name in model.encoder.body.state_dict()} or scheme == "separate"
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_copy_is_whole(scheme: str) -> None:
    model = build(scheme).eval()
    copy = deepcopy(model)
    with torch.no_grad():
        before = model(image(), rows())
        for weight in copy.parameters():
            weight.zero_()
        close(model(image(), rows())["lungs"], before["lungs"])
        assert all(not features.maps[-1].any() or scheme == "mtan" for features in copy(image(), rows()).values())


def hold(model: Sharing, task: str) -> None:
    """Let what a site with one task does not train take no gradients."""
    for name, weight in model.named_parameters():
        weight.requires_grad_(task_of(model.part(name)) in ("", task))


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name.startswith("ctan")])
def test_parts_of_other_tasks_are_fixed_context(scheme: str) -> None:
    model = build(scheme).train()
    hold(model, "lungs")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    features = model(image(), rows({"lungs": [0, 2]}))["lungs"]
    (features.pooled.square().sum() + sum(level.square().sum() for level in features.maps)).backward()
    gradients = {model.part(name) for name, weight in model.named_parameters() if weight.grad is not None}
    assert gradients == {"encoder", "cross.lungs"}
    for name, tensor in model.state_dict().items():  # no statistics either
        assert torch.equal(tensor, before[name]) or model.part(name) == "encoder"


def test_gradients_reach_the_encoder_through_foreign_parts() -> None:
    model = build("ctan", "vit_nano_patch8")
    gradients = []
    for listens in (True, False):
        hold(model, "lungs")
        if not listens:
            stages = model.get_submodule("cross.lungs.stages")
            for name, weight in stages.named_parameters():
                weight.data.mul_(float(".heard" not in name))
            model.get_submodule("cross.lungs.bottleneck.out").weight.data.zero_()
        model.zero_grad()
        model(image("vit_nano_patch8"), rows({"lungs": [0]}))["lungs"].pooled.square().sum().backward()
        gradients.append(model.get_parameter("body.patch_embed.proj.weight").grad.clone())
    assert not torch.allclose(*gradients)


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name.startswith("ctan")])
@pytest.mark.parametrize("encoder", ["resnet_nano", "vit_nano_patch8"])
def test_ctan_begins_as_hard_sharing(scheme: str, encoder: str) -> None:
    cross, hard = (build(name, encoder, noise=False).eval() for name in (scheme, "hard"))
    hard.load_state_dict({name: x for name, x in cross.state_dict().items() if name.startswith("body.")})
    with torch.no_grad():
        shared, plain = cross(image(encoder), rows()), hard(image(encoder), rows())
    for task in ROWS:
        close(shared[task], plain[task])


def test_one_image_of_a_task_may_have_one_pixel() -> None:
    model = build("mtan").train()
    assert model(image(), rows({"kind": [0]}))["kind"].maps[-1].shape[2:] == (1, 1)
    assert all(x.isfinite().all() for x in model.state_dict().values())
