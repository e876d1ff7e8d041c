"""Weights of another run for a Medformer: what both have is loaded, the rest starts anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from helpers.medformers import CUBE, FLAT, TASKS, images, medformer, rows, scheme
from mtfed.config import Form
from mtfed.errors import MtfedError
from mtfed.models.build import assemble
from mtfed.models.encoders import Encoder
from mtfed.models.system import MultiTaskModel
from mtfed.models.timm_library import timm
from mtfed.tasks.task import Task

torch.set_num_threads(1)

IMAGES = {name: task for name, task in TASKS.items() if task.dimensions == 2}
VOLUMES = {name: task for name, task in TASKS.items() if task.dimensions == 3}
PRETEXT = {"fill": Task(name="fill", kind="reconstruction", dimensions=2)}


def saved(model: MultiTaskModel, path: Path) -> str:
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return str(path)


CONTINUED = [  # tasks and forms of the file, those of the model, parts that are loaded, parts that are named as missing
    (TASKS, (FLAT, CUBE), TASKS, (FLAT, CUBE), {"input.2d", "input.3d"}, ""),
    (IMAGES, (FLAT,), VOLUMES, (CUBE,), set(), "lacks input.3d, decoder.liver, decoder.nodule; they start with"),
    (PRETEXT, (FLAT,), TASKS, (FLAT, CUBE), {"input.2d"}, "lacks input.3d, decoder.grade, decoder.liver,"),
    (IMAGES | VOLUMES, (FLAT, CUBE), PRETEXT, (FLAT,), {"input.2d"}, "lacks decoder.fill; they start"),
    (IMAGES, (Form(2, 64),), IMAGES, (FLAT,), {"input.2d"}, ""),  # another image size
]  # fmt: skip


@pytest.mark.parametrize(("file", "file_forms", "tasks", "forms", "parts", "log"), CONTINUED)
def test_a_run_continues_with_what_both_have(
    file: dict[str, Task], file_forms: tuple[Form, ...], tasks: dict[str, Task], forms: tuple[Form, ...],
    parts: set[str], log: str, tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    source = medformer(file, file_forms)
    path = saved(source, tmp_path / "best.safetensors")
    fresh = medformer(tasks, forms, seed=7, noise=False)
    made = medformer(tasks, forms, seed=7, noise=False, weights=path)
    old, new, initial = source.state_dict(), made.state_dict(), fresh.state_dict()
    loaded = {name for name in new if made.part(name) in {"encoder", *parts}}
    loaded |= {name for name in new if name in old and ".task_latents" in name}
    loaded |= {name for name in new if ".modality." in name or ".body_part." in name}
    for name, tensor in new.items():
        expected = old if name in loaded else initial
        assert tensor.equal(expected[name]), name
    assert not loaded & {name for name in new if name.startswith(("decoders", "balance"))}
    messages = [record.getMessage() for record in caplog.records if record.name == "mtfed.models"]
    assert len(messages) == bool(log) and all(log in message and path in message for message in messages)


def test_colour_weights_continue_with_grey_images(tmp_path: Path) -> None:
    path = saved(source := medformer(IMAGES, (Form(2, 32, 3),)).eval(), tmp_path / "colour.safetensors")
    made = medformer(IMAGES, (FLAT,), noise=False, weights=path).eval()
    grey = images(32, 32)
    with torch.no_grad():
        stems = [scheme(model)._patches(2)(x)[0] for model, x in ((source, grey.expand(-1, 3, -1, -1)), (made, grey))]
    torch.testing.assert_close(*stems, rtol=1e-4, atol=1e-4)


def test_a_word_that_the_file_lacks_starts_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The vocabulary has grown since."""
    tensors = {k: x for k, x in medformer(IMAGES, (FLAT,)).state_dict().items() if "photograph" not in k}
    save_file(tensors, tmp_path / "old.safetensors")
    made = medformer(IMAGES, (FLAT,), noise=False, weights=str(tmp_path / "old.safetensors")).state_dict()
    assert not made["encoder.modality.photograph"].any() and made["encoder.modality.ct"].any()
    assert "lacks input.photograph; they start" in caplog.text


NANO = "vit_nano_patch8"
REFUSED = [  # encoder of the file, encoder of the model, error
    (NANO, "vit_mini_patch8", r"vit_mini_patch8': expected \S+ of the shape \(.*96.*\), got .*; set encoder"),
    (NANO, "deeper", "deeper': expected blocks.4.norm1.weight of the shape .*, got none"),
    ("deeper", NANO, "vit_nano_patch8': expected no tensor blocks.4.attn.proj.bias, got"),
    (NANO, "coarser", r"expected patches.2d.tokens.weight of the shape \(64, 32, 4, 4\), got \(64, 32, 2, 2\)"),
]


def vits() -> None:
    """Register a transformer with more blocks than ``vit_nano_patch8``, and one with larger patches."""
    for name, changes in (("deeper", {"depth": 5}), ("coarser", {"patch_size": 16})):
        if timm.is_model(name):
            continue

        def build(pretrained: bool = False, changes: dict[str, Any] = changes, **settings: Any) -> Any:
            return timm.create_model("vit_nano_patch8", **changes | settings)

        build.__name__ = name
        build.__module__ = "mtfed.models.backbones"
        timm.models.register_model(build)


@pytest.mark.parametrize(("file", "encoder", "message"), REFUSED)
def test_a_file_of_another_encoder_is_refused(file: str, encoder: str, message: str, tmp_path: Path) -> None:
    vits()
    path = saved(medformer(IMAGES, (FLAT,), encoder=file), tmp_path / "best.safetensors")
    with pytest.raises(MtfedError, match=f"Weights file {path} does not fit encoder .*{message}"):
        medformer(IMAGES, (FLAT,), weights=path, encoder=encoder)


def test_weights_of_a_plain_transformer_give_the_body_its_layers(tmp_path: Path) -> None:
    """They may be those of timm, or those of a run of mtmedformer."""
    torch.manual_seed(3)
    body = Encoder("vit_nano_patch8", 64, 1).body
    other = assemble("mtmedformer", IMAGES, (FLAT,), encoder="vit_nano_patch8", decoder_width=8)
    save_file(body.state_dict(), tmp_path / "body.safetensors")
    saved(other, tmp_path / "run.safetensors")
    for path, blocks in (("body", body.blocks), ("run", other.encoder.body.blocks)):
        made = medformer(TASKS, noise=False, seed=7, weights=str(tmp_path / f"{path}.safetensors"))
        assert all(x.equal(blocks.state_dict()[name]) for name, x in scheme(made).blocks.state_dict().items())
    with pytest.raises(MtfedError, match="timm publishes no weights of encoder 'vit_nano_patch8'"):
        medformer(weights="timm")


def test_weights_of_a_run_give_mtmedformer_its_body(tmp_path: Path) -> None:
    def build(tasks: dict[str, Task], seed: int, weights: str = "") -> MultiTaskModel:
        torch.manual_seed(seed)
        return assemble("mtmedformer", tasks, (FLAT,), encoder="vit_nano_patch8", decoder_width=8, weights=weights)

    source = build(PRETEXT, 0)
    path = saved(source, tmp_path / "best.safetensors")
    old, new, initial = source.state_dict(), build(IMAGES, 7, path).state_dict(), build(IMAGES, 7).state_dict()
    for name, tensor in new.items():
        assert tensor.equal((old if name.startswith("encoder.body.") else initial)[name]), name


def test_weights_that_leave_something_frozen_at_random_are_refused(tmp_path: Path) -> None:
    save_file(Encoder("vit_nano_patch8", 32, 1).body.state_dict(), tmp_path / "body.safetensors")
    path = saved(medformer(IMAGES, (FLAT,)), tmp_path / "best.safetensors")
    with pytest.raises(MtfedError, match="got none of the Input and the Output Adaptformer from"):
        medformer(IMAGES, (FLAT,), weights=str(tmp_path / "body.safetensors"), frozen=True)
    with pytest.raises(MtfedError, match=r"expected all weights of a frozen medformer, got none of input\.3d from"):
        medformer(TASKS, weights=path, frozen=True)
    medformer(IMAGES | PRETEXT, (FLAT,), weights=path, frozen=True)  # only a task is new


def test_the_loaded_model_answers_as_the_one_that_was_saved(tmp_path: Path) -> None:
    source = medformer().eval()
    made = medformer(noise=False, seed=7, weights=saved(source, tmp_path / "best.safetensors")).eval()
    made.decoders.load_state_dict(source.decoders.state_dict())
    for size, task in (((32, 32), "lungs"), ((16, 16, 16), "nodule")):
        own = rows(**{task: [0, 2]})
        with torch.no_grad():
            assert made(images(*size), own)[task].equal(source(images(*size), own)[task])
