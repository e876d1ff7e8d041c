"""Mixed images: which images are mixed, and that their loss is that of the mixed labels."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import three_tasks, two_tasks
from mtfed.config import Config, Mix, read_config
from mtfed.data.shard import Batch, Labels
from mtfed.learning import mixing
from mtfed.learning import train as training
from mtfed.learning.losses import labels_loss, split_batch, task_loss
from mtfed.learning.mixing import images_in_sum, mix
from mtfed.learning.pretext import add_pretext
from mtfed.learning.train import TrainingResult, train
from mtfed.models.build import build_model
from mtfed.tasks.task import Task

torch.set_num_threads(1)

MODES: tuple[Mix, ...] = ("brainfuse", "cascade")
IMAGES = 16
GRADE = Task(name="grade", kind="classification", classes=("low", "middle", "high"))
AGE = Task(name="age", kind="regression", classes=("age",), range=(0, 1), loss="mse")
BLOB = Task(name="blob", kind="segmentation", classes=("background", "blob"), loss="cross-entropy")
BOXES = Task(name="boxes", kind="detection", classes=("cell",))
TASKS = {task.name: task for task in (GRADE, AGE, BLOB, BOXES, Task(name="turned", kind="orientation"))}
ROWS = {"grade": range(9), "age": range(6, 12), "blob": [12, 13], "boxes": [14]}  # the last image has no label


def batch(words: Tensor | None = None) -> Batch:
    """Return a batch in which image i is 1 at pixel i only, so that a mixed image is the weights of its images."""
    labels = {task: Labels(torch.tensor(rows), torch.tensor(rows)) for task, rows in ROWS.items()}
    return Batch(torch.eye(IMAGES).view(IMAGES, 1, 4, 4), labels, words)


def mixed(mode: Mix, given: Batch, progress: float = 0.5, seed: int = 0) -> tuple[Batch, Tensor]:
    """Return a mixed batch, and for each image the weights (B, B) of the images that it consists of."""
    torch.manual_seed(seed)
    result = mix(given, TASKS, mode, progress)
    return result, result.images.flatten(1)


def test_the_number_of_images_in_a_sum_grows_and_shrinks() -> None:
    shares = (0, 0.19, 0.21, 0.39, 0.41, 0.59, 0.61, 0.79, 0.81, 1)
    assert [images_in_sum(share) for share in shares] == [1, 1, 2, 2, 4, 4, 2, 2, 1, 1]


@pytest.mark.parametrize("mode", MODES)
def test_only_images_with_labels_of_the_same_tasks_are_mixed(mode: Mix) -> None:
    given = batch()
    _, weights = mixed(mode, given)
    groups = [range(6), range(6, 9), range(9, 12), [12, 13]]
    same_group = torch.eye(IMAGES, dtype=torch.bool)
    for group in groups:
        same_group |= torch.tensor([[a in group and b in group for b in range(IMAGES)] for a in range(IMAGES)])
    assert not weights[~same_group].any()
    torch.testing.assert_close(weights.sum(1), torch.ones(IMAGES))
    torch.testing.assert_close(weights.sum(0), torch.ones(IMAGES))  # every image counts equally
    assert torch.equal(weights[14:], torch.eye(IMAGES)[14:])  # without a partner, and without a label
    assert ((weights[:6] > 0).sum(1) == {"brainfuse": 2, "cascade": 4}[mode]).all()
    assert torch.equal(given.images, batch().images)


@pytest.mark.parametrize("mode", MODES)
def test_labels_are_those_of_the_mixed_images(mode: Mix) -> None:
    result, weights = mixed(mode, batch())
    for own in result.labels.values():  # the value of each label is the number of its image
        combined = torch.zeros(len(own.rows), IMAGES)
        for weight, values in own.mixture:
            combined[torch.arange(len(values)), values] += weight
        torch.testing.assert_close(combined, weights[own.rows])
    for piece, start in zip(split_batch(result, 3), (0, 6, 12), strict=True):
        for task, own in piece.labels.items():
            whole = result.labels[task]
            inside = (whole.rows >= start) & (whole.rows < start + 6)
            assert torch.equal(own.rows + start, whole.rows[inside])
            for (weight, values), (expected, all_values) in zip(own.mixture, whole.mixture, strict=True):
                assert weight == expected and torch.equal(values, all_values[inside])


@pytest.mark.parametrize("mode", MODES)
def test_images_of_another_modality_or_body_part_are_not_mixed(mode: Mix) -> None:
    words = torch.stack([torch.arange(IMAGES) % 2, torch.arange(IMAGES) // 4], dim=1)
    result, weights = mixed(mode, batch(words))
    for a, b in weights.nonzero().tolist():
        assert torch.equal(words[a], words[b])
    assert (weights[:4] > 0).sum() == 8 and result.words is words


@pytest.mark.parametrize("mode", MODES)
def test_copies_for_pretext_tasks_are_not_mixed(mode: Mix) -> None:
    given = batch()
    given.labels["turned"] = Labels(torch.arange(IMAGES), torch.zeros(IMAGES, dtype=torch.long))
    given = add_pretext(given, TASKS)
    result, _ = mixed(mode, given)
    copies = given.labels["turned"].rows
    assert len(copies) >= IMAGES and torch.equal(result.images[copies], given.images[copies])
    assert result.labels["turned"] is given.labels["turned"]
    assert result.labels["grade"].mixture and not torch.equal(result.images[:6], given.images[:6])


def test_none_is_the_batch_itself_and_draws_nothing() -> None:
    given, state = batch(), torch.get_rng_state()
    assert mix(given, TASKS, "none", 0.5) is given
    assert mix(given, TASKS, "cascade", 0.0) is given and mix(given, TASKS, "cascade", 1.0) is given
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mode", MODES)
def test_a_seed_gives_the_same_mixtures(mode: Mix) -> None:
    (_, first), (_, second), (_, other) = (mixed(mode, batch(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


def random_mixture(values: Tensor) -> tuple[Labels, list[tuple[float, Tensor]]]:
    mixture = [(weight, values[torch.randperm(len(values))]) for weight in (0.5, 0.3, 0.2)]
    return Labels(torch.arange(len(values)), values, mixture=mixture), mixture


@pytest.mark.parametrize("task", [GRADE, BLOB], ids=lambda task: task.name)
def test_the_cross_entropy_of_a_mixed_image_is_that_of_soft_labels(task: Task) -> None:
    torch.manual_seed(0)
    size = (4, 4) if task is BLOB else ()
    outputs = torch.randn(7, len(task.classes), *size, dtype=torch.float64)
    labels, mixture = random_mixture(torch.randint(len(task.classes), (7, *size)))
    soft = sum(weight * torch.nn.functional.one_hot(values, len(task.classes)) for weight, values in mixture)
    loss = labels_loss(task_loss(task, settings(task)), outputs, labels)
    expected = -(outputs.log_softmax(1) * cast(Tensor, soft).movedim(-1, 1)).sum(1).mean()
    torch.testing.assert_close(loss, expected)


def test_the_gradient_for_a_mixed_number_is_that_of_the_mean_number() -> None:
    torch.manual_seed(0)
    outputs = torch.randn(7, 1, requires_grad=True)
    labels, mixture = random_mixture(torch.rand(7, 1))
    loss = task_loss(AGE, settings(AGE))
    mean = cast(Tensor, sum(weight * values for weight, values in mixture))
    (gradient,) = torch.autograd.grad(labels_loss(loss, outputs, labels), outputs)
    (expected,) = torch.autograd.grad(loss(outputs, mean), outputs)
    torch.testing.assert_close(gradient, expected)


def settings(*tasks: Task) -> Config:
    return Config(tasks={task.name: task for task in tasks})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pieces", [2, 5])
def test_gradients_do_not_depend_on_the_number_of_pieces(
    mode: Mix, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixing, "CASCADE", (4,))
    whole = three_tasks.one_step(three_tasks.tiny(), mix=mode, augment="shift")
    parts = three_tasks.one_step(three_tasks.tiny(), mix=mode, augment="shift", accumulate=pieces)
    for name, gradient in whole.items():
        np.testing.assert_allclose(parts[name], gradient, rtol=1e-5, atol=1e-7)
    plain = three_tasks.one_step(three_tasks.tiny(), augment="shift")
    assert not any(np.allclose(plain[name], gradient) for name, gradient in whole.items() if gradient.any())


@pytest.mark.parametrize("mode", MODES)
def test_training_on_mixed_images_learns_and_repeats(mode: Mix) -> None:
    def trained() -> tuple[TrainingResult, Tensor, float]:
        model, tasks = build_model(two_tasks.config()), ["pneumonia", "lungs"]
        config = two_tasks.config(mix=mode, local_steps=40, batch_size=12)
        result = train(model, shard, tasks, config, seed=3, learning_rate=3e-3)
        rows = shard.labels["pneumonia"].rows
        outputs = model.eval()(next(shard.batches(12)).images, {"pneumonia": rows})["pneumonia"]
        loss = float(torch.nn.functional.cross_entropy(outputs, shard.labels["pneumonia"].values).detach())
        return result, torch.cat([weight.detach().flatten() for weight in model.parameters()]), loss

    shard = two_tasks.random_shard()
    (result, weights, loss), (_, again, _) = trained(), trained()
    assert torch.equal(weights, again) and loss < 0.5 and result.samples == {"pneumonia": 240, "lungs": 240}


def test_boxes_are_mixed() -> None:
    """Images with different numbers of boxes, the rest padded, are mixed and trained on."""
    declared = {"task.cells.kind": "detection", "task.cells.classes": "cell", "encoder": "vit_nano_patch8"}
    config = read_config(declared | {"image-size": 32, "decoder-width": 8, "mix": "brainfuse", "local-steps": 3})
    boxes = torch.tensor([[[4.0, 4, 8, 8, 0], [0, 0, 0, 0, -1]], [[2, 2, 6, 6, 0], [16, 16, 8, 8, 0]]])
    shard = replace_labels(two_tasks.random_shard(2), "cells", boxes)
    result = train(build_model(config), shard, ["cells"], config, seed=0, learning_rate=1e-3)
    assert np.isfinite(result.loss_sums["cells"]) and result.samples == {"cells": 6}


def replace_labels(shard: Any, task: str, values: Tensor) -> Any:
    shard.labels = {task: Labels(torch.arange(len(values)), values)}
    return shard


def test_progress_rises_from_step_to_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def record(given: Batch, tasks: dict[str, Task], mode: Mix, progress: float) -> Batch:
        seen.append(progress)
        return given

    monkeypatch.setattr(training, "mix", record)
    shard, config = two_tasks.random_shard(), two_tasks.config(local_steps=2)
    for span in ((0.0, 1.0), (0.5, 1.0)):
        train(build_model(config), shard, ["lungs"], config, seed=0, learning_rate=1e-3, span=span)
    assert seen == [0, 0.5, 0.5, 0.75]
