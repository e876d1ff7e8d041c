"""Bring volumes of every format into one layout: axes z, y, x, pointing to the patient's head, back and left."""

from __future__ import annotations

import numpy as np

from .picture import Picture
from .source_file import SourceFile

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from RAS, the coordinates of NIfTI


def lay_out(
    values: np.ndarray,
    file: SourceFile,
    dimensions: int,
    affine: np.ndarray | None = None,
    spacing: tuple[float, ...] | None = None,
    window: tuple[float, float] | None = None,
) -> Picture:
    """Return a volume (I, J, K) as (z, y, x) in LPS; an oblique volume is aligned with the closest axes.

    Args:
        values: values of a volume; colours may follow as a fourth axis.
        file: the file that error messages name.
        dimensions: if 2, the volume must be a single slice, which is returned.
        affine: (4, 4) from i, j, k to millimetres in LPS; without it, i, j, k are assumed to be x, y, z.
        spacing: millimetres along i, j, k, if there is no affine.
        window: window of intensities, as in :class:`Picture`.
    """
    if affine is not None:
        values, affine = _turn(values, np.asarray(affine, np.float64), file)
        spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0).round(6).tolist())
    if spacing is not None and not all(0 < step < np.inf or step != step for step in spacing):
        raise file.error(f"its voxels should have sides above 0 mm, got {format_sides(spacing)}; correct its header")
    turned = values.transpose(2, 1, 0, *range(3, values.ndim))
    picture = Picture(turned, spacing and spacing[::-1], affine, window)
    return picture if dimensions == 3 else _single(picture, file)


def _turn(values: np.ndarray, affine: np.ndarray, file: SourceFile) -> tuple[np.ndarray, np.ndarray]:
    from nibabel import orientations

    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise file.error("its header does not describe its axes (its affine is singular); correct its header")
    actual = orientations.io_orientation(TO_LPS @ affine)
    target = orientations.axcodes2ornt(("L", "P", "S"))
    change = orientations.ornt_transform(actual, target)
    turned = orientations.apply_orientation(values, change)
    return turned, affine @ orientations.inv_ornt_aff(change, values.shape[:3])


def _single(picture: Picture, file: SourceFile) -> Picture:
    """Return the only slice of a volume. If it is a slice across x or y, the head is up."""
    depths = picture.values.shape[:3]
    if depths[0] == 1 or depths.count(1) != 1:
        return only_slice(picture, file)
    axis = depths.index(1)
    values = np.moveaxis(picture.values, axis, 0)[:, ::-1]  # rows now point along -z
    affine = picture.affine
    if affine is not None:
        x, y, z, origin = affine.T
        columns = (x, -z, y) if axis == 1 else (y, -z, x)
        affine = np.stack([*columns, origin + (depths[0] - 1) * z], axis=1)
    spacing = picture.spacing
    if spacing is not None:
        spacing = (spacing[axis], *(step for i, step in enumerate(spacing) if i != axis))
    return Picture(values, spacing, affine, picture.window).slice(0)


def only_slice(picture: Picture, file: SourceFile) -> Picture:
    """Return the only slice along z of a volume; refuse a volume with more slices."""
    depth = len(picture.values)
    if depth != 1:
        middle = f"{file.name}#{depth // 2}"
        raise file.error(f"it has {depth} slices, and the model sees pictures; name one slice, as in {middle}")
    return picture.slice(0)


def format_sides(sides: tuple[float, ...]) -> str:
    """Return lengths as text, such as "0.5 x 0.5 x 3"."""
    return " x ".join(f"{side:g}" for side in sides)
