"""NIfTI, NRRD and MetaImage volumes have one layout, whatever the order of their axes in the file."""

from __future__ import annotations

import gzip
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest

from helpers.scans import (
    AFFINE,
    nifti,
    ramp,
    read,
    read_content,
    site,
    write_nrrd,
)
from mtfed.data.formats import files_of

AXES = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


@pytest.mark.parametrize(("order", "signs"), AXES)
def test_all_orders_and_directions_of_axes_give_the_same_array(
    order: tuple[int, ...], signs: tuple[int, ...], tmp_path: Path
) -> None:
    volume = ramp(3, 4, 5, dtype=np.int16)  # (z, y, x)
    xyz = volume.transpose()
    stored = xyz.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
    affine = np.zeros((4, 4))
    for axis, (source, sign) in enumerate(zip(order, signs, strict=True)):
        affine[:, axis] = sign * AFFINE[:, source]
        if sign < 0:
            affine[:, 3] -= affine[:, axis] * (stored.shape[axis] - 1)
    affine[:, 3] += AFFINE[:, 3]
    (tmp_path / "a.nii").write_bytes(nifti(stored, affine))
    write_nrrd(tmp_path / "a.nrrd", stored, space="left-posterior-superior",
               space_directions=affine[:3, :3].T, space_origin=affine[:3, 3])  # fmt: skip
    for name in ("a.nii", "a.nrrd"):
        result = read(tmp_path, name, 3)
        np.testing.assert_array_equal(result.values, volume)
        assert result.spacing == pytest.approx((3, 0.8, 0.8), abs=1e-5)
        np.testing.assert_allclose(result.affine, AFFINE, atol=1e-5)  # type: ignore[arg-type]


def test_an_oblique_volume_keeps_its_affine(tmp_path: Path) -> None:
    c, s = np.cos(0.3), np.sin(0.3)
    affine = np.array([[c, -s, 0, 1], [s, c, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]])
    (tmp_path / "a.nii").write_bytes(nifti(ramp(5, 4, 3), affine))
    result = read(tmp_path, "a.nii", 3)
    np.testing.assert_array_equal(result.values, ramp(5, 4, 3).transpose())
    np.testing.assert_allclose(result.affine, affine, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_nifti_values(dtype: type, tmp_path: Path) -> None:
    values = ramp(5, 4, 3, dtype=dtype)
    content = nifti(values, AFFINE, cal_min=-10, cal_max=200)
    for packed in (content, gzip.compress(content)):
        result = read_content(tmp_path, packed, 3, "a.nii.gz")
        np.testing.assert_array_equal(result.values, values.transpose())
        assert result.values.dtype == dtype and result.window == (-10, 200)
    scaled = read_content(tmp_path, nifti(values[..., None], AFFINE, scl_slope=0.5, scl_inter=-3), 3, "a.nii")
    np.testing.assert_allclose(scaled.values, values.transpose() * 0.5 - 3)
    micrometres = nifti(values, AFFINE @ np.diag([1000, 1000, 1000, 1]), xyzt_units=3)
    assert read_content(tmp_path, micrometres, 3, "a.nii").spacing == pytest.approx((3, 0.8, 0.8))


@pytest.mark.parametrize("space", ["right-anterior-superior", "left-anterior-superior", "LPS"])
@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
def test_nrrd_values(space: str, encoding: str, tmp_path: Path) -> None:
    values = ramp(5, 4, 3, dtype=np.int16)
    signs = np.array([-1 if "right" in space else 1, -1 if "anterior" in space else 1, 1])
    rows = AFFINE[:3, :3].T * signs
    write_nrrd(tmp_path / "a.nrrd", values, space=space, space_directions=rows, space_origin=AFFINE[:3, 3] * signs,
               encoding=encoding)  # fmt: skip
    result = read(tmp_path, "a.nrrd", 3)
    np.testing.assert_array_equal(result.values, values.transpose())
    np.testing.assert_allclose(result.affine, AFFINE)  # type: ignore[arg-type]


def test_nrrd_without_a_space(tmp_path: Path) -> None:
    write_nrrd(tmp_path / "a.nrrd", ramp(5, 4, 3), spacings=[1, 2, 3])
    write_nrrd(tmp_path / "b.nrrd", ramp(5, 4))
    write_nrrd(tmp_path / "c.nrrd", ramp(1, 5, 4, 3), space="left-posterior-superior", space_origin=[1, 2, 3],
               space_directions=np.vstack([[np.nan] * 3, np.eye(3)]))  # fmt: skip
    volume, picture = read(tmp_path, "a.nrrd", 3), read(tmp_path, "b.nrrd")
    assert volume.spacing == (3, 2, 1) and volume.affine is None
    np.testing.assert_array_equal(volume.values, ramp(5, 4, 3).transpose())
    np.testing.assert_array_equal(picture.values, ramp(5, 4).transpose())
    np.testing.assert_array_equal(read(tmp_path, "c.nrrd", 3).values, ramp(5, 4, 3).transpose())


@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
@pytest.mark.parametrize("compress", [False, True])
def test_metaimage(name: str, compress: bool, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(ramp(3, 4, 5).astype(np.int16))
    image.SetSpacing((0.8, 0.8, 3.0))
    image.SetOrigin((10, 20, 30))
    (tmp_path / "in").mkdir()
    sitk.WriteImage(image, str(tmp_path / "in" / name), useCompression=compress)
    result = read(tmp_path, f"in/{name}", 3)
    np.testing.assert_array_equal(result.values, ramp(3, 4, 5))
    np.testing.assert_allclose(result.affine, AFFINE)  # type: ignore[arg-type]
    files = sorted(f"in/{path.name}" for path in (tmp_path / "in").iterdir())
    assert sorted(files_of(site(tmp_path), f"in/{name}")) == files


@pytest.mark.parametrize("sides", [(5, 4), (5, 4, 3)])
def test_metaimage_as_other_programs_write_it(sides: tuple[int, ...], tmp_path: Path) -> None:
    """Fields that do not matter are removed before SimpleITK reads; the result must be the same."""
    sitk = pytest.importorskip("SimpleITK")
    count, values = len(sides), ramp(*sides, dtype=np.dtype(">f4"))
    turn = np.eye(count)[::-1].ravel()
    lines = [
        "ObjectType = Image", f"NDims = {count}", "Name = of a: b / c", "BinaryData = True", "0008|0060 = CT",
        "BinaryDataByteOrderMSB = True", f"Orientation = {' '.join(map(str, turn))}", f"Position = {'-1.5e1 ' * count}",
        f"CenterOfRotation = {'0 ' * count}", "AnatomicalOrientation = RAI", f"ElementSpacing = {'0.5 ' * count}",
        f"DimSize = {' '.join(map(str, sides))}", "ElementMin = 0", "ElementType = MET_FLOAT",
        "ElementDataFile = LOCAL",
    ]  # fmt: skip
    (tmp_path / "a.mha").write_bytes("\n".join([*lines, ""]).encode() + values.tobytes(order="F"))
    image, result = sitk.ReadImage(str(tmp_path / "a.mha")), read(tmp_path, "a.mha", count)
    assert image.GetDirection() == tuple(turn) and image.GetOrigin() == (-15,) * count
    # The axes of a volume are reversed, those of a picture are not.
    np.testing.assert_array_equal(result.values, values if count == 3 else sitk.GetArrayFromImage(image))
    assert result.spacing == (0.5,) * count and (result.affine is None) == (count == 2)
    if result.affine is not None:
        np.testing.assert_allclose(result.affine, [[0.5, 0, 0, -15], [0, 0.5, 0, -15], [0, 0, 0.5, -15], [0, 0, 0, 1]])
