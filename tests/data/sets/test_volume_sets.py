"""Readers of volume sets, on small copies of the official layouts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.drawings import VOLUME_SHAPE, ball
from helpers.layouts import LAYOUTS, opened, prepared, shards
from mtfed.data.manifest import SiteData
from mtfed.data.sets import find_set
from mtfed.data.sets.openkbp import SHAPE
from mtfed.data.sets.prepare import prepare


def test_openkbp_is_converted_with_the_head_up_and_the_face_forward(tmp_path: Path) -> None:
    _, data = prepared("openkbp", tmp_path)
    with np.load(tmp_path / data.rows[0].image) as file:
        arrays = dict(file)
    assert arrays["image"].shape == arrays["dose"].shape == SHAPE
    assert arrays["spacing"].tolist() == [2.5, 3.906, 3.906]  # z first
    body = np.zeros(SHAPE, bool)
    body[128 - 30 : 128 - 20, 40:50, 60:68] = True
    assert (arrays["possible"] == body).all() and (arrays["image"][~body] == -1024).all()
    assert arrays["image"][body].min() == 0 and arrays["dose"].max() == np.float32(41.5)
    where = np.argwhere(arrays["PTV70"])
    assert where.min(0).tolist() == [128 - 22, 44, 62] and where.max(0).tolist() == [127 - 20, 47, 65]
    assert "Larynx" not in arrays


def test_one_of_several_channels_is_used(tmp_path: Path) -> None:
    import nibabel

    _, data = prepared("msd-prostate", tmp_path)
    assert data.rows[0].image == "labels/case_000_T2.nii.gz"
    given = nibabel.load(tmp_path / "Task05_Prostate/imagesTr/case_000.nii.gz")
    taken = nibabel.load(tmp_path / data.rows[0].image)
    assert (np.asarray(given.dataobj)[..., 0] == np.asarray(taken.dataobj)).all()
    assert (given.affine == taken.affine).all()


def test_contours_match_the_ct_in_any_orientation(tmp_path: Path) -> None:
    """A CT with other axes and the masks on it are reoriented in the same way."""
    import nibabel

    LAYOUTS["prostate-ct"](tmp_path)
    for path in [tmp_path / "p1/ct.nii.gz", tmp_path / "p1/structures/PTV.nii.gz"]:
        image = nibabel.load(path)
        nibabel.save(image.as_reoriented(np.array([[0, -1], [1, -1], [2, 1]])), path)
    _, data = prepared("prostate-ct", tmp_path, lambda folder: None)
    with np.load(tmp_path / data.rows[0].labels["structures"]) as file:
        assert (file["PTV"] == ball(VOLUME_SHAPE, 0.3)).all()
        assert file["spacing"].tolist() == [2.0, 1.0, 1.0]


def test_nifti_contours_match_a_dicom_series(tmp_path: Path) -> None:
    import nibabel

    from mtfed.data.formats import read_picture
    from mtfed.data.root import Root

    given = os.environ.get("MTFED_SHARED_DATA")
    source = (Path(given) if given else Path(__file__).parents[4] / "shared" / "data") / "formats3d" / "dicom_ct"
    if not source.is_dir():
        pytest.skip("formats3d is absent: MTFED_SHARED_DATA is not set and there is no ../shared/data")
    (tmp_path / "p1").mkdir()
    shutil.copytree(source, tmp_path / "p1/ct")
    ct = read_picture(SiteData("a", Root(tmp_path), ()), "p1/ct", "image", 3)
    bone = ct.values > 200
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ ct.affine
    (tmp_path / "p1/structures").mkdir()
    for name, mask in (("CTV", bone), ("Body", ct.values > -500)):
        image = nibabel.Nifti1Image(mask.T.astype(np.uint8), ras)
        nibabel.save(image, tmp_path / f"p1/structures/{name}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(bone.T * np.float32(70), ras), tmp_path / "p1/dose.nii.gz")
    prepare(find_set("prostate-ct"), tmp_path)
    config, data = opened("prostate-ct", tmp_path, 160)  # with a smaller size only one of eight slices would be left
    with np.load(tmp_path / data.rows[0].labels["dose"]) as file:
        assert (file["CTV"] == bone).all() and file["spacing"].tolist() == list(ct.spacing)
    shards(config, data)
