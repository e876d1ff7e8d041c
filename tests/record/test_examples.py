"""The test images, slices, labels and predictions that the record keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.pictured import KINDS, pictured
from mtfed.config import Config, read_config
from mtfed.data.shard import Shard
from mtfed.record.examples import choose, cut_boxes, cut_maps, examples, save_examples
from mtfed.record.run import Run
from mtfed.tasks.detection import slice_weights
from mtfed.tasks.dose import plans
from mtfed.tasks.regression import from_units


def config(dimensions: int) -> Config:
    return read_config(KINDS | {"dimensions": dimensions, "image-size": {2: 64, 3: 24}[dimensions], "batch-size": 3})


def images_of(*groups: tuple[str, int]) -> Tensor:
    """Return what images show, a letter for each thing: ("ab", 3) is three images that show two things."""
    return torch.tensor([[k in things for k in "abc"] for things, count in groups for _ in range(count)])


CHOSEN = [  # what images show, how many to choose, which are chosen
    (images_of(("a", 2), ("b", 1)), 8, [0, 1, 2]),
    (images_of(("a", 90), ("b", 10)), 4, [0, 89, 90, 99]),
    (images_of(("a", 90), ("b", 2)), 6, [0, 30, 59, 89, 90, 91]),
    (images_of(("a", 50), ("ab", 3)), 4, [0, 49, 50, 52]),
    (images_of(("", 50), ("a", 5)), 4, [50, 52, 54, 0]),
    (images_of(("", 50), ("a", 5)), 8, [50, 51, 52, 53, 54, 0, 24, 49]),
    (images_of(("", 3)), 2, [0, 2]),
    (images_of(("a", 5), ("b", 5), ("c", 5)), 2, [0, 10]),
]


@pytest.mark.parametrize(("shows", "count", "expected"), CHOSEN)
def test_every_class_has_its_share(shows: Tensor, count: int, expected: list[int]) -> None:
    assert choose(shows, count).tolist() == expected


@pytest.mark.parametrize("dimensions", [2, 3])
def test_images_labels_and_predictions_belong_together(tmp_path: Path, dimensions: int) -> None:
    settings = config(dimensions)
    shard, model = pictured(settings)
    save_examples(Run(tmp_path), model, shard, settings)  # type: ignore[arg-type]
    with np.load(tmp_path / "examples.npz") as file:
        arrays = dict(file)
    size = settings.image_size
    for name in settings.tasks:
        images = arrays[f"{name}.images"]
        assert images.shape == ({2: 8, 3: 4}[dimensions], 1, size, size) and images.dtype == np.uint8
        assert len(arrays[f"{name}.labels"]) == len(arrays[f"{name}.shown"]) == len(images)
        assert (f"{name}.slices" in arrays) == (dimensions == 3)
    # The predictions are almost right, so each belongs to its own image and slice.
    assert np.mean(arrays["lesion.shown"] == arrays["lesion.labels"]) > 0.95
    marked = arrays["organs.labels"] < 255
    assert np.mean((arrays["organs.shown"] == arrays["organs.labels"])[marked]) > 0.95
    assert np.nanmean(np.abs(arrays["dose.shown"] - arrays["dose.labels"])) < 4
    assert np.abs(arrays["age.shown"] - arrays["age.labels"]).mean() < 20
    assert set(arrays["finding.labels"]) == {0, 1, 2} and set(arrays["grade.labels"]) == {0, 1, 2, 3}
    for true, predicted in zip(arrays["spots.labels"], arrays["spots.shown"], strict=True):
        for box in true[true[:, -1] >= 0]:
            best = np.abs(predicted[predicted[:, 4] == box[4], :4] - box[:4]).sum(1).min()
            assert best < 0.15 * size


def test_doses_are_in_gray() -> None:
    settings = config(2)
    shard, model = pictured(settings)
    task = settings.tasks["dose"]
    arrays = examples(model, shard, task, settings)  # type: ignore[arg-type]
    labels = shard.labels["dose"]
    numbers = [int((shard.images == torch.from_numpy(image)).flatten(1).all(1).nonzero()) for image in arrays["images"]]
    index = [int((labels.rows == row).nonzero()) for row in numbers]
    for plan, dose in zip(plans(labels.values[index], task), arrays["labels"], strict=True):
        assert np.array_equal(np.isfinite(dose), plan.possible.numpy())
        expected = from_units(plan.dose, task)[plan.possible].numpy()
        assert np.allclose(dose[plan.possible.numpy()], expected, atol=0.05)


def test_slices_of_maps_and_boxes() -> None:
    maps = np.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    assert np.array_equal(cut_maps(maps, np.array([1, 3])), np.stack([maps[0, :, 1], maps[1, :, 3]]))
    box = [1.0, 2.0, 3.0, 4.0, 5.0, 2.0]  # in slices 3 and 4
    boxes = np.array([[[*box, 0, 0.9], [0, 0, 0, 9, 9, 9, 1, 0.5]]] * 3)
    cut = cut_boxes(boxes, np.array([2, 4, 5]))
    assert cut[:, 0, 4].tolist() == [-1, 0, -1] and cut[:, 1, 4].tolist() == [1, 1, 1]
    assert cut[1, 0].tolist() == [1, 2, 4, 5, 0, 0.9]


SPOTS = config(3).tasks["spots"]
DEEPEST = [  # boxes x y z w h d class, the slice that contains most of them
    ([[0, 0, 2, 1, 1, 5, 0]], 4),
    ([[0, 0, 0, 1, 1, 3, 0], [0, 0, 9, 1, 1, 1, -1]], 1),
    ([[0, 0, 1, 1, 1, 3, 0], [0, 0, 6, 1, 1, 5, 0], [4, 4, 7, 1, 1, 3, 1]], 8),
]


@pytest.mark.parametrize(("boxes", "expected"), DEEPEST)
def test_the_slice_goes_through_the_middle_of_boxes(boxes: list[list[float]], expected: int) -> None:
    assert int(slice_weights(torch.tensor([boxes]).float(), SPOTS).argmax()) == expected


def test_without_a_label_the_middle_slice_is_taken() -> None:
    settings = config(3)
    shard, model = pictured(settings)
    shard.labels["lesion"].values.zero_()
    shard.labels["spots"].values[..., -1] = -1
    for name in ("lesion", "spots", "finding"):
        arrays = examples(model, shard, settings.tasks[name], settings)  # type: ignore[arg-type]
        assert arrays["slices"].tolist() == [12] * 4


def test_there_are_no_examples_without_test_images(tmp_path: Path) -> None:
    settings = config(2)
    _, model = pictured(settings)
    save_examples(Run(tmp_path), model, Shard.empty(), settings)  # type: ignore[arg-type]
    with np.load(tmp_path / "examples.npz") as file:
        assert not file.files
