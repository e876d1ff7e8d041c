"""The precision of a site's weights: the diagonal of its Gaussian posterior, as it is sent and read.

A reply may contain a record ``precision`` next to ``arrays``: under the same keys, the precision of every value, which
is the curvature of the site's whole loss (samples times the mean diagonal Fisher information of a sample). Any float
array will do, but two bytes or one are enough: precision only decides a weighted mean, and its own sampling noise is
far above a rounding error of 9 %. :func:`encode` therefore stores the logarithm, in quarters of an octave below the
largest value of its array, in one byte, which adds only a quarter to the upload of the weights. The largest value is
sent under ``KEY/largest``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import EllipsisType

import numpy as np
from flwr.app import ArrayRecord

from .wire import record_of, values_of

LARGEST = "/largest"
MAX_PRECISION = 1e20  # far beyond any curvature; its product with a weight does not overflow single precision
CHUNK = 1 << 16
STEPS = 4.0  # codes for each octave; 255 codes span 63 octaves, and 0 means precision 0


@dataclass(frozen=True)
class Precision:
    """The precision of one array: floats as they were sent, or codes and the largest value."""

    values: np.ndarray
    largest: float | None = None

    def decode(self) -> np.ndarray:
        """Return the flattened precision, at least in single precision."""
        values = self.values.reshape(-1)
        if self.largest is None:
            return values if values.itemsize > 2 else values.astype(np.float32)
        decoded = np.empty(values.size, np.float32)
        even = values.size // 2 * 2
        codes, pairs = np.ascontiguousarray(values[:even]).view(np.uint16), decoded[:even].view(np.complex64)
        for start in range(0, len(codes), CHUNK // 2):  # NumPy makes eight bytes of each index
            where = slice(start, start + CHUNK // 2)
            np.take(_pairs(), codes[where], out=pairs[where], mode="clip")  # avoids a copy; all codes are in range
            pairs[where].view(np.float32)[:] *= np.float32(self.largest)
        decoded[even:] = _TABLE[values[even:]] * np.float32(self.largest)
        return decoded

    def mean(self) -> float:
        """Return the mean precision."""
        return mean_of(self.decode())

    def at(self, place: slice | EllipsisType, shape: tuple[int, ...]) -> Precision:
        """Return the precision of a tensor that is a part of this array."""
        return Precision(self.values.reshape(-1)[place].reshape(shape), self.largest)


def floored(precision: Precision, floor: float) -> tuple[np.ndarray, float]:
    """Return P = F + floor * (mean of F over the row) + floor^2 * (mean over the tensor), flattened, and its mean.

    A row is an output. If a curvature is estimated from few samples, its small values are the least reliable, and a
    weight that seems to be free would be decided by the site that saw least of it. An absolute floor would dominate
    all values near convergence. The floor is relative to the row first, because a site learns little about the output
    of a class that it has never seen, however well it knows the others. (Measured on digits, one-shot from models
    trained apart, 100 seeds: .8998 at 0.2, against .8913 with the tensor's mean alone.) A vector is one row. Axis 0 is
    assumed to be the outputs; in a transposed convolution it is the inputs.
    """
    known, shape = precision.decode(), precision.values.shape
    if not known.size:
        return known, 0.0
    rows = known.reshape(shape[0] if len(shape) > 1 else 1, -1)
    means = rows.mean(axis=1, keepdims=True)
    mean = float(means.mean(dtype=np.float64))
    offset = (floor * (means + floor * mean)).astype(known.dtype)
    out = None if precision.largest is None else rows  # decoded codes are a copy, which may be overwritten
    return np.add(rows, offset, out=out).reshape(-1), inflation(floor) * mean


def inflation(floor: float) -> float:
    """Return the factor by which :func:`floored` raises a tensor's mean precision."""
    return 1 + floor + floor**2


def mean_of(values: np.ndarray) -> float:
    """Return the mean of a flat array; the pairwise sum of each chunk is in the array's own type."""
    return sum(float(values[i : i + CHUNK].sum()) for i in range(0, values.size, CHUNK)) / max(values.size, 1)


def _is_valid(values: np.ndarray) -> bool:
    return not values.size or (float(values.min()) >= 0 and float(values.max()) < MAX_PRECISION)  # NaN fails both


_CODES = np.arange(256)
_TABLE = np.where(_CODES, np.exp2((_CODES - 255) / STEPS), 0.0).astype(np.float32)


@cache
def _pairs() -> np.ndarray:
    """Return the values of every pair of codes, as the two halves of a complex number: one look-up for two codes."""
    codes = np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
    return _TABLE[codes].view(np.complex64).reshape(-1)


def encode(values: np.ndarray) -> Precision:
    """Round precisions to one byte each; values more than 63 octaves below the largest become 0."""
    values = np.asarray(values)
    if not _is_valid(values):
        raise ValueError(f"Expected precisions from 0 to {MAX_PRECISION:g}, got {values.min()} to {values.max()}.")
    largest = float(values.max(initial=0.0))
    if not largest > 0:
        return Precision(np.zeros(values.shape, np.uint8), 0.0)
    with np.errstate(divide="ignore"):
        octaves = np.log2(values / np.asarray(largest, values.dtype))
    codes = np.rint(np.maximum(octaves * STEPS, -255.0)) + 255
    return Precision(codes.astype(np.uint8), largest)


def write_precision(values: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Return the record ``precision`` of a reply: one byte for each value, under the keys of its ``arrays``."""
    arrays: dict[str, np.ndarray] = {}
    for key, array in values.items():
        coded = encode(array)
        arrays |= {key: coded.values, key + LARGEST: np.array(coded.largest, np.float32)}
    return record_of(arrays)


def read_precision(record: ArrayRecord, arrays: Mapping[str, np.ndarray]) -> dict[str, Precision]:
    """Read and check the precision that a site sent with its arrays; arrays without it count by their samples.

    Raises:
        ValueError: with the reason, if the update has to be refused.
    """
    precision = {}
    for key, array in record.items():
        name = key.removesuffix(LARGEST)
        if name not in arrays:
            raise ValueError(f"it contains the precision of {name!r}, but no such array")
        if key != name:
            continue
        values = values_of(key, array)
        if values.shape != (shape := arrays[key].shape):
            raise ValueError(f"the precision of {key!r} should be of shape {list(shape)}, it is {list(values.shape)}")
        if values.dtype == np.uint8:
            largest = values_of(key + LARGEST, record[key + LARGEST]) if key + LARGEST in record else np.array(np.nan)
            if largest.size != 1 or largest.dtype.kind != "f" or not _is_valid(largest):
                raise ValueError(f"the precision of {key!r} consists of codes without a valid scale {key + LARGEST!r}")
            precision[key] = Precision(values, float(largest.reshape(())))
        elif values.dtype.kind != "f":
            raise ValueError(f"the precision of {key!r} should be floats or one-byte codes, it is {values.dtype}")
        elif _is_valid(values):
            precision[key] = Precision(values)
        else:
            raise ValueError(f"the precision of {key!r} contains values that are negative, too large or not finite")
    return precision
