"""Feature shift: images of simulated sites differ like those of different scanners, independently of batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import SMALL, TASKS
from mtfed.config import read_config
from mtfed.data.feature_shift import Scanner, shift, site_shift
from mtfed.data.manifest import write_site
from mtfed.data.simulated_sites import simulated_site, site_folder
from mtfed.data.simulated_sites import test_data as server_test_data

CONFIG = read_config(TASKS | SMALL | {"feature-shift": 1.0})
PLAIN = Scanner(gain=1.0, offset=0.0, gamma=1.0, blur=0.0, noise=0.0, seed=1)
SHAPES = [(6, 1, 20, 20), (6, 3, 17, 17), (4, 1, 10, 10, 10)]


def images(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_shift_of_an_image_does_not_depend_on_its_batch(shape: tuple[int, ...]) -> None:
    given, rows = images(shape), torch.tensor([5, 0, 3, 70_000, 9, 2**21])[: shape[0]]
    scanner = site_shift(CONFIG, "hospital-1")
    assert scanner is not None
    before = given.clone()
    whole = shift(given, rows, scanner)
    assert given.equal(before) and whole.shape == given.shape and whole.dtype == torch.uint8
    assert whole.equal(shift(given, rows, scanner)) and not whole.equal(given)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    assert shift(given[order], rows[order], scanner).equal(whole[order])
    for i in range(len(rows)):
        assert shift(given[i : i + 1], rows[i : i + 1], scanner).equal(whole[i : i + 1])
    assert shift(given[:0], rows[:0], scanner).shape == (0, *shape[1:])
    assert (whole[given == 0] == 0).all()


def test_each_part_of_a_scanner_alone() -> None:
    rows = torch.arange(6)
    given = images(SHAPES[0]).clamp(60, 180)
    values = given.double()

    def shifted(**changed: float) -> torch.Tensor:
        return shift(given, rows, replace(PLAIN, **changed)).double()  # type: ignore[arg-type]

    assert shifted().equal(values)
    torch.testing.assert_close(shifted(gain=1.2), 127.5 + (values - 127.5) * 1.2, atol=0.51, rtol=0)
    torch.testing.assert_close(shifted(offset=-0.1), values - 25.5, atol=0.51, rtol=0)
    torch.testing.assert_close(shifted(gamma=1.5), 255 * (values / 255) ** 1.5, atol=0.51, rtol=0)
    noise = shifted(noise=0.05) - values
    assert noise.std().item() == pytest.approx(0.05 * 255, rel=0.1) and abs(noise.mean().item()) < 1.5
    assert not noise[0].equal(noise[1])
    smooth = shifted(blur=0.05)
    torch.testing.assert_close(smooth.mean(), values.mean(), atol=2, rtol=0)
    assert smooth.diff(dim=3).abs().mean() < 0.5 * values.diff(dim=3).abs().mean()
    grey = shift(given.expand(-1, 3, -1, -1), rows, replace(PLAIN, noise=0.05))
    assert grey[:, 0].equal(grey[:, 1]) and grey[:, 0].equal(grey[:, 2])


@pytest.mark.parametrize("axes", [2, 3])
def test_blur_is_a_gaussian_along_every_axis(axes: int) -> None:
    side = 21
    point = torch.zeros(1, 1, *(side,) * axes, dtype=torch.uint8) + 1
    point[(0, 0, *(side // 2,) * axes)] = 255
    blurred = shift(point, torch.tensor([0]), replace(PLAIN, blur=1.0 / side)).float()
    middle = blurred[0, 0][(side // 2,) * (axes - 1)] - 1
    assert middle[side // 2] == pytest.approx(254 * (2 * torch.pi) ** (-axes / 2), abs=1.1)
    for axis in range(axes):
        assert blurred.equal(blurred.flip(2 + axis)) and blurred.equal(blurred.transpose(2, 2 + axis))


def test_differences_grow_with_the_strength() -> None:
    def of(strength: float, key: str = "a", seed: int = 0) -> Scanner | None:
        changed = {"feature_shift": strength, "partition_seed": seed}
        return site_shift(CONFIG.model_copy(update=changed), key)

    assert of(0.0) is None
    weak, strong = of(0.25), of(1.0)
    assert weak is not None and strong is not None
    assert weak.offset == pytest.approx(0.25 * strong.offset) and weak.noise == pytest.approx(0.25 * strong.noise)
    assert weak.gain**4 == pytest.approx(strong.gain) and weak.seed == strong.seed
    assert len({of(1.0, key, seed) for key in "abc" for seed in range(3)}) == 9
    assert of(1.0) == site_shift(CONFIG.model_copy(update={"seed": 5}), "a")


def test_only_simulated_sites_are_shifted(tmp_path: Path) -> None:
    parts = [simulated_site(CONFIG, i, 3) for i in range(3)]
    assert [part.scanners for part in parts] == [site_shift(CONFIG, part.key) for part in parts]
    assert len({part.scanners for part in parts}) == 3 and parts[0].part("val").scanners == parts[0].scanners
    test = server_test_data(CONFIG)
    assert test is not None and test.scanners is None
    write_site(replace(parts[0], rows=parts[0].rows[:4]), tmp_path / "site", CONFIG.tasks)
    assert site_folder(tmp_path / "site", "site", CONFIG).scanners is None
    plain = simulated_site(CONFIG.model_copy(update={"feature_shift": 0.0}), 0, 3)
    assert plain.scanners is None and plain.rows == parts[0].rows


def test_pooled_images_keep_their_sites_scanner() -> None:
    pool = simulated_site(CONFIG.model_copy(update={"pooled": True}), 0, 1)
    parts = [simulated_site(CONFIG, i, 8) for i in range(8)]
    assert isinstance(pool.scanners, dict) and pool.scanners.keys() == {row.number for row in pool.rows}
    for part in parts:
        assert {pool.scanners[row.number] for row in part.rows} == {part.scanners}
    rows = torch.tensor([part.rows[0].number for part in parts] + [part.rows[-1].number for part in parts])
    given = images((16, 1, 12, 12))
    pooled = shift(given, rows, pool.scanners)
    for i, number in enumerate(rows.tolist()):
        alone = shift(given[i : i + 1], rows[i : i + 1], pool.scanners[number])
        assert pooled[i : i + 1].equal(alone)
