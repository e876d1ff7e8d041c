"""Labels are read over images of another format, and refused if their position differs."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from helpers.scans import (
    AFFINE,
    nifti,
    read,
    site,
    write_nrrd,
    write_series,
)
from mtfed.data.source import Source
from mtfed.errors import MtfedError
from mtfed.tasks.kind import kind_of
from mtfed.tasks.task import Task

LIVER = Task(name="liver", kind="segmentation", classes=("background", "liver"))

ORGANS = Task(name="organs", kind="multi-label-segmentation", classes=("liver", "spleen", "gone"))

DOSE = Task(name="dose", kind="dose", classes=("PTV",), range=(0, 80))


def cube(dtype: Any = np.uint8) -> np.ndarray:
    """Return a mask (z, y, x) without any symmetry."""
    mask = np.zeros((8, 8, 8), dtype)
    mask[1:3, 2:6, 5:8] = 1
    return mask


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_a_nifti_mask_is_aligned_with_a_series(dtype: Any, tmp_path: Path) -> None:
    write_series(tmp_path / "scan", cube(np.uint16) * 1000, spacing=(3, 0.8, 0.8))
    flipped = AFFINE @ np.array(
        [[-1, 0, 0, 7], [0, -1, 0, 7], [0, 0, 1, 0], [0, 0, 0, 1.0]]
    )  # RAS, as in most NIfTI files
    (tmp_path / "m.nii.gz").write_bytes(gzip.compress(nifti(cube(dtype)[:, ::-1, ::-1].transpose(), flipped)))
    source = Source(site(tmp_path), "scan", 32, 3)
    np.testing.assert_array_equal(source.array("m.nii.gz", "mask"), read(tmp_path, "scan", 3).values // 1000)
    mask = kind_of(LIVER).read("m.nii.gz", LIVER, source)
    np.testing.assert_array_equal(mask, source.fit(cube(), "cube", nearest=True))
    picture = Source(site(tmp_path), "scan#2", 8)
    mask = kind_of(LIVER).read("m.nii.gz#2", LIVER, picture)
    np.testing.assert_array_equal(mask > 0, picture.pixels(1)[0] > 127)
    with pytest.raises(MtfedError, match=r"Mask m\.nii\.gz#1 of site north is up to 3 mm away from its image scan#2"):
        kind_of(LIVER).read("m.nii.gz#1", LIVER, picture)


def test_a_mask_at_another_position_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(nifti(cube().transpose(), AFFINE))
    moves = {"a little": 0.04, "too much": 0.4}
    for name, move in moves.items():
        moved = AFFINE.copy()
        moved[0, 3] += move
        (tmp_path / f"{name}.nii").write_bytes(nifti(cube().transpose(), moved))
    wider = AFFINE @ np.diag([1.01, 1, 1, 1]) @ np.diag([1, 1, 1, 1.0])
    wider[0, :3] *= 1.02
    (tmp_path / "wider.nii").write_bytes(nifti(cube().transpose(), wider))
    np.save(tmp_path / "plain.npy", cube())
    source = Source(site(tmp_path), "a.nii", 32, 3)
    source.array("a little.nii", "mask")
    np.testing.assert_array_equal(source.array("plain.npy", "mask"), cube())
    for name in ("too much.nii", "wider.nii"):
        with pytest.raises(MtfedError, match=f"Mask {name} of site north is up to .* mm away from its image a.nii"):
            source.array(name, "mask")


def test_nifti_files_without_a_position(tmp_path: Path) -> None:
    """Two such files have the same assumed position; it cannot be compared with that of other files."""
    for name, step in (("a", 2), ("m", 1)):
        image = nibabel.Nifti1Image(cube().transpose(), None)
        image.header.set_zooms((step,) * 3)
        (tmp_path / f"{name}.nii").write_bytes(image.to_bytes())
        assert not image.header["qform_code"] and not image.header["sform_code"]
    (tmp_path / "placed.nii").write_bytes(nifti(cube().transpose(), np.eye(4)))
    np.testing.assert_array_equal(Source(site(tmp_path), "a.nii", 32, 3).array("m.nii", "mask"), cube()[:, ::-1])
    with pytest.raises(MtfedError, match=r"Mask m\.nii#2 of site north is up to .* mm away from its image a\.nii#3"):
        Source(site(tmp_path), "a.nii#3", 32).array("m.nii#2", "mask")
    Source(site(tmp_path), "a.nii#3", 32).array("m.nii#3", "mask")
    cause = (
        r"a\.nii does not define its position, its qform_code and sform_code are 0; set them so that it is placed as"
    )
    for image, mask in (("a.nii", "placed.nii"), ("placed.nii", "a.nii"), ("a.nii#3", "placed.nii#3")):
        message = f"Expected mask {mask} of site north to cover its image {image}, but {cause} placed"
        with pytest.raises(MtfedError, match=message):
            Source(site(tmp_path), image, 32, 2 if "#" in image else 3).array(mask, "mask")


def test_a_folder_contains_arrays_by_stem(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(nifti(cube().transpose(), AFFINE)))
    organs = tmp_path / "segmentations"
    organs.mkdir()
    (organs / "liver.nii.gz").write_bytes(gzip.compress(nifti(cube(np.float32).transpose(), AFFINE)))
    write_nrrd(organs / "spleen.nrrd", 255 * cube().transpose())
    np.save(organs / "other.npy", np.zeros(3))
    (organs / "README").write_text("x")
    source = Source(site(tmp_path), "a.nii.gz", 32, 3)
    label = kind_of(ORGANS).read("segmentations", ORGANS, source)
    expected = source.fit(cube(), "cube", nearest=True)
    np.testing.assert_array_equal(label, np.stack([expected, expected, np.full(expected.shape, 255)]))
    (organs / "liver.npy").write_bytes(b"")
    with pytest.raises(MtfedError, match=r"Folder segmentations of site north should have one file called liver, it h"):
        kind_of(ORGANS).read("segmentations", ORGANS, Source(site(tmp_path), "a.nii.gz", 32, 3))
    with pytest.raises(MtfedError, match=r"Cannot read organs nothing of site north: it is neither an \.npz file nor"):
        kind_of(ORGANS).read("nothing", ORGANS, source)


def test_a_dose_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "ct.nii").write_bytes(nifti(cube().transpose(), AFFINE))
    (tmp_path / "plan").mkdir()
    for name, values in (("dose", 60 * cube(np.float32)), ("possible", np.ones_like(cube())), ("PTV", cube())):
        (tmp_path / "plan" / f"{name}.nii").write_bytes(nifti(values.transpose(), AFFINE))
    label = kind_of(DOSE).read("plan", DOSE, Source(site(tmp_path), "ct.nii", 32, 3))
    assert label[0].max() == 24000 and (label[2] > 0).all()


WHITE = [  # values of a mask with two classes, and their class indices
    ([0, 255], [0, 1]),
    ([0, 65535], [0, 1]),
    ([0.0, 1.0], [0, 1]),
    ([0.0, 255.0], [0, 1]),
    ([0, 1], [0, 1]),
    ([0, 2], None),
    ([0, 1, 255], None),
    ([0, 254, 255], None),
    ([255, 255], None),
    ([0.0, 0.5], None),
    ([0.0, np.nan], None),
    ([0.0, np.inf], None),
]


@pytest.mark.parametrize(("values", "indices"), WHITE)
def test_white_means_the_second_of_two_classes(values: list[float], indices: Any, tmp_path: Path) -> None:
    row = np.array(values)
    np.save(tmp_path / "m.npy", np.tile(row if row.dtype.kind == "f" else row.astype(np.uint16), (8, 8))[:8, :8])
    np.save(tmp_path / "a.npy", np.zeros((8, 8)))
    source = Source(site(tmp_path), "a.npy", 8)
    if indices is None:
        with pytest.raises(MtfedError, match=r"Mask m\.npy of site north should be one channel of class indices below"):
            kind_of(LIVER).read("m.npy", LIVER, source)
    else:
        np.testing.assert_array_equal(kind_of(LIVER).read("m.npy", LIVER, source), np.tile(indices, (8, 8))[:8, :8])


def test_white_is_refused_with_three_classes(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.tile(np.array([0, 255], np.uint8), (8, 4)))
    three = LIVER.model_copy(update={"classes": ("a", "b", "c")})
    with pytest.raises(MtfedError, match="values up to 255"):
        kind_of(three).read("m.npy", three, Source(site(tmp_path), "m.npy", 8))
