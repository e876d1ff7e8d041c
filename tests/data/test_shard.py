"""Shards: parts of a store, batches, normalisation, and splits that are kept apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import TASKS as TASKS_OF_SAMPLE
from helpers.cached_site import GRADED, counting, graded, opened, rewrite
from helpers.hospitals import keys, write_site
from helpers.manifests import CONFIG, TASK_NAMES, write
from mtfed.config import Config, read_config
from mtfed.data import decoding
from mtfed.data.feature_shift import site_shift
from mtfed.data.loading import load_shard
from mtfed.data.manifest import read_site
from mtfed.data.shard import Labels, Normalisation, Shard, standardise
from mtfed.data.simulated_sites import simulated_site, site_folder
from mtfed.errors import MtfedError

pytestmark = pytest.mark.usefixtures("own_cache")

SAMPLE = read_config(TASKS_OF_SAMPLE | {"image-size": 16})


def test_shards_share_the_store_of_the_pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MTFED_CACHE", str(tmp_path / "elsewhere"))
    seen = counting(monkeypatch)
    shards = [load_shard(simulated_site(SAMPLE, i, 8), SAMPLE, split) for i in (1, 2, 7) for split in ("train", "val")]
    assert len({shard._images.data_ptr() for shard in shards}) == 1 and len(seen) == len(set(seen))
    assert len(list((tmp_path / "elsewhere").glob("*/*-*"))) == 1
    labels_of_shards = [(task, labels._values.data_ptr()) for shard in shards for task, labels in shard.labels.items()]
    assert len(set(labels_of_shards)) == 2 < len(labels_of_shards)
    for shard in shards:
        assert len(shard) < len(shard._images) and shard.images.equal(shard.take(torch.arange(len(shard))))
    alone = [task for task in SAMPLE.tasks if simulated_site(SAMPLE, 0, 8).count(task)]
    assert list(load_shard(simulated_site(SAMPLE, 0, 8), SAMPLE, "train").labels) == alone == ["lungs"]


def test_a_shard_of_plain_tensors() -> None:
    images = torch.arange(4 * 9, dtype=torch.uint8).view(4, 1, 3, 3)
    shard = Shard(images, {"grade": Labels(torch.tensor([1, 3]), torch.tensor([5, 6]))})
    assert shard.images is images and len(shard) == 4 and shard.count("grade") == 2
    part = Shard(images, {}, torch.tensor([3, 1]))
    assert len(part) == 2 and part.take(torch.tensor([1])).equal(images[1:2])


def by_site(data: Path, dimensions: int = 2, **settings: object) -> Config:
    chosen = {key.replace("_", "-"): value for key, value in settings.items()}
    defaults = {"image-size": 16, "dimensions": dimensions, "normalise": "site", "data": str(data), **keys("grade")}
    return read_config(defaults | chosen)


@pytest.mark.parametrize(("dimensions", "channels"), [(2, 1), (2, 3), (3, 1)])
def test_a_site_is_normalised_by_its_training_images(tmp_path: Path, dimensions: int, channels: int) -> None:
    folder = write_site(tmp_path / "s", ["grade"], 9, dimensions)
    config = by_site(tmp_path, dimensions, channels=channels)
    train, val = (opened(folder, config, split) for split in ("train", "val"))
    axes = (0, *range(2, 2 + dimensions))
    values = train.images.double()
    mean, deviation = values.mean(axes), values.std(axes, correction=0)
    (batch,) = train.batches(99)
    torch.testing.assert_close(batch.images.double().mean(axes), torch.zeros(channels).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.images.double().std(axes, correction=0), torch.ones(channels).double())
    shape = (-1, *[1] * dimensions)
    (batch,) = val.batches(99)
    expected = (val.images.double() - mean.view(shape)) / deviation.view(shape)
    torch.testing.assert_close(batch.images.double(), expected, atol=1e-5, rtol=1e-5)
    assert abs(float(batch.images.mean())) > 1e-4  # not by the validation images


def test_normalisation_does_not_depend_on_held_out_images(tmp_path: Path) -> None:
    folder, config = graded(tmp_path / "s"), by_site(tmp_path)
    rewrite(folder, lambda line: line.replace("5.png,p5,val", "5.png,p5,test"))
    before = opened(folder, config)
    for name in ("2.png", "5.png"):
        Image.new("L", (16, 16), 255).save(folder / name)
    after = opened(folder, config)
    val, test = opened(folder, config, "val"), opened(folder, config, "test")
    assert before.normalisation and after.normalisation and val.normalisation and test.normalisation
    for scale in (after.normalisation, val.normalisation):
        assert scale.mean.equal(before.normalisation.mean) and scale.deviation.equal(before.normalisation.deviation)
    assert test.normalisation.mean.item() == 255  # the server normalises with its own images
    assert standardise(test.images, test.normalisation).abs().max() == 0
    by_image = opened(folder, GRADED)
    assert by_image.normalisation is None


def test_a_shifted_site_is_normalised_after_the_shift(tmp_path: Path) -> None:
    config = by_site(tmp_path, feature_shift=1.0)
    graded(tmp_path / "a"), graded(tmp_path / "b")
    for index in range(2):
        data = simulated_site(config, index, 2)
        assert data.scanners == site_shift(config, data.key)
        train, val = (load_shard(data, config, split) for split in ("train", "val"))
        plain = load_shard(replace(data, scanners=None), config, "train")
        assert not train.images.equal(plain.images)
        expected = Normalisation.of(torch.stack([decoding.channel_sums(image) for image in train.images]), 16 * 16)
        for shard in (train, val):
            assert shard.normalisation and shard.normalisation.mean.equal(expected.mean)


def test_splits_are_kept_apart(tmp_path: Path) -> None:
    folder, config = graded(tmp_path / "s"), by_site(tmp_path)
    data = site_folder(folder, "h", config)
    with pytest.raises(MtfedError, match="Expected one split of site h, got train and val; choose one"):
        load_shard(data, config)
    mixed = replace(data, rows=(*data.rows, replace(data.rows[0], split="val")))
    for split in ("train", "val"):
        with pytest.raises(MtfedError, match="Site h: patient 'p0' is in train and in val"):
            load_shard(mixed, config, split)
    with pytest.raises(MtfedError, match="Config key normalise: site h has no training image"):
        load_shard(data.part("val"), config)
    assert load_shard(data.part("train"), config).normalisation is not None
    mismatched = replace(data, rows=(replace(data.rows[0], number=3), *data.rows[1:]))
    with pytest.raises(ValueError, match="Expected row 3 of the pool of site h to be"):
        load_shard(mismatched, config, "train")
    assert len(load_shard(replace(data, rows=()), config, "train")) == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_sixteen_bits_keep_their_contrast(tmp_path: Path, channels: int) -> None:
    ramp = np.tile(np.linspace(0, 65535, 32), (32, 1))
    for name, values in (("a.png", ramp.astype(np.uint16)), ("b.tif", ramp.astype(np.float32))):
        Image.fromarray(values).save(tmp_path / name)
    data = read_site(write(tmp_path, "image,patient,pneumonia\na.png,1,0\nb.tif,2,1\n"), "s", TASK_NAMES)
    images = load_shard(data, CONFIG.model_copy(update={"channels": channels})).images.float()
    reference = np.linspace(0, 255, 32)
    assert all(abs(image[0, 7].numpy() - reference).max() <= 1 for image in images)


def test_batches_contain_the_labels_of_their_images() -> None:
    shard = load_shard(simulated_site(CONFIG, 2, 8).part("train"), CONFIG)
    lungs = shard.labels["lungs"]
    order = lungs.rows[[2, 0]].new_tensor([*lungs.rows[[2, 0]], shard.labels["pneumonia"].rows[5]])
    (batch,) = shard.batches(8, order)
    assert batch.labels["lungs"].rows.tolist() == [0, 1] and batch.labels["pneumonia"].rows.tolist() == [2]
    assert batch.labels["lungs"].values.equal(lungs.values[[2, 0]].long())
    (batch,) = shard.batches(8, order, ["pneumonia"])
    assert list(batch.labels) == ["pneumonia"]


def test_images_are_standardised_one_by_one() -> None:
    import torch

    images = torch.randint(0, 255, (3, 1, 16, 16), dtype=torch.uint8)
    out = standardise(images)
    reference = (images.double() - images.double().mean((1, 2, 3), True)) / images.double().std(
        (1, 2, 3), correction=0, keepdim=True
    )
    torch.testing.assert_close(out.double(), reference, atol=1e-5, rtol=1e-5)
    assert standardise(torch.zeros(1, 1, 4, 4, dtype=torch.uint8)).abs().max() == 0  # a blank image stays finite
