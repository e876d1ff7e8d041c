"""Images that are the same or nearly the same."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mtfed.site.check.duplicates import (
    MIN_CORRELATION,
    MIN_IMAGES,
    MIN_RESIDUAL_CORRELATION,
    find_duplicates,
    near_pairs,
    unit_vectors,
)


@pytest.mark.parametrize(("count", "side"), [(2, 24), (700, 24), (300, 12)])
def test_near_pairs_are_those_of_all_comparisons(count: int, side: int) -> None:
    rng = np.random.default_rng(count)
    thumbnails = gaussian_filter(rng.normal(size=(count, side, side)), (0, 3, 3))
    for i in range(0, count - 1, 5):  # from hardly changed to changed beyond the threshold
        thumbnails[i + 1] = thumbnails[i] + rng.uniform(0, 0.3) * thumbnails[i].std() * rng.normal(size=(side, side))
    vectors = unit_vectors(thumbnails)
    products = np.triu(vectors.astype(np.float64) @ vectors.T, 1)
    residual = unit_vectors(vectors - vectors.mean(0)).astype(np.float64)
    residual_products = residual @ residual.T if count >= MIN_IMAGES else np.ones_like(products)

    def pairs(slack: float) -> set[tuple[int, int]]:
        near = (products >= MIN_CORRELATION - slack) & (residual_products >= MIN_RESIDUAL_CORRELATION - 100 * slack)
        return {(int(i), int(j)) for i, j in zip(*np.nonzero(near), strict=True)}

    certain, possible = pairs(-1e-5), pairs(1e-5)
    pairs_found = {(i, j) for i, j, _ in near_pairs(vectors)}
    assert certain <= pairs_found <= possible and (count < 10 or len(pairs_found) > 10)


@pytest.mark.parametrize("count", [5, 10, 19, 40])
def test_what_all_images_share_makes_no_pair(count: int) -> None:
    rng = np.random.default_rng(0)
    rim = np.hypot(*np.mgrid[-1:1:24j, -1:1:24j]) < 0.9
    eyes = 200.0 * rim + 8 * gaussian_filter(rng.normal(size=(count, 24, 24)), (0, 1, 1)) * rim
    eyes[4] = eyes[3] + 0.3 * rng.normal(size=(24, 24))
    vectors = unit_vectors(eyes)
    assert (vectors @ vectors.T > MIN_CORRELATION).all() and [(i, j) for i, j, _ in near_pairs(vectors)] == [(3, 4)]


def test_identical_images_are_paired_once() -> None:
    rng = np.random.default_rng(0)
    first, other = rng.normal(size=(2, 24, 24))
    thumbnails = {0: first, 3: first, 5: first, 7: other, 9: first + 0.01 * rng.normal(size=(24, 24))}
    pairs = find_duplicates(thumbnails, {0: b"a", 3: b"a", 5: b"a", 7: b"b", 9: b"c"})
    assert [(p.first, p.second, p.exact) for p in pairs] == [(0, 3, True), (0, 5, True), (0, 9, False)]
