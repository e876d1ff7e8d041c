"""Find images that are the same or nearly the same: saved twice, cropped, scaled or compressed again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple

import numpy as np

# Images are nearly the same if their thumbnails of 24 x 24 correlate at least this much. Measured: most crops of one
# breast ultrasound image reach it, but so do photographs of different eyes, because their rims are the same.
MIN_CORRELATION = 0.99
# So they must also correlate once the mean of all images is subtracted. Pairs of the same picture reach 0.966 or more
# (breast ultrasound, skin, chest X-ray), pairs of different eyes 0.901 or less.
MIN_RESIDUAL_CORRELATION = 0.94
MIN_IMAGES = 5  # whose mean shows what all images share (tried on eyes, chest X-rays and mammograms)
MAX_PAIRS = 100_000  # reported pairs: nearly all frames of a film are near each other
COARSE_AXES = 16  # principal axes on which images are compared first
SAMPLE_SIZE = 4096  # images from which these axes are computed
BLOCK = 128, 4096  # images compared at once: their products fit into a core's cache
PAIRS_AT_ONCE = 16384  # pairs compared in full at once


class DuplicatePair(NamedTuple):
    """The row numbers of two images that are the same or nearly the same."""

    first: int
    second: int
    correlation: float  # between their thumbnails
    exact: bool  # whether all their values are equal


def find_duplicates(thumbnails: Mapping[int, np.ndarray], digests: Mapping[int, bytes]) -> list[DuplicatePair]:
    """Return the pairs of images that are the same, and the pairs that are nearly the same.

    If several images are the same, each is paired with the first of them, and only the first is compared with others.

    Args:
        thumbnails: small images by row number, all of the same shape.
        digests: digests of the images' values by row number.
    """
    first_of: dict[bytes, int] = {}
    pairs = []
    for number in sorted(digests):
        first = first_of.setdefault(digests[number], number)
        if first != number:
            pairs.append(DuplicatePair(first, number, 1.0, True))
    numbers = [number for number in sorted(first_of.values()) if number in thumbnails]
    if len(numbers) > 1:
        vectors = unit_vectors(np.stack([thumbnails[number] for number in numbers]))
        near = islice(near_pairs(vectors), MAX_PAIRS)
        pairs += [DuplicatePair(numbers[i], numbers[j], correlation, False) for i, j, correlation in near]
    return sorted(pairs)


def unit_vectors(thumbnails: np.ndarray) -> np.ndarray:
    """Return thumbnails (N, ...) as vectors (N, D) of mean 0 and length 1, whose products are correlations."""
    vectors = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    vectors -= vectors.mean(1, keepdims=True)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def near_pairs(vectors: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Yield all pairs i < j of unit vectors (N, D) whose product is at least :data:`MIN_CORRELATION`, and the product.

    If there are :data:`MIN_IMAGES` or more, pairs must also reach :data:`MIN_RESIDUAL_CORRELATION`.

    Two such vectors are at most sqrt(2 - 2 MIN_CORRELATION) apart. Projections never increase a distance, so this also
    bounds their distance on any axes. Vectors are sorted along the first principal axis, and pairs that are further
    apart along it are skipped; the other pairs are compared in full only if they are near in the first few axes. No
    pair is missed.
    """
    distance = np.sqrt(2 - 2 * MIN_CORRELATION) + 1e-4  # plus the rounding error of 32 bits
    step = max(len(vectors) // SAMPLE_SIZE, 1)
    sample, mean = vectors[::step], vectors.mean(0)
    _, axes = np.linalg.eigh((sample - mean).T @ (sample - mean))  # in ascending order of variance
    coarse = (vectors - mean) @ axes[:, : -COARSE_AXES - 1 : -1]
    order = np.argsort(coarse[:, 0], kind="stable")
    coarse = coarse[order]
    # With two more columns, the products are minus half of the squared distances.
    half, ones = -(coarse**2).sum(1, keepdims=True) / 2, np.ones((len(coarse), 1), np.float32)
    left, right = np.hstack([coarse, half, ones]), np.hstack([coarse, ones, half]).T.copy()
    ends = np.searchsorted(coarse[:, 0], coarse[:, 0] + distance, side="right")
    for i in range(0, len(order), BLOCK[0]):
        last = ends[min(i + BLOCK[0], len(order)) - 1]  # the end for the block's last image; the others end before
        for j in range(i, last, BLOCK[1]):
            near = left[i : i + BLOCK[0]] @ right[:, j : min(j + BLOCK[1], last)] >= -(distance**2) / 2
            if not near.any():
                continue
            first, second = np.nonzero(near)
            first, second = first + i, second + j
            is_later = second > first
            first, second = order[first[is_later]], order[second[is_later]]
            correlations = np.concatenate(  # in chunks, because nearly all pairs of a block may be near
                [np.einsum("nd,nd->n", vectors[first[k : k + PAIRS_AT_ONCE]], vectors[second[k : k + PAIRS_AT_ONCE]])
                 for k in range(0, max(len(first), 1), PAIRS_AT_ONCE)]
            )  # fmt: skip
            for hit in np.nonzero(correlations >= MIN_CORRELATION)[0]:
                low, high = sorted((int(first[hit]), int(second[hit])))
                if len(vectors) < MIN_IMAGES or _is_near_beyond(mean, vectors[low], vectors[high]):
                    yield low, high, float(correlations[hit])


def _is_near_beyond(mean: np.ndarray, first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether two vectors are still near when the mean of all vectors is subtracted."""
    first, second = first - mean, second - mean
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second / max(lengths, 1e-12)) >= MIN_RESIDUAL_CORRELATION
