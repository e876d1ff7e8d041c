"""Public scans, which are not part of the project."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.scans import (
    SHARED,
    read,
    site,
)
from mtfed.data.source import Source

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="needs public volumes, which are not part of the project")


def test_public_series() -> None:
    result = read(SHARED, "dicom_ct", 3)  # JPEG 2000; its thickness is 3 mm, its spacing 2
    assert result.values.shape == (8, 512, 512) and result.values.dtype == np.int16
    assert result.spacing == pytest.approx((2, 0.9765625, 0.9765625), abs=1e-6) and result.window == (-110, 189)
    assert result.values.min() == -1024
    assert result.affine is not None and result.affine[2, 3] == -780.5
    mr = read(SHARED, "dicom_mr", 3)
    assert mr.values.shape == (32, 51, 35) and mr.spacing == (1, 1, 1)


REAL = [("example_ct_sm.nii.gz", "example_seg.nii.gz", (30, 101, 122), (3, 3, 3)),
        ("example_mr_sm.nii.gz", "example_seg_mr.nii.gz", (20, 91, 117), (3, 3, 3)),
        ("brain1_image.nrrd", "brain1_label.nrrd", (25, 256, 256), (6.5, 0.78125, 0.78125)),
        ("breast1_image.nrrd", "breast1_label.nrrd", (21, 120, 45), (2.1, 0.664062, 0.664062))]  # fmt: skip


@pytest.mark.parametrize(("image", "label", "shape", "spacing"), REAL)
def test_public_volumes_and_their_labels(
    image: str, label: str, shape: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    source = Source(site(SHARED), image, 32, 3)
    assert source.letterbox.shape == shape and source.spacing == pytest.approx(spacing)
    assert source.fit(source.array(label, "mask"), label, nearest=True).any()
    extents = np.multiply(shape, spacing)
    np.testing.assert_allclose(source.letterbox.inner, extents / extents.max() * 32, atol=0.5)


def test_the_liver_is_on_the_right_and_the_spine_at_the_back() -> None:
    """By the numbers of TotalSegmentator: liver 5, spleen 1, lumbar vertebrae 27 to 31."""
    labels = read(SHARED, "example_seg.nii.gz", 3, "mask").values
    centre = {
        name: np.argwhere(np.isin(labels, numbers)).mean(0)
        for name, numbers in (("liver", [5]), ("spleen", [1]), ("spine", list(range(25, 51))))
    }
    assert centre["liver"][2] < centre["spleen"][2]  # x points to the left
    assert centre["spine"][1] > centre["liver"][1]  # y points back
