"""The merge: the sites' Gaussian posteriors of every weight, multiplied as they arrive.

Site j says N(theta_j, 1 / P_j), weight by weight. The product, with a prior N(theta_0, 1 / P_0), is the Gaussian of
precision S = P_0 + sum_j P_j around (P_0 theta_0 + sum_j P_j theta_j) / S: Fisher merging (Matena and Raffel, NeurIPS
2022) with the counts in the precision, and, where P_j is the number of samples and P_0 = 0, FedAvg to the last bit.

A site that lacks a part, or has learned nothing of a weight, has precision 0 there. Integers, as the counters of
BatchNorm, merge by their maximum; its variances as those of the pooled images, by moments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np

from .precision import Precision
from .wire import Tensor

CHUNK = 1 << 15  # numbers worked on at a time, so that they stay in the processor's cache
MEAN, VARIANCE = "running_mean", "running_var"


def add_scaled(total: np.ndarray, values: np.ndarray, weight: float, chunk: int = CHUNK) -> None:
    """Add ``weight * values`` to a float64 total in place."""
    total, values = total.reshape(-1), values.reshape(-1)
    scratch = np.empty(min(chunk, total.size), np.float64)
    for start in range(0, total.size, chunk):
        piece = values[start : start + chunk]
        scaled = np.multiply(piece, weight, out=scratch[: piece.size], dtype=np.float64)
        total[start : start + chunk] += scaled


def add_product(
    weighted: np.ndarray, total: np.ndarray, values: np.ndarray, precision: Precision, floor: float
) -> float:
    """Add one tensor's ``P * values`` and ``P`` to flat float64 sums in place; return the sum of P.

    P is the precision plus ``floor`` times its mean over the tensor. Of a curvature that is estimated from few samples
    the small values are the least known, and a weight that looks free would be left to whoever saw it least; an
    absolute floor would swamp all of them near convergence.
    """
    values = values.reshape(-1)
    least = floor * precision.mean()
    scratch = np.empty(min(CHUNK, values.size), np.float64)
    added = 0.0
    for start in range(0, values.size, CHUNK):
        where = slice(start, start + CHUNK)
        own = precision.decode(where) + np.float32(least)
        added += float(own.sum(dtype=np.float64))
        total[where] += own
        weighted[where] += np.multiply(own, values[where], out=scratch[: own.size], dtype=np.float64)
    return added


@dataclass
class _Sums:
    """What has been added up of one array: from sites that count samples, and from sites that know their precision."""

    counted: np.ndarray | None = None
    weight: float = 0.0
    weighted: np.ndarray | None = None
    precision: np.ndarray | None = None
    samples: float = 0.0  # behind ``precision``
    largest: np.ndarray | None = None  # integers


@dataclass(frozen=True)
class Merged:
    """The product: arrays by key, and their precision, one number where all sites only counted."""

    arrays: dict[str, np.ndarray]
    precision: dict[str, np.ndarray]


@dataclass
class Product:
    """A product of posteriors in the making.

    Args:
        tensors: the tensors that each array of the global record holds, by key (:func:`.wire.tensors_in`).
        floor: least precision of a weight, as a share of its tensor's mean.
    """

    tensors: Mapping[str, Sequence[Tensor]]
    floor: float = 0.1
    _sums: dict[str, _Sums] = field(default_factory=dict)

    def add(
        self,
        values: Mapping[str, np.ndarray],
        weights: Mapping[str, float],
        precision: Mapping[str, Precision] | None = None,
    ) -> dict[str, float]:
        """Add one site's tensors, and return the sum of their precision by key.

        Args:
            values: the site's tensors by name.
            weights: by key of the arrays that the site holds: its samples, or another measure of how much it counts.
                That is its precision throughout, if it tells none; at 0 it has no say.
            precision: by name, of every value of a tensor; of an array all tensors have one, or none.
        """
        told = {}
        for key, weight in weights.items():
            if weight <= 0:
                continue
            sums = self._sums.setdefault(key, _Sums())
            size = sum(prod(tensor.shape) for tensor in self.tensors[key])
            known = precision is not None and self.tensors[key][0].name in precision
            added = 0.0
            for tensor in self.tensors[key]:
                own = values[tensor.name]
                if own.dtype.kind != "f":
                    if sums.largest is None:
                        sums.largest = np.zeros(size, own.dtype)
                    there = sums.largest[tensor.place]
                    np.maximum(there, own.reshape(-1), out=there)
                    continue
                if mean := self._mean_beside(tensor):  # the second moment around 0 averages as a mean does
                    own = own + np.square(values[mean.name])
                if known and precision is not None:
                    if sums.weighted is None or sums.precision is None:
                        sums.weighted, sums.precision = np.zeros(size), np.zeros(size)
                    place, said = tensor.place, precision[tensor.name]
                    added += add_product(sums.weighted[place], sums.precision[place], own, said, self.floor)
                else:
                    if sums.counted is None:
                        sums.counted = np.zeros(size)
                    add_scaled(sums.counted[tensor.place], own, weight)
                    added += weight * own.size
            sums.samples += weight if known else 0.0
            sums.weight += 0.0 if known else weight
            told[key] = added
        return told

    def finish(self, previous: Mapping[str, np.ndarray], prior: Mapping[str, np.ndarray] | None = None) -> Merged:
        """Return the product, and release what was added up.

        Args:
            previous: the last global arrays by key. A weight of which nobody knows anything stays as it is there.
            prior: how sure they are, by key, if they are to count: one number an array, or one a value.
        """
        arrays: dict[str, np.ndarray] = {}
        precisions: dict[str, np.ndarray] = {}
        unknown: dict[str, np.ndarray] = {}
        for key in list(self._sums):
            sums, last = self._sums.pop(key), previous[key]
            if sums.largest is not None:
                arrays[key] = sums.largest
                continue
            weighted, total = _joined(sums)
            if weighted is None:
                continue
            before = last.reshape(-1)
            if prior is not None and key in prior:
                weighted += np.multiply(prior[key].reshape(-1), self._moments(key, previous), dtype=np.float64)
                total = total + prior[key].reshape(-1)
            with np.errstate(divide="ignore", invalid="ignore"):
                weighted /= total
            if np.ndim(total):
                unknown[key] = np.equal(total, 0)
                weighted[unknown[key]] = before[unknown[key]]
            arrays[key] = weighted
            kept = np.asarray(total, np.float32)
            precisions[key] = kept.reshape(last.shape) if kept.size == last.size else kept.reshape(())
        for key, tensor, mean_key, mean in self._variances():
            if key in arrays and mean_key in arrays:
                variance = arrays[key][tensor.place]
                centred = np.maximum(variance - np.square(arrays[mean_key][mean.place]), 0)
                stays = unknown[key][tensor.place] if key in unknown else np.zeros(variance.shape, bool)
                arrays[key][tensor.place] = np.where(stays, variance, centred)
        shaped = {key: array.astype(previous[key].dtype).reshape(previous[key].shape) for key, array in arrays.items()}
        return Merged(shaped, precisions)

    def _moments(self, key: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return an array raveled, with second moments in the places of variances."""
        values = arrays[key].reshape(-1)
        for own, tensor, mean_key, mean in self._variances():
            if own == key:
                values = values.copy()
                values[tensor.place] += np.square(arrays[mean_key].reshape(-1)[mean.place])
        return values

    def _variances(self) -> list[tuple[str, Tensor, str, Tensor]]:
        """Return every running variance with the running mean beside it, and their keys."""
        return [
            (key, tensor, *self._homes[mean.name])
            for key, tensor in self._homes.values() if (mean := self._mean_beside(tensor))
        ]  # fmt: skip

    def _mean_beside(self, tensor: Tensor) -> Tensor | None:
        if not tensor.name.endswith(VARIANCE):
            return None
        home = self._homes.get(tensor.name.removesuffix(VARIANCE) + MEAN)
        return home and home[1]

    @cached_property
    def _homes(self) -> dict[str, tuple[str, Tensor]]:
        return {tensor.name: (key, tensor) for key, tensors in self.tensors.items() for tensor in tensors}


def _joined(sums: _Sums) -> tuple[np.ndarray | None, np.ndarray | float]:
    """Return the sums of both kinds of sites as one.

    A site that only counts is taken to know as much a sample as the others do, on average.
    """
    if sums.weighted is None or sums.precision is None:
        return sums.counted, sums.weight
    if sums.counted is not None and sums.samples > 0:
        usual = float(sums.precision.mean()) / sums.samples
        add_scaled(sums.weighted, sums.counted, usual)
        sums.precision += usual * sums.weight
    return sums.weighted, sums.precision
