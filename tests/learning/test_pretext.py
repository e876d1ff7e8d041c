"""Pretext tasks in batches: their copies and values, in training, evaluation, curvature and the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.pretext import KEYS, PRETEXT, batch_of
from mtfed.config import Config, read_config
from mtfed.data.shard import Labels, Shard
from mtfed.learning.curvature import curvature
from mtfed.learning.evaluate import evaluate
from mtfed.learning.pretext import add_pretext
from mtfed.learning.train import train
from mtfed.models.build import build_model
from mtfed.record.examples import save_examples
from mtfed.record.run import Run
from mtfed.report.galleries import examples as draw_examples

LABELLED = {"task.side.kind": "classification", "task.side.classes": "left, right"}


def config(**keys: Any) -> Config:
    settings = {
        "image-size": 16,
        "encoder": "vit_nano_patch8",
        "decoder-width": 4,
        "batch-size": 4,
        "balancing": "equal",
    }
    return read_config(KEYS | LABELLED | settings | {key.replace("_", "-"): value for key, value in keys.items()})


def shard(dimensions: int = 2, count: int = 6, size: int = 16) -> Shard:
    """Return images of which every second one has a label."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 1, *(size,) * dimensions), generator=generator, dtype=torch.uint8)
    every, none = torch.arange(count), torch.zeros(count, 1, dtype=torch.uint8)
    labels = {kind: Labels(every, none) for kind in PRETEXT}
    return Shard(images, {"side": Labels(every[::2], every[::2] % 4 // 2), **labels})


def test_copies_follow_the_labelled_images() -> None:
    images = torch.randn(5, 1, 16, 16)
    batch = batch_of(images, views=[0, 2, 3], side=[1, 4], orientation=[2])
    batch.words = torch.arange(10).view(5, 2)
    torch.manual_seed(0)
    made = add_pretext(batch, config().tasks)
    assert torch.equal(made.images[:2], images[[1, 4]])  # the others are only needed as copies
    assert {name: labels.rows.tolist() for name, labels in made.labels.items()} == {
        "views": [2, 3, 4, 5, 6, 7], "side": [0, 1], "orientation": [8],
    }  # fmt: skip
    assert made.labels["views"].values.tolist() == [0, 0, 1, 1, 2, 2]
    assert made.words is not None and made.words[:, 0].div(2).tolist() == [1, 4, 0, 0, 2, 2, 3, 3, 2]
    assert torch.equal(made.images[8].sort().values.flatten().sort().values, images[2].flatten().sort().values)


def test_a_batch_without_pretext_tasks_stays() -> None:
    batch = batch_of(torch.randn(3, 1, 16, 16), side=[0, 2])
    assert add_pretext(batch, config().tasks) is batch


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("balancing", ["equal", "uncertainty", "pcgrad"])
def test_pretext_tasks_are_trained_with_the_others(balancing: str, accumulate: int) -> None:
    settings = config(balancing=balancing, accumulate=accumulate)
    model = build_model(settings)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = train(model, shard(), list(settings.tasks), settings, seed=1, learning_rate=0.01)
    assert result.steps == 2
    assert result.samples == {"side": 3, "reconstruction": 6, "orientation": 6, "views": 12}
    assert all(np.isfinite(value) for value in result.loss_sums.values())
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {f"decoders.{task}" for task in settings.tasks} <= {".".join(name.split(".")[:2]) for name in changed}
    again = build_model(settings)
    train(again, shard(), list(settings.tasks), settings, seed=1, learning_rate=0.01)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_site_without_labels_trains_only_pretext_tasks() -> None:
    settings = config()
    model = build_model(settings)
    result = train(model, shard(), list(PRETEXT), settings, seed=1, learning_rate=0.01)
    assert result.samples == {"reconstruction": 6, "orientation": 6, "views": 12}


def test_evaluation_is_the_same_every_time() -> None:
    settings = config()
    model = build_model(settings)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        metrics = evaluate(model, shard(), list(settings.tasks), settings)
        results.append({task: metric.compute() for task, metric in metrics.items()})
        assert {task: metric.count for task, metric in metrics.items()} == {"side": 3} | dict.fromkeys(PRETEXT, 6)
        assert torch.equal(torch.get_rng_state(), state)  # training draws what it would draw without an evaluation
    np.testing.assert_equal(*results)


def test_the_curvature_of_pretext_tasks_is_measured() -> None:
    settings = config()
    model = build_model(settings)
    measured = curvature(model, shard(), list(settings.tasks), settings, seed=1)
    for name, value in measured.items():
        assert value.isfinite().all() and (value.any() or name.startswith("balance.")), name


@pytest.mark.parametrize("dimensions", [2, 3])
def test_examples_show_the_copies(tmp_path: Path, dimensions: int) -> None:
    encoder = {2: "vit_nano_patch8", 3: "vit3d_mini_patch4"}[dimensions]
    settings = config(dimensions=dimensions, encoder=encoder)
    run = Run(tmp_path)
    data = shard(dimensions, 9)
    save_examples(run, build_model(settings), data, settings)
    with np.load(tmp_path / "examples.npz") as file:
        arrays: dict[str, np.ndarray] = dict(file)
    count = {2: 8, 3: 4}[dimensions]
    for kind in PRETEXT:
        assert arrays[f"{kind}.images"].shape == (count, 1, 16, 16)
        assert len(arrays[f"{kind}.labels"]) == len(arrays[f"{kind}.shown"]) == count
    assert arrays["views.labels"].tolist() == [i // 2 for i in range(count)]
    assert arrays["reconstruction.labels"].shape == (count, 2, 16, 16)

    class Contents:
        folder, finished, config = tmp_path, True, settings

    page = str(draw_examples(Contents()))  # type: ignore[arg-type]
    assert page.count("its reconstruction, R²") == count and "Views" in page


def test_an_image_is_shown_from_its_darkest_to_its_brightest_value() -> None:
    from mtfed.record.examples import as_pixels

    images: Tensor = torch.tensor([[[[-1.0, 0.0], [1.0, 3.0]]], [[[2.0, 2.0], [2.0, 2.0]]]])
    assert as_pixels(images).reshape(2, 4).tolist() == [[0, 64, 128, 255], [0, 0, 0, 0]]
