"""Medformer: images and volumes of any size, words, parts, and what is computed."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.decoders import CLASSES, PAIRS, RANGED
from helpers.medformers import CUBE, FLAT, TASKS, images, medformer, rows, scheme, words
from helpers.two_tasks import config
from mtfed.config import Form
from mtfed.data.shard import Labels, MixedShard, Shard
from mtfed.data.vocabulary import BODY_PARTS, MODALITIES
from mtfed.errors import MtfedError
from mtfed.learning import acceleration
from mtfed.learning.acceleration import channels_last
from mtfed.learning.train import train
from mtfed.models.attention import CrossAttentionBlock
from mtfed.models.medformer import LATENTS, Medformer
from mtfed.models.patches import FREQUENCIES, PatchEmbedding, cell_centres, position_features, spread_points
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


def memory(model: MultiTaskModel, x: Tensor, *names: tuple[str, str]) -> Tensor:
    own = scheme(model)
    _, tokens = own._patches(x.ndim - 2)(x)
    return own.read(tokens, x.ndim - 2, words(*names) if names else None)


@torch.no_grad()
def test_the_memory_has_one_size_for_all_images() -> None:
    model = medformer().eval()
    sizes = {memory(model, images(*size)).shape for size in ((32, 32), (8, 64), (16, 16, 16), (8, 8, 24))}
    assert sizes == {(3, LATENTS, scheme(model).width)}


@torch.no_grad()
def test_words_change_the_output() -> None:
    model, x = medformer().eval(), images(32, 32, count=4)
    kinds = [("other-modality", "other-body-part"), ("ct", "chest"), ("x-ray", "chest"), ("ct", "brain")]
    expected = [memory(model, x[i : i + 1], kind)[0] for i, kind in enumerate(kinds)]  # one image at a time
    torch.testing.assert_close(memory(model, x, *kinds), torch.stack(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(memory(model, x), memory(model, x, *4 * [kinds[0]]))
    same = x[:1].expand(4, -1, -1, -1)
    outputs = model(same, rows(grade=[0, 1, 2, 3]), words(*kinds))["grade"]
    assert len({tuple(row.tolist()) for row in outputs}) == 4
    fresh = medformer(noise=False).eval()  # the vectors of words begin at zero
    torch.testing.assert_close(memory(fresh, same, *kinds), memory(fresh, same))


@torch.no_grad()
def test_memory_by_definition() -> None:
    """Compare with a reader of one image and one head at a time."""
    model, x = medformer().double().eval(), images(16, 16, 16, count=1).double()
    own, kind = scheme(model), ("mri", "brain")
    _, tokens = own._patches(3)(x)
    about = own.dimensionality["3d"] + own.modality["mri"] + own.body_part["brain"]
    latents = own.latents + own._patches(3).embed_positions(own.points) + about
    expected = attend(own.reader, latents, tokens[0].flatten(1).T)
    for block in own.blocks:
        expected = block(expected[None])[0]
    torch.testing.assert_close(memory(model, x, kind)[0], expected)


def attend(block: CrossAttentionBlock, tokens: Tensor, context: Tensor) -> Tensor:
    """Return tokens (N, D) after attention to a context (M, D), one head at a time, and the MLP."""
    attention, width = block.attention, tokens.shape[1]
    size = width // attention.num_heads
    queries = attention.q(block.norm(tokens))
    keys, values = attention.kv(block.context_norm(context)).split(width, 1)
    heads = []
    for i in range(attention.num_heads):
        part = slice(i * size, (i + 1) * size)
        scores = queries[:, part] @ keys[:, part].T / math.sqrt(size)
        heads.append(scores.exp() / scores.exp().sum(1, keepdim=True) @ values[:, part])
    tokens = tokens + attention.proj(torch.cat(heads, 1))
    return tokens + block.mlp(block.mlp_norm(tokens))


@pytest.mark.parametrize("size", [(3, 5), (2, 3, 4)])
def test_position_features_by_definition(size: tuple[int, ...]) -> None:
    features = position_features(cell_centres(size))
    assert features.shape == (*size, len(size) * (2 * FREQUENCIES + 1))
    for place in np.ndindex(*size):
        at = [-1 + (2 * i + 1) / side for i, side in zip(place, size, strict=True)]  # the middle of the cell
        waves = [(2 * 2.0**-k, x * math.pi * 2**k) for x in at for k in range(FREQUENCIES)]
        expected = [2 * x for x in at] + [size * wave(x) for wave in (math.sin, math.cos) for size, x in waves]
        torch.testing.assert_close(features[place], torch.tensor(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_points_are_spread_over_the_image_and_its_faces(dims: int) -> None:
    points = spread_points(32, dims)
    assert points.shape == (32, dims) and points.abs().max() < 1
    for axes in ([0], [0, 1], [1, 2]):
        if max(axes) < dims:
            nearest = torch.cdist(points[:, axes], points[:, axes]).fill_diagonal_(9).min(1).values
            cells = 2 * 32 ** (-1 / len(axes))  # the side of the cell that a point has to itself
            assert float(nearest.min()) > 0.3 * cells


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (16, 16, 16)])
def test_latents_start_by_attending_to_tokens_near_them(size: tuple[int, ...]) -> None:
    own = scheme(medformer(noise=False))
    dims = len(size)
    _, tokens = own._patches(dims)(images(*size, count=1))
    latents = own.latents + own._patches(dims).embed_positions(own.points[:, :dims])
    attention, width = own.reader.attention, own.width
    queries = attention.q(own.reader.norm(latents))
    keys = attention.kv(own.reader.context_norm(tokens[0].flatten(1).T))[:, :width]
    distances = torch.cdist(own.points[:, :dims], cell_centres(tuple(tokens.shape[2:])).reshape(-1, dims))
    weights = (queries @ keys.T / math.sqrt(width / attention.num_heads)).softmax(1)
    assert float((weights * distances).sum(1).mean()) < 0.85 * float(distances.mean())


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


def test_shared_weights_start_alike_whatever_the_tasks_are() -> None:
    every = medformer(KINDS, noise=False).state_dict()
    flat = {name: task for name, task in KINDS.items() if task.dimensions == 2}
    own = medformer(flat, (FLAT,), noise=False).state_dict()
    shared = [name for name in own if name.startswith("encoder.") and "task_latents" not in name]
    assert len(shared) > 50
    for name in shared:
        torch.testing.assert_close(own[name], every[name], atol=0, rtol=0)
