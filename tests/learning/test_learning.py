"""Losses, metrics, models and local training against slow references."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SMALL, TASKS
from safetensors.torch import save_file

from mtfed.config import Config, read_config
from mtfed.data.federation import simulated_site
from mtfed.data.shard import Labels, Shard, load_shard
from mtfed.errors import MtfedError
from mtfed.learning.balancing import Equal, Uncertainty
from mtfed.learning.losses import task_losses
from mtfed.learning.metrics import TaskMetrics, pool
from mtfed.learning.train import _pull, evaluate, fixed_seed, load_parts, load_weights, numpy_parts, pick_device, train
from mtfed.models.build import build_model

torch.set_num_threads(1)


def config(**changes: object) -> Config:
    return read_config(TASKS | SMALL | {key.replace("_", "-"): value for key, value in changes.items()})


def random_shard(n: int = 12, size: int = 32) -> Shard:
    g = torch.Generator().manual_seed(0)
    labels = {
        "pneumonia": Labels(torch.arange(0, n, 2), torch.randint(0, 2, (n // 2,), generator=g)),
        "lungs": Labels(torch.arange(1, n, 2), torch.randint(0, 2, (n // 2, size, size), generator=g).to(torch.uint8)),
    }
    return Shard(torch.randint(0, 255, (n, 1, size, size), generator=g, dtype=torch.uint8), labels)


# Losses.


def test_the_hybrid_loss_is_the_written_formula() -> None:
    torch.manual_seed(0)
    logits = {"pneumonia": torch.randn(5, 2), "lungs": torch.randn(3, 2, 8, 8)}
    values = {"pneumonia": torch.randint(0, 2, (5,)), "lungs": torch.randint(0, 2, (3, 8, 8))}
    s = {"pneumonia": torch.tensor(-0.5), "lungs": torch.tensor(0.3)}
    each = {task: loss(logits[task], values[task]) for task, loss in task_losses(config()).items()}
    nll = -logits["pneumonia"].log_softmax(1)[range(5), values["pneumonia"]].mean()
    p, y = logits["lungs"].softmax(1)[:, 1], values["lungs"].float()
    dice = 1 - (2 * (p * y).sum((1, 2)) + 1e-5) / (p.sum((1, 2)) + y.sum((1, 2)) + 1e-5)
    cross = -torch.stack(
        [logits["lungs"].log_softmax(1)[i].gather(0, values["lungs"][i][None]) for i in range(3)]
    ).mean()
    torch.testing.assert_close(each["pneumonia"], nll)
    torch.testing.assert_close(each["lungs"], dice.mean() + cross)
    for task, loss in each.items():
        torch.testing.assert_close(Uncertainty(s).term(task, loss), loss / (2 * math.exp(s[task])) + s[task] / 2)
        assert Equal(s).term(task, loss) is loss


@pytest.mark.parametrize("loss", ["focal", "cross-entropy"])
def test_focal_is_cross_entropy_at_gamma_zero(loss: str) -> None:
    torch.manual_seed(0)
    logits, values = torch.randn(6, 2), torch.randint(0, 2, (6,))
    settings = read_config(TASKS | SMALL | {"task.pneumonia.loss": loss, "focal-gamma": 0.0})
    nll = -logits.log_softmax(1)[range(6), values].mean()
    torch.testing.assert_close(task_losses(settings)["pneumonia"](logits, values), nll)


# Metrics.


def test_pooled_sums_equal_the_metrics_of_all_images() -> None:
    tasks = config().tasks
    torch.manual_seed(0)
    logits, values = torch.randn(90, 2), torch.randint(0, 2, (90,))
    masks, truth = torch.randn(9, 2, 16, 16), torch.randint(0, 2, (9, 16, 16))
    truth[4] = 0  # an image without the structure
    whole = {"pneumonia": TaskMetrics(tasks["pneumonia"]), "lungs": TaskMetrics(tasks["lungs"])}
    whole["pneumonia"].update(logits, values)
    whole["lungs"].update(masks, truth)
    sums: dict = {}
    for start, end in ((0, 2), (2, 5), (5, 9)):
        for task, x, y, step in (("pneumonia", logits, values, 10), ("lungs", masks, truth, 1)):
            part = TaskMetrics(tasks[task])
            part.update(x[start * step : end * step], y[start * step : end * step])
            for name, value in part.sums().items():
                sums[name] = (
                    value
                    if name not in sums
                    else (
                        [a + b for a, b in zip(sums[name], value, strict=True)]
                        if isinstance(value, list)
                        else sums[name] + value
                    )
                )
    pooled = pool(tasks.values(), sums)
    for task, metrics in whole.items():
        assert pooled[task].compute() == pytest.approx(metrics.compute(), abs=1e-6)
    # Slow references: every positive against every negative, and overlaps image by image.
    score = logits[:, 1] - logits[:, 0]
    pairs = score[values == 1][:, None] - score[values == 0][None]
    assert whole["pneumonia"].compute()["auc"] == pytest.approx(float((pairs > 0).float().mean()), abs=0.01)
    predicted = masks.argmax(1)
    predicted_and_true = [((p == 1), (y == 1)) for p, y in zip(predicted, truth, strict=True)]
    dice = [2 * float((p & y).sum()) / float(p.sum() + y.sum()) for p, y in predicted_and_true]  # 0 for the false alarm
    assert whole["lungs"].compute()["dice"] == pytest.approx(np.mean(dice), abs=1e-6)


@pytest.mark.parametrize(
    "scores, labels, auc",
    [
        ([4.0, 5.0, 6.0, 7.0], [0, 0, 1, 1], 1.0),  # all above .98
        ([-13.0, -11.0, -12.0, -10.0], [0, 0, 1, 1], 0.75),  # all below 2e-5
        ([-30.0, -30.0, 9.0, 9.0], [0, 0, 1, 1], 1.0),  # beyond every threshold but 0
        ([-30.0, 30.0, -30.0, 30.0], [0, 0, 1, 1], 0.5),
    ],
)
def test_confident_scores_keep_their_order(scores: list[float], labels: list[int], auc: float) -> None:
    metrics = TaskMetrics(config().tasks["pneumonia"])
    metrics.update(torch.tensor([[0.0, score] for score in scores]), torch.tensor(labels))
    assert metrics.compute()["auc"] == pytest.approx(auc)


def test_an_empty_mask_found_empty_counts_one() -> None:
    metrics = TaskMetrics(config().tasks["lungs"])
    metrics.update(
        torch.tensor([1.0, 0.0])[None, :, None, None].expand(1, 2, 8, 8), torch.zeros(1, 8, 8, dtype=torch.long)
    )
    assert metrics.compute() == {"dice": 1.0, "iou": 1.0}


def test_one_class_has_no_auc() -> None:
    metrics = TaskMetrics(config().tasks["pneumonia"])
    metrics.update(torch.randn(4, 2), torch.ones(4, dtype=torch.long))
    assert math.isnan(metrics.compute()["auc"]) and 0 <= metrics.compute()["accuracy"] <= 1


# Models.


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


# Training.


def test_training_learns_and_repeats() -> None:
    settings = config(local_steps=12, batch_size=12)
    results = []
    for _ in range(2):
        model = build_model(settings)
        first = train(
            model,
            random_shard(),
            ["pneumonia", "lungs"],
            config(local_steps=1, batch_size=12),
            seed=3,
            learning_rate=1e-3,
        )
        told = train(model, random_shard(), ["pneumonia", "lungs"], settings, seed=3, learning_rate=3e-3)
        results.append([t.clone() for t in model.state_dict().values()])
        assert told.steps == 12 and told.seen == {"pneumonia": 72, "lungs": 72}
        mean = told.loss_sums["pneumonia"] / told.seen["pneumonia"]
        assert mean < first.loss_sums["pneumonia"] / first.seen["pneumonia"]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_only_the_named_tasks_are_trained() -> None:
    model = build_model(config())
    before = {part: {n: t.clone() for n, t in tensors.items()} for part, tensors in model.parts().items()}
    told = train(
        model,
        random_shard(),
        ["lungs"],
        config(local_epochs=2, local_steps=0, batch_size=4),
        seed=0,
        learning_rate=1e-3,
    )
    assert told.seen == {"lungs": 12} and told.steps == 4
    changed = {
        part: any(not torch.equal(t, before[part][n]) for n, t in tensors.items())
        for part, tensors in model.parts().items()
    }
    assert changed == {"encoder": True, "decoder.pneumonia": False, "decoder.lungs": True}


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 3),
        ({"local_epochs": 2}, 6),
        ({"min_steps": 5}, 5),
        ({"min_steps": 2}, 3),
        ({"local_steps": 1, "min_steps": 5}, 1),
    ],
)
def test_how_many_steps(settings: dict, steps: int) -> None:
    told = train(
        build_model(config()),
        random_shard(),
        ["lungs", "pneumonia"],
        config(**({"local_steps": 0, "batch_size": 5} | settings)),
        seed=0,
        learning_rate=1e-3,
    )
    assert told.steps == steps


def test_the_learning_rate_rises_and_the_gradient_is_clipped() -> None:
    """AdamW's first step moves a weight by its learning rate; a gradient that is clipped to nothing moves none."""
    shard = random_shard()

    def moved(steps: int, warmup: int = 0, **settings: object) -> float:
        model = build_model(config())
        before = model.encoder.body.pos_embed.detach().clone()
        given = config(local_steps=steps, weight_decay=0.0, **settings)
        train(model, shard, ["lungs"], given, seed=0, learning_rate=1e-3, warmup=warmup)
        return float((model.encoder.body.pos_embed.detach() - before).abs().max())

    assert moved(1) == pytest.approx(1e-3, rel=1e-3)
    assert moved(1, warmup=3) == pytest.approx(0.25e-3, rel=1e-3)
    assert moved(2, warmup=1) == pytest.approx(1.5e-3, rel=0.02)
    assert moved(1, clip_norm=1e9) == moved(1)
    assert moved(1, clip_norm=1e-12) < 1e-5


def test_the_proximal_pull_is_the_gradient_of_its_term() -> None:
    torch.manual_seed(0)
    weight, anchor = torch.randn(5, requires_grad=True), torch.randn(5)
    plain = torch.randn(5)
    weight.grad = plain.clone()
    _pull([(weight, anchor, 0.3), (torch.ones(2), torch.zeros(2), 0.3)])  # the second has no gradient, and gets none
    (term,) = torch.autograd.grad(0.3 / 2 * (weight - anchor).square().sum(), weight)
    torch.testing.assert_close(weight.grad, plain + term)

    def drift(**pull: Any) -> float:
        model = build_model(config())
        start = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        settings = config(local_steps=20, weight_decay=0.0)
        train(model, random_shard(), ["pneumonia"], settings, seed=0, learning_rate=1e-3, **pull)
        return float((torch.cat([p.detach().flatten() for p in model.parameters()]) - start).norm())

    everything = dict.fromkeys((name for name, _ in build_model(config()).named_parameters()), 1.0)
    some = {name: mu for name, mu in everything.items() if "mlp" in name}
    free, held = drift(), drift(proximal_mu=1.0)
    assert held < drift(pull=some) < free
    assert drift(pull=everything) == held


def test_a_model_brought_along_is_read_or_refused(tmp_path: Path) -> None:
    model, other = build_model(config()), build_model(config(seed=1))
    save_file(other.state_dict(), tmp_path / "own.safetensors")
    load_weights(model, tmp_path / "own.safetensors")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    name = next(iter(model.state_dict()))
    save_file({"elsewhere": torch.ones(2)}, tmp_path / "none.safetensors")
    save_file({name: torch.ones(2)}, tmp_path / "shape.safetensors")
    (tmp_path / "text.safetensors").write_text("weights")
    for file, told in (
        ("none", "holds no tensor of this model"),
        ("shape", "should be"),
        ("text", "cannot read"),
        ("absent", "cannot read"),
    ):
        with pytest.raises(MtfedError, match=told):
            load_weights(model, tmp_path / f"{file}.safetensors")


def test_evaluation_counts_labelled_images_only() -> None:
    metrics = evaluate(build_model(config()), random_shard(), ["pneumonia", "lungs"], config(batch_size=2))
    assert {task: m.count for task, m in metrics.items()} == {"pneumonia": 6, "lungs": 6}
    assert evaluate(build_model(config()), Shard.empty(), ["lungs"], config()) == {}


def test_seeds_and_devices() -> None:
    assert fixed_seed(0, "a", 1) == fixed_seed(0, "a", 1) != fixed_seed(0, "a", 2)
    assert pick_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(MtfedError, match="asks for a GPU"):
            pick_device("cuda")


def test_a_real_site_trains() -> None:
    shard = load_shard(simulated_site(config(), 2, 8).part("train"), config())
    told = train(
        build_model(config()), shard, ["pneumonia", "lungs"], config(local_steps=3), seed=0, learning_rate=1e-3
    )
    assert all(np.isfinite(value) for value in told.loss_sums.values())
