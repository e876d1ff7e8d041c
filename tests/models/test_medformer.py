"""Medformer: images and volumes of any size, parts, and what is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.decoders import CLASSES, PAIRS, RANGED
from helpers.medformers import CUBE, FLAT, TASKS, images, medformer, rows, words
from mtfed.config import Form
from mtfed.data.vocabulary import BODY_PARTS, MODALITIES
from mtfed.errors import MtfedError
from mtfed.models.medformer import Medformer
from mtfed.models.patches import PatchEmbedding
from mtfed.models.system import MultiTaskModel
from mtfed.strategies.wire import task_of
from mtfed.tasks.specs import KIND_SPECS
from mtfed.tasks.task import Task

torch.set_num_threads(1)


KINDS = {
    f"{kind}-{decoder}_{n}": Task(
        name=f"{kind}-{decoder}_{n}", kind=kind, decoder=decoder, dimensions=n, classes=CLASSES,
        range=(0, 8) if kind in RANGED else (),
    )
    for kind, decoder in PAIRS if not KIND_SPECS[kind].every_image
    for n in (2, 3)
}  # fmt: skip
KINDS |= {
    f"{kind}_{n}": Task(name=f"{kind}_{n}", kind=kind, dimensions=n)
    for kind, spec in KIND_SPECS.items() if spec.every_image
    for n in (2, 3)
}  # fmt: skip


@pytest.fixture(scope="module")
def every_kind() -> MultiTaskModel:
    return medformer(KINDS)


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (16, 40), (16, 16, 16), (8, 8, 8), (8, 24, 16)])
def test_tasks_of_every_kind_on_images_of_every_size(every_kind: MultiTaskModel, size: tuple[int, ...]) -> None:
    every_kind.zero_grad()
    own = {name: torch.tensor([0, 2]) for name, task in KINDS.items() if task.dimensions == len(size)}
    outputs = every_kind(images(*size), own)
    assert list(outputs) == list(own)
    for name, output in outputs.items():
        assert len(output) == 2 and output.isfinite().all(), name
        if KINDS[name].spec.geometry == "map" and KINDS[name].kind != "detection":
            assert output.shape[2:] == size, name
    sum(output.square().sum() for output in outputs.values()).backward()
    parts = {every_kind.part(name) for name, weight in every_kind.named_parameters() if weight.grad is not None}
    kind = f"input.{len(size)}d"
    assert parts == {"encoder", kind, "input.other-modality", "input.other-body-part", *map("decoder.{}".format, own)}


BAD_FORMS: list[tuple[dict[str, Any], str]] = [
    ({"forms": (Form(2, 36), CUBE)}, "Encoder 'vit_nano_patch8' cannot take images of 36 px: .* a multiple of 8"),
    (
        {"forms": (FLAT, Form(3, 20))},
        "Config key volume-size or image-size: medformer expects a multiple of its patches' side of 8 pixels, got "
        "20x20x20; choose another size, or an encoder with other patches",
    ),
    ({"encoder": "resnet_nano"}, "Config key encoder: .* from a plain ViT, which resnet_nano is not; choose one, such"),
    ({"encoder": "swin_mini"}, "from a plain ViT, which swin_mini is not"),
    ({"encoder": "pvt_mini"}, "from a plain ViT, which pvt_mini is not"),
    ({"encoder": "vit_nano_patch9"}, "Unknown encoder 'vit_nano_patch9'; nearest in timm: .*vit_nano_patch8"),
    ({"weights": "nowhere.safetensors"}, "Weights nowhere.safetensors is not a file"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), BAD_FORMS)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MtfedError, match=message):
        medformer(**settings)


def test_patches_whose_side_is_no_multiple_of_the_stems_stride_are_refused() -> None:
    with pytest.raises(MtfedError, match="whose side is a multiple of 4 pixels, got 14; choose an encoder"):
        PatchEmbedding(Form(2, 28), 14, 64)


@pytest.mark.parametrize("size", [(20, 32), (16, 16, 12)])
def test_an_image_that_patches_do_not_divide_is_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(MtfedError, match=f"multiple of its patches' side of 8 pixels, got {'x'.join(map(str, size))}"):
        medformer()(images(*size), {})


def test_parts() -> None:
    model = medformer()
    parts = model.parts()
    inputs = [f"input.{name}" for name in ("2d", "3d", *MODALITIES, *BODY_PARTS)]
    assert set(parts) == {"encoder", *inputs, *(f"decoder.{task}" for task in TASKS)}
    for name, tensor in (("input.ct", "encoder.modality.ct"), ("input.chest", "encoder.body_part.chest")):
        assert list(parts[name]) == [tensor]
    assert {name.split(".")[1] for name in parts["input.3d"]} == {"patches", "dimensionality"}
    assert {name.split(".")[1] for name in parts["encoder"]} == {"latents", "points", "reader", "blocks", "writer"}
    assert {"encoder.task_latents.lungs", "balance.lungs"} < set(parts["decoder.lungs"])
    flat = medformer({"grade": TASKS["grade"]}, (FLAT,))
    assert "input.3d" not in flat.parts() and "input.2d" in flat.parts()


USED = [  # size, words, tasks, parts that get a gradient besides the encoder's
    ((32, 32), [("ct", "chest"), ("mri", "chest")], ["grade"], {"input.2d", "input.ct", "input.mri", "input.chest"}),
    ((8, 8, 8), [("ct", "chest"), ("ct", "brain")], ["liver"], {"input.3d", "input.ct", "input.chest", "input.brain"}),
    ((32, 32), [], ["grade", "lungs"], {"input.2d", "input.other-modality", "input.other-body-part"}),
]  # fmt: skip


@pytest.mark.parametrize(("size", "names", "tasks", "parts"), USED)
def test_only_input_parts_of_images_in_the_batch_get_a_gradient(
    size: tuple[int, ...], names: list[tuple[str, str]], tasks: list[str], parts: set[str]
) -> None:
    model = medformer()
    own = {task: torch.arange(2) for task in tasks}
    outputs = model(images(*size, count=2), own, words(*names) if names else None)
    sum(output.square().sum() for output in outputs.values()).backward()
    used = {model.part(name) for name, weight in model.named_parameters() if weight.grad is not None}
    assert used == {"encoder", *parts, *map("decoder.{}".format, tasks)}
    unused = {name for name, weight in model.named_parameters() if weight.grad is None and model.part(name) in used}
    assert unused == {f"balance.{task}" for task in tasks}


def test_only_the_features_that_a_decoder_reads_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, queries = medformer().eval(), []
    write = Medformer.write
    monkeypatch.setattr(Medformer, "write", lambda self, q, m: queries.append(tuple(q.shape[:2])) or write(self, q, m))
    counts = {"grade": [(3, 1)], "lungs": [(3, 16)], "nodule": [(3, 1)], "liver": [(3, 8)]}
    for task, expected in counts.items():
        model(images(*(32, 32) if TASKS[task].dimensions == 2 else (16, 16, 16)), rows(**{task: [0, 1, 2]}))
        assert queries == expected
        queries.clear()
    model(images(32, 32), {"grade": torch.tensor([1]), "lungs": torch.tensor([0, 2])})
    assert queries == [(1, 1), (2, 16)]


@torch.no_grad()
def test_a_task_without_rows_costs_nothing_and_rows_do_not_depend_on_others() -> None:
    model, x = medformer().eval(), images(32, 32)
    seen = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda module, inputs, name=name: seen.append(name))
    whole = model(x, rows(grade=[0, 1, 2], lungs=[0, 1, 2]))
    seen.clear()
    some = model(x, rows(lungs=[2]))
    assert not any(task_of(model.part(name)) not in ("", "lungs") for name in seen if name.count("."))
    assert not any(name.startswith("encoder.patches.3d") for name in seen)
    torch.testing.assert_close(some["lungs"], whole["lungs"][2:], rtol=1e-4, atol=1e-5)
    assert model(x, {}) == {}


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second, other = (medformer(seed=seed, noise=False).state_dict() for seed in (0, 0, 1))
    assert all(x.equal(second[name]) for name, x in first.items())
    assert not first["encoder.latents"].equal(other["encoder.latents"])


def test_shared_weights_start_alike_whatever_the_tasks_are() -> None:
    every = medformer(KINDS, noise=False).state_dict()
    flat = {name: task for name, task in KINDS.items() if task.dimensions == 2}
    own = medformer(flat, (FLAT,), noise=False).state_dict()
    shared = [name for name in own if name.startswith("encoder.") and "task_latents" not in name]
    assert len(shared) > 50
    for name in shared:
        torch.testing.assert_close(own[name], every[name], atol=0, rtol=0)
