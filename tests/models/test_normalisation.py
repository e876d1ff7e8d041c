"""Images as a pretrained encoder expects them: the same at every site and at the server, in training and in tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers import ROOT
from helpers.cached_site import counting, stores
from helpers.hospitals import keys
from mtfed.clients.site import Site, open_site
from mtfed.config import Config, RunConfigValue, read_config
from mtfed.data import cache
from mtfed.data.loading import load_shard
from mtfed.data.shard import Shard
from mtfed.data.simulated_sites import site_folder
from mtfed.errors import MtfedError
from mtfed.federation.evaluation import ServerTest
from mtfed.models.build import build_model
from mtfed.models.normalisation import encoder_normalisation
from mtfed.models.timm_library import timm

torch.set_num_threads(1)
SIDE = 32
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
ENCODERS = {
    "vit_small_patch14_dinov2": IMAGENET,
    "vit_small_patch14_dinov2.lvd142m": IMAGENET,
    "resnet18": IMAGENET,
    "tf_efficientnet_lite0": HALF,
    "vit_base_patch16_224": HALF,
    "vit_base_patch16_clip_224": CLIP,
}
SETTINGS: dict[str, RunConfigValue] = {
    "model": "hard-sharing", "encoder": "test_efficientnet", "image-size": SIDE, "normalise": "encoder",
    "decoder-width": 8, "batch-size": 4, "local-steps": 2, **keys("grade"),
}  # fmt: skip


def settings(**changes: Any) -> Config:
    return read_config(SETTINGS | {key.replace("_", "-"): value for key, value in changes.items()})


def write_site(folder: Path, seed: int = 0, images: int = 8) -> Path:
    """Write a site of pictures of the run's size, every other one in colour; every fourth is for validation."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    lines = ["image,patient,split,grade"]
    for i in range(images):
        pixels = rng.integers(0, 255, (SIDE, SIDE, 3) if i % 2 else (SIDE, SIDE), np.uint8, endpoint=True)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(f"{i}.png,p{i},{'val' if i % 4 == 3 else 'train'},{int(i % 3 == 0)}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def expected(folder: Path, numbers: list[int], channels: int) -> Tensor:
    """Return pictures of a site (M, C, S, S) as the definition says: (x / 255 - mean) / deviation."""
    mean, deviation = (torch.tensor(values) for values in IMAGENET)
    if channels == 1:
        mean, deviation = mean.mean().view(1), deviation.mean().view(1)
    mode = "L" if channels == 1 else "RGB"
    pictures = [np.array(Image.open(folder / f"{i}.png").convert(mode)).reshape(SIDE, SIDE, channels) for i in numbers]
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return (pixels / 255 - mean.view(-1, 1, 1)) / deviation.view(-1, 1, 1)


def images(shard: Shard) -> Tensor:
    return torch.cat([batch.images for batch in shard.batches(3)])


def client(folder: Path, config: Config) -> Site:
    return open_site(Context(1, 1, {"data-path": str(folder)}, RecordDict(), {}), config)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_numbers_are_those_of_the_pretrained_encoder(name: str) -> None:
    mean, deviation = map(torch.tensor, ENCODERS[name])
    colour = encoder_normalisation(settings(encoder=name, channels=3))
    grey = encoder_normalisation(settings(encoder=name))
    assert colour and colour.mean.equal(mean) and colour.deviation.equal(deviation)
    assert grey and grey.mean.equal(mean.mean().view(1)) and grey.deviation.equal(deviation.mean().view(1))
    for normalise in ("image", "site"):
        assert encoder_normalisation(settings(encoder=name, normalise=normalise)) is None


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_are_the_same_at_a_site_and_at_the_server(channels: int, tmp_path: Path) -> None:
    site, test = write_site(tmp_path / "a"), write_site(tmp_path / "test", seed=1)
    config = settings(data=str(tmp_path), channels=channels)
    batches = {
        "train": (images(client(site, config).shard("train")), expected(site, [0, 1, 2, 4, 5, 6], channels)),
        "val": (images(client(site, config).shard("val")), expected(site, [3, 7], channels)),
        "test": (images(ServerTest(config, build_model(config)).shard), expected(test, list(range(8)), channels)),
    }
    for split, (batch, reference) in batches.items():
        assert batch.equal(reference), split
    if channels == 3:
        mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in IMAGENET)
        first = batches["train"][0][0] * deviation + mean  # of a grey picture
        torch.testing.assert_close(first, first[:1].expand(3, -1, -1))


def test_the_images_of_a_shifted_site_are_normalised_too(tmp_path: Path) -> None:
    write_site(tmp_path / "a")
    config = settings(data=str(tmp_path), channels=3, feature_shift=1.0)
    site = open_site(Context(1, 1, {"partition-id": 0, "num-partitions": 1}, RecordDict(), {}), config)
    mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in IMAGENET)
    for split in ("train", "val"):
        assert images(site.shard(split)).equal((site.shard(split).images / 255 - mean) / deviation)
    assert not images(site.shard("train")).equal(expected(tmp_path / "a", [0, 1, 2, 4, 5, 6], 3))


def test_decoded_images_are_cached_without_the_normalisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MTFED_CACHE", raising=False)
    folder = write_site(tmp_path / "a")
    seen, before = counting(monkeypatch), []
    for normalise in ("image", "encoder"):
        config = settings(normalise=normalise)
        cache._open.clear()
        load_shard(site_folder(folder, "a", config), config, "train", encoder_normalisation(config))
        before.append((len(seen), stores(folder)))
    cache._open.clear()
    assert before[0] == before[1] and before[0][0] == 8


@pytest.mark.parametrize("normalise", ["image", "site", "encoder"])
def test_a_wrong_normalisation_is_refused(normalise: str, tmp_path: Path) -> None:
    folder, config = write_site(tmp_path / "a"), settings(normalise=normalise)
    wrong = None if normalise == "encoder" else encoder_normalisation(settings())
    with pytest.raises(ValueError, match=f"Expected the encoder's normalisation if and only if .* with '{normalise}'"):
        load_shard(site_folder(folder, "a", config), config, "train", wrong)


def test_an_encoder_without_mean_and_deviation_is_refused_before_the_run() -> None:
    with pytest.raises(MtfedError, match="Config key normalise: expected an encoder for which timm names a mean"):
        build_model(settings(encoder="resnet_nano"))


@pytest.mark.parametrize("volumes", [{"dimensions": 3}, {"task.grade.dimensions": 3}])
def test_volumes_are_refused(volumes: dict[str, RunConfigValue]) -> None:
    with pytest.raises(MtfedError, match="Config key normalise: expected image or site for volumes, because"):
        read_config(SETTINGS | volumes)


def test_timm_is_imported_only_if_it_is_needed() -> None:
    program = (
        "import sys; from mtfed.config import read_config; import mtfed.models.normalisation as own\n"
        f"values = {SETTINGS}\n"
        "own.encoder_normalisation(read_config(values | {'normalise': 'image'})); assert 'timm' not in sys.modules\n"
        "own.encoder_normalisation(read_config(values)); assert 'timm' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_federation_with_pretrained_weights(tmp_path: Path) -> None:
    from mtfed.federation.app_folder import read_app
    from mtfed.federation.simulate import simulate

    for seed, name in enumerate(("a", "b", "test")):
        write_site(tmp_path / "data" / name, seed)
    torch.manual_seed(3)
    weights = timm.create_model("test_efficientnet", num_classes=0).state_dict()
    save_file(weights, tmp_path / "encoder.safetensors")
    run = {
        "data": str(tmp_path / "data"),
        "out": str(tmp_path / "runs"),
        "weights": str(tmp_path / "encoder.safetensors"),
    }
    config = SETTINGS | run | {"channels": 3, "rounds": 1, "encoder-rate": 0.5, "layer-decay": 0.5}
    assert simulate(read_app(ROOT / "experiments" / "pneumonia"), config, None, "local", 2) == 0
    (folder,) = (path.parent for path in (tmp_path / "runs").glob("*/summary.json"))
    model = build_model(read_config(config))
    after = load_file(folder / "checkpoints" / "last.safetensors")
    model.load_state_dict({name: after[name] for name in model.state_dict()})
    moves = {name: float((after[f"encoder.body.{name}"] - weights[name]).abs().max()) for name in weights}
    assert 0 < moves["conv_stem.weight"] < moves["conv_head.weight"] < 0.01  # it starts from the file
    examples = np.load(folder / "examples.npz")
    pixels = torch.from_numpy(examples["grade.images"])
    mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in IMAGENET)
    with torch.inference_mode():
        logits = model.eval()((pixels / 255 - mean) / deviation, {"grade": torch.arange(len(pixels))})["grade"]
    np.testing.assert_allclose(examples["grade.shown"], logits.softmax(1).numpy(), atol=1e-5)
