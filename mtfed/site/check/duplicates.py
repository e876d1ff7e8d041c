"""Which images are the same, or nearly: the same picture saved twice, or cropped, scaled, compressed anew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple

import numpy as np

# Correlation of two thumbnails of 24 x 24 from which on images are taken for nearly the same. Measured: most crops of
# one breast ultrasound lie above it, but so do pairs of different eyes, whose rims are the same.
NEAR = 0.99
# And correlation of what is left of them without the mean of all images, of which it takes some. Pairs of the same
# picture lie at 0.966 and above (breast ultrasound, skin, chest X-ray), the eyes at 0.901 and below.
ALSO = 0.94
ENOUGH = 5  # images whose mean tells what all have in common (tried on eyes, chest X-rays and mammograms)
MOST = 100_000  # pairs that are told of: of frames of one film nearly all are alike
AXES = 16  # principal ones, in which images are compared first
SAMPLE = 4096  # images that these are found from
BLOCK = 128, 4096  # images that are compared with each other at once: their products stay in a core's cache
PAIRS = 16384  # that are compared in full at once


class Pair(NamedTuple):
    """Two images by their numbers, and how far their thumbnails correlate."""

    first: int
    second: int
    correlation: float
    exact: bool  # whether their values are the same, one by one


def find_pairs(thumbs: Mapping[int, np.ndarray], digests: Mapping[int, bytes]) -> list[Pair]:
    """Return the pairs of images that are the same, and those that are nearly.

    Of several that are the same each is paired with the first, and only the first is compared with the others.

    Args:
        thumbs: small images by number, all of one shape.
        digests: of the images' values, by number.
    """
    first_of: dict[bytes, int] = {}
    pairs = []
    for number in sorted(digests):
        first = first_of.setdefault(digests[number], number)
        if first != number:
            pairs.append(Pair(first, number, 1.0, True))
    numbers = [number for number in sorted(first_of.values()) if number in thumbs]
    if len(numbers) > 1:
        vectors = unit_vectors(np.stack([thumbs[number] for number in numbers]))
        near = islice(near_pairs(vectors), MOST)
        pairs += [Pair(numbers[i], numbers[j], value, False) for i, j, value in near]
    return sorted(pairs)


def unit_vectors(thumbs: np.ndarray) -> np.ndarray:
    """Return thumbnails (N, ...) as vectors (N, D) of mean 0 and length 1, whose products are correlations."""
    vectors = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    vectors -= vectors.mean(1, keepdims=True)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def near_pairs(vectors: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Yield all i < j whose unit vectors (N, D) are near, and their product, which is at least :data:`NEAR`.

    Of many images they are near beyond what all have in common, too (:data:`ALSO`). Two such vectors are at most
    sqrt(2 - 2 NEAR) apart, and so are their projections on any axes, which never lengthen a distance. So pairs that are
    further apart along the first principal axis, by which all are sorted, are never looked at, and of the others only
    those in full that are near in the first few: no pair is missed.
    """
    distance = np.sqrt(2 - 2 * NEAR) + 1e-4  # and what 32 bits lose
    step = max(len(vectors) // SAMPLE, 1)
    sample, middle = vectors[::step], vectors.mean(0)
    _, axes = np.linalg.eigh((sample - middle).T @ (sample - middle))  # the widest last
    coarse = (vectors - middle) @ axes[:, : -AXES - 1 : -1]
    order = np.argsort(coarse[:, 0], kind="stable")
    coarse = coarse[order]
    # With these two columns more, products are minus half the squared distance.
    half, ones = -(coarse**2).sum(1, keepdims=True) / 2, np.ones((len(coarse), 1), np.float32)
    left, right = np.hstack([coarse, half, ones]), np.hstack([coarse, ones, half]).T.copy()
    ends = np.searchsorted(coarse[:, 0], coarse[:, 0] + distance, side="right")
    for i in range(0, len(order), BLOCK[0]):
        last = ends[min(i + BLOCK[0], len(order)) - 1]  # near the block's last image, the others' being before
        for j in range(i, last, BLOCK[1]):
            near = left[i : i + BLOCK[0]] @ right[:, j : min(j + BLOCK[1], last)] >= -(distance**2) / 2
            if not near.any():
                continue
            first, second = np.nonzero(near)
            first, second = first + i, second + j
            later = second > first
            first, second = order[first[later]], order[second[later]]
            values = np.concatenate(  # a bounded number at once, however alike the images are
                [np.einsum("nd,nd->n", vectors[first[k : k + PAIRS]], vectors[second[k : k + PAIRS]])
                 for k in range(0, max(len(first), 1), PAIRS)]
            )  # fmt: skip
            for hit in np.nonzero(values >= NEAR)[0]:
                low, high = sorted((int(first[hit]), int(second[hit])))
                if len(vectors) < ENOUGH or _cosine(vectors[low] - middle, vectors[high] - middle) >= ALSO:
                    yield low, high, float(values[hit])


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / max(float(np.linalg.norm(first) * np.linalg.norm(second)), 1e-12))


def clusters(pairs: list[Pair]) -> list[list[int]]:
    """Return the images that pairs hold together, each group sorted."""
    root: dict[int, int] = {}

    def find(number: int) -> int:
        while root.setdefault(number, number) != number:
            root[number] = root[root[number]]
            number = root[number]
        return number

    for pair in pairs:
        root[find(pair.second)] = find(pair.first)
    groups = defaultdict(list)
    for number in sorted(root):
        groups[find(number)].append(number)
    return sorted(groups.values())
