"""Slices of volumes, and the cache of the volume that they belong to."""

from __future__ import annotations

import gzip
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from helpers.scans import (
    AFFINE,
    nifti,
    ramp,
    read,
)
from mtfed.data import formats
from mtfed.data.formats import Picture
from mtfed.data.formats.picture import VolumeCache
from mtfed.errors import MtfedError


def test_a_slice_of_a_volume_is_a_picture(tmp_path: Path) -> None:
    volume = ramp(3, 4, 5)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(nifti(volume.transpose(), AFFINE)))
    np.savez(tmp_path / "a.npz", image=volume, mask=volume % 2, spacing=[3, 0.8, 0.8])
    for name in ("a.nii.gz#1", "a.npz#1"):
        picture = read(tmp_path, name)
        np.testing.assert_array_equal(picture.values, volume[1])
        assert picture.spacing == pytest.approx((0.8, 0.8))
    np.testing.assert_array_equal(read(tmp_path, "a.npz#2", what="mask").values, volume[2] % 2)
    for name, dimensions, message in (
        ("a.nii.gz", 2, r"a\.nii\.gz .* has 3 slices, and the model sees pictures; name one slice, as in a.nii.gz#1"),
        ("a.nii.gz#3", 2, "has the slices 0 to 2, but no slice 3"),
        ("a.nii.gz#1", 3, r"Expected image a\.nii\.gz#1 of site north to be a volume; leave out #1"),
        ("b.nii.gz#1", 2, r"Cannot read image b\.nii\.gz of site north: there is no such file"),
    ):
        with pytest.raises(MtfedError, match=message):
            read(tmp_path, name, dimensions)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    for value in (1, 2):
        (tmp_path / "a.nii").write_bytes(nifti(np.full((5, 4, 3 + value), value, np.uint8), AFFINE))
        assert read(tmp_path, "a.nii#2").values.max() == value


@pytest.mark.parametrize("threads", [1, 3])
def test_a_volume_is_read_once_for_all_its_slices(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thread caches its image and labels, and frees them when it ends."""
    whats, reads = ("image", "a", "b"), Counter[str]()
    for name in (f"{i}-{what}.npy" for i in range(threads) for what in whats):
        np.save(tmp_path / name, ramp(6, 4, 4))
    original = formats._read
    monkeypatch.setattr(formats, "_read", lambda file, *rest: reads.update([file.name]) or original(file, *rest))
    barrier = Barrier(threads)

    def slices(thread: int) -> None:
        for k, what in product(range(6), whats):
            barrier.wait()
            assert read(tmp_path, f"{thread}-{what}.npy#{k}", what=what).values[0, 0] == k * 48

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(slices, range(threads)))
    assert set(reads.values()) == {1} and len(reads) == 3 * threads


def test_a_new_image_evicts_the_last_one_and_its_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtfed.data.formats.picture.MAX_BYTES", 24)
    cache, reads = VolumeCache(), []

    def get(key: str) -> str:
        cache.get(key, key.islower(), lambda: reads.append(key) or Picture(np.zeros(8, np.uint8)))
        return "".join(reads)

    assert [get(key) for key in "AaAbAabBbA"][-1] == "AabBbA"  # capital letters are images
    assert [get(key) for key in "abcabA"][
        -1
    ] == "AabBbAabcA"  # four are too many: the least recently used one is evicted
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(get, "b").result() == "AabBbAabcAb"


def test_a_single_slice_in_any_direction_has_the_head_up(tmp_path: Path) -> None:
    for shape in ((5, 4, 1), (5, 1, 3), (1, 4, 3)):
        volume = ramp(*shape[::-1])
        (tmp_path / "a.nii").write_bytes(nifti(volume.transpose(), AFFINE))
        picture = read(tmp_path, "a.nii")
        single = volume.squeeze()
        np.testing.assert_array_equal(picture.values, single if shape[2] == 1 else single[::-1])
        assert picture.affine is not None and picture.spacing is not None
        y, x = 0, picture.values.shape[1] - 1
        value = picture.values[y, x]
        z, v, u = np.argwhere(volume == value)[0]
        np.testing.assert_allclose(picture.affine @ [x, y, 0, 1], AFFINE @ [u, v, z, 1])
