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
from itertools import accumulate
from math import prod

import numpy as np

from .precision import Precision, floored, mean_of
from .wire import TensorEntry

CHUNK = 1 << 16  # numbers worked on at a time, so that they stay in the processor's cache
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
    """Add one tensor's ``P * values`` and its P (:func:`.precision.floored`) to flat sums; return the sum of P."""
    values, (known, mean) = values.reshape(-1), floored(precision, floor)
    for start in range(0, values.size, CHUNK):
        own = known[start : start + CHUNK]
        total[start : start + CHUNK] += own
        if values.dtype == own.dtype:  # the copy is ours; sums are in double precision, their terms as they came
            own *= values[start : start + CHUNK]
        else:
            own = own * values[start : start + CHUNK]
        weighted[start : start + CHUNK] += own
    return mean * values.size


@dataclass
class _Accumulator:
    """What has been added up of one array: from sites that count samples, and from sites that know their precision."""

    counted: np.ndarray | None = None
    weight: float | np.ndarray = 0.0  # behind ``counted``; in the end one number a value, if anybody told its precision
    weighted: np.ndarray | None = None
    precision: np.ndarray | None = None
    samples: float = 0.0  # behind ``precision``
    largest: np.ndarray | None = None  # integers


@dataclass(frozen=True)
class Merged:
    """The product: arrays by key, and their precision, one number where all sites only counted."""

    arrays: dict[str, np.ndarray]
    precision: dict[str, np.ndarray]
    sample_precision: dict[str, float]  # key -> precision of one sample, where some sites sent their precision


@dataclass
class Product:
    """A product of posteriors in the making.

    Args:
        tensors: the tensors that each array of the global record holds, by key (:func:`.wire.tensors_in`).
        floor: least precision of a weight, as a share of its row's mean, :func:`.precision.floored`.
    """

    tensors: Mapping[str, Sequence[TensorEntry]]
    floor: float = 0.2
    mean_precision: dict[str, float] = field(default_factory=dict)  # tensor -> mean of the last site's
    _sums: dict[str, _Accumulator] = field(default_factory=dict)
    _blocks: dict[str, np.ndarray] = field(default_factory=dict)

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
        self.mean_precision = {}
        for key, weight in weights.items():
            if weight <= 0 or not self._beside(key) <= values.keys():  # nothing is a variance without its mean
                continue
            sums = self._sums.setdefault(key, _Accumulator())
            size = sum(prod(tensor.shape) for tensor in self.tensors[key])
            known = precision is not None and self.tensors[key][0].name in precision
            added = 0.0
            for tensor in self.tensors[key]:
                own = values[tensor.name]
                if own.dtype.kind != "f":
                    if sums.largest is None:
                        sums.largest = np.full(size, _least(own.dtype), own.dtype)
                    there = sums.largest[tensor.place]
                    np.maximum(there, own.reshape(-1), out=there)
                    continue
                if tensor.name.endswith((MEAN, VARIANCE)):  # a small difference of large moments
                    own = own.astype(np.float64)
                if mean := self._mean_beside(tensor):  # the second moment around 0 averages as a mean does
                    own = own + np.square(values[mean.name], dtype=np.float64)
                if known and precision is not None:
                    if sums.weighted is None or sums.precision is None:
                        sums.weighted, sums.precision = self._zeros("weighted", key), self._precision_zeros(key)
                    place, said = tensor.place, precision[tensor.name]
                    sure = add_product(sums.weighted[place], sums.precision[place], own, said, self.floor)
                    self.mean_precision[tensor.name] = sure / max(own.size, 1)
                    added += sure
                else:
                    if sums.counted is None:
                        sums.counted = self._zeros("counted", key)
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
        usual: dict[str, float] = {}
        for key, sums in self._sums.items():
            if sums.precision is not None:
                usual[key] = mean_of(sums.precision) / sums.samples
                self._join(key, sums)
            if sums.counted is not None and prior is not None and key in prior:
                surely = prior[key].reshape(-1) if prior[key].ndim else prior[key]
                sums.counted += np.multiply(surely, self._moments(key, previous), dtype=np.float64)
                sums.weight += surely
        self._centre(previous)
        self._blocks.clear()
        for key in list(self._sums):
            sums, last = self._sums.pop(key), previous[key]
            if sums.largest is not None:
                arrays[key] = sums.largest.reshape(last.shape)
            elif sums.counted is not None:
                arrays[key] = quotient(sums.counted, sums.weight, last)
                kept = np.asarray(sums.weight, np.float32)
                precisions[key] = kept.reshape(last.shape if kept.ndim else ())
        return Merged(arrays, precisions, usual)

    def _centre(self, previous: Mapping[str, np.ndarray]) -> None:
        """Turn sums of second moments around 0 into those of variances."""
        for key, tensor, mean_key, mean in self._variances:
            sums, beside = self._sums.get(key), self._sums.get(mean_key)
            if sums is None or beside is None or sums.counted is None or beside.counted is None:
                continue
            last = previous[mean_key].reshape(-1)[mean.place].astype(np.float64)
            around = quotient(beside.counted[mean.place], _at(beside.weight, mean), last)
            moments, weight = sums.counted[tensor.place], _at(sums.weight, tensor)
            np.maximum(moments - weight * np.square(around), 0, out=moments)

    def _join(self, key: str, sums: _Accumulator) -> None:
        """Put the sums of both kinds of sites together.

        A site that only counts is taken to know as much a sample as the others do, on average over a tensor; where
        they know nothing of a tensor, over the array.
        """
        assert sums.weighted is not None and sums.precision is not None
        if sums.counted is not None:
            overall = mean_of(sums.precision) or sums.samples
            for tensor in self.tensors[key]:
                weighted, precision = sums.weighted[tensor.place], sums.precision[tensor.place]
                usual = (mean_of(precision) or overall) / sums.samples
                add_scaled(weighted, sums.counted[tensor.place], usual)
                precision += usual * sums.weight
        sums.counted, sums.weight = sums.weighted, sums.precision

    def _zeros(self, kind: str, key: str, dtype: type[np.floating] = np.float64) -> np.ndarray:
        """Return an array's place in one block of zeros for all.

        Of a large block a system makes large pages. In small ones their first touch took a fifth of a merge's time.
        """
        if kind not in self._blocks:
            size = sum(place.stop - place.start for place in self._places.values())
            self._blocks[kind] = np.zeros(size, dtype)
        return self._blocks[kind][self._places[key]]

    def _precision_zeros(self, key: str) -> np.ndarray:
        """Return zeros for an array's precision: in single precision, in which it is kept, unless variances need more.

        A share of 1e-7 is lost on a mean; a variance, the small difference of large moments, would lose more.
        """
        if any(tensor.name.endswith((MEAN, VARIANCE)) for tensor in self.tensors[key]):
            return self._zeros("precision beside statistics", key)
        return self._zeros("precision", key, np.float32)

    @cached_property
    def _places(self) -> dict[str, slice]:
        ends = [0, *accumulate(sum(prod(tensor.shape) for tensor in tensors) for tensors in self.tensors.values())]
        return {key: slice(*ends[i : i + 2]) for i, key in enumerate(self.tensors)}

    def _moments(self, key: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return an array raveled, with second moments in the places of variances."""
        values, among = arrays[key].reshape(-1), [held for held in self._variances if held[0] == key]
        if among:
            values = values.astype(np.float64)
            for _, tensor, mean_key, mean in among:
                values[tensor.place] += np.square(arrays[mean_key].reshape(-1)[mean.place], dtype=np.float64)
        return values

    @cached_property
    def _variances(self) -> list[tuple[str, TensorEntry, str, TensorEntry]]:
        """Return every running variance with the running mean beside it, and their keys."""
        return [
            (key, tensor, *self._homes[mean.name])
            for key, tensor in self._homes.values() if (mean := self._mean_beside(tensor))
        ]  # fmt: skip

    def _beside(self, key: str) -> set[str]:
        """Return the running means that go with an array's variances."""
        return {mean.name for tensor in self.tensors[key] if (mean := self._mean_beside(tensor))}

    def _mean_beside(self, tensor: TensorEntry) -> TensorEntry | None:
        if not tensor.name.endswith(VARIANCE):
            return None
        home = self._homes.get(tensor.name.removesuffix(VARIANCE) + MEAN)
        return home[1] if home and home[1].shape == tensor.shape else None

    @cached_property
    def _homes(self) -> dict[str, tuple[str, TensorEntry]]:
        return {tensor.name: (key, tensor) for key, tensors in self.tensors.items() for tensor in tensors}


def _least(dtype: np.dtype) -> int:
    return int(np.iinfo(dtype).min) if dtype.kind in "iu" else 0


def quotient(weighted: np.ndarray, weight: float | np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return ``weighted / weight`` in the type and shape of the last values, which stay where the weight is 0."""
    flat, before = np.empty(last.size, last.dtype), last.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        where = slice(start, start + CHUNK)
        below = weight[where] if isinstance(weight, np.ndarray) and weight.ndim else weight
        with np.errstate(divide="ignore", invalid="ignore"):
            flat[where] = weighted[where] / below
        np.copyto(flat[where], before[where], where=np.equal(below, 0))
    return flat.reshape(last.shape)


def _at(weight: float | np.ndarray, tensor: TensorEntry) -> float | np.ndarray:
    return weight[tensor.place] if isinstance(weight, np.ndarray) and weight.ndim else weight
