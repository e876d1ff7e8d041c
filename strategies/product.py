"""The merge: the sites' Gaussian posteriors of every weight are multiplied as they arrive.

Site j contributes N(theta_j, 1 / P_j) for every weight. The product, with a prior N(theta_0, 1 / P_0), is the Gaussian
of precision S = P_0 + sum_j P_j around (P_0 theta_0 + sum_j P_j theta_j) / S. This is Fisher merging (Matena and
Raffel, NeurIPS 2022) with the counts in the precision; if P_j is the number of samples and P_0 = 0, it is FedAvg to
the last bit.

A site that lacks a part, or has learned nothing about a weight, has precision 0 there. Integers, such as the counters
of BatchNorm, are merged by their maximum; BatchNorm's variances become those of the pooled images, by moments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from math import prod

import numpy as np

from .axes import Tensors
from .precision import Precision, floored, mean_of
from .wire import TensorEntry

CHUNK = 1 << 16  # numbers per step, so that they stay in the processor's cache
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
        if values.dtype == own.dtype:  # in place; terms keep their type, only the sums are in double precision
            own *= values[start : start + CHUNK]
        else:
            own = own * values[start : start + CHUNK]
        weighted[start : start + CHUNK] += own
    return mean * values.size


@dataclass
class _Accumulator:
    """The sums of one array: over sites that count by their samples, and over sites that sent their precision."""

    counted: np.ndarray | None = None  # sum of values times samples
    weight: float | np.ndarray = 0.0  # weight of ``counted``; finally one per value, if a site sent its precision
    weighted: np.ndarray | None = None  # sum of values times precision
    precision: np.ndarray | None = None
    samples: float = 0.0  # samples of the sites in ``precision``
    maximum: np.ndarray | None = None  # maximum of integer values


@dataclass(frozen=True)
class Merged:
    """The product: arrays by key, and their precision, a single number if all sites counted by their samples."""

    arrays: dict[str, np.ndarray]
    precision: dict[str, np.ndarray]
    sample_precision: dict[str, float]  # key -> precision of one sample, where some sites sent their precision


@dataclass
class Product:
    """A product of posteriors, multiplied site by site.

    Args:
        tensors: the tensors in each array of the global record, by key (:func:`.wire.tensors_in`).
        floor: minimum precision of a weight, as a share of its row's mean, see :func:`.precision.floored`.
    """

    tensors: Mapping[str, Sequence[TensorEntry]]
    floor: float = 0.2
    mean_precision: dict[str, float] = field(default_factory=dict)  # tensor -> mean of the last site's
    _sums: dict[str, _Accumulator] = field(default_factory=dict)
    _blocks: dict[str, np.ndarray] = field(default_factory=dict)

    def add(
        self, values: Tensors, weights: Mapping[str, float], precision: Mapping[str, Precision] | None = None
    ) -> dict[str, float]:
        """Add one site's tensors, and return the sum of their precision by key.

        Args:
            values: the site's tensors by name.
            weights: weight by key of each array that the site sent: its samples, or another measure.
                If the site sent no precision, this is its precision everywhere; at 0 the array is ignored.
            precision: precision of each value, by name of the tensor; for the tensors of an array, all or none.
        """
        added, precision = {}, precision or {}
        self.mean_precision = {}
        for key, weight in weights.items():
            required = {
                self._mean_names[tensor.name] for tensor in self.tensors[key] if tensor.name in self._mean_names
            }
            if weight <= 0 or not required <= values.keys():  # a variance needs its mean
                continue
            sums = self._sums.setdefault(key, _Accumulator())
            known = self.tensors[key][0].name in precision
            added[key] = 0.0
            for tensor in self.tensors[key]:
                own = values[tensor.name]
                if own.dtype.kind != "f":
                    self._add_integers(key, tensor, own)
                    continue
                if tensor.name.endswith((MEAN, VARIANCE)):  # variances are small differences of large moments
                    own = own.astype(np.float64)
                if mean := self._mean_names.get(tensor.name):  # the second moment around 0 is averaged like a mean
                    own = own + np.square(values[mean], dtype=np.float64)
                if known:
                    if sums.weighted is None or sums.precision is None:
                        sums.weighted, sums.precision = self._zeros("weighted", key), self._precision_zeros(key)
                    weighted, summed = sums.weighted[tensor.place], sums.precision[tensor.place]
                    total = add_product(weighted, summed, own, precision[tensor.name], self.floor)
                    self.mean_precision[tensor.name] = total / max(own.size, 1)
                    added[key] += total
                else:
                    if sums.counted is None:
                        sums.counted = self._zeros("counted", key)
                    add_scaled(sums.counted[tensor.place], own, weight)
                    added[key] += weight * own.size
            sums.samples += weight if known else 0.0
            sums.weight += 0.0 if known else weight
        return added

    def finish(self, previous: Mapping[str, np.ndarray], prior: Mapping[str, np.ndarray] | None = None) -> Merged:
        """Return the product, and release the sums.

        Args:
            previous: the last global arrays by key. A weight whose precision is 0 at all sites keeps its value there.
            prior: the precision of ``previous`` by key, if it counts: one number for an array, or one for each value.
        """
        arrays: dict[str, np.ndarray] = {}
        precisions: dict[str, np.ndarray] = {}
        sample_precision: dict[str, float] = {}
        for key, sums in self._sums.items():
            if sums.precision is not None:
                sample_precision[key] = mean_of(sums.precision) / sums.samples
                self._join(key, sums)
            if sums.counted is not None and prior is not None and key in prior:
                prior_precision = prior[key].reshape(-1) if prior[key].ndim else prior[key]
                sums.counted += np.multiply(prior_precision, self._moments(key, previous), dtype=np.float64)
                sums.weight += prior_precision
        self._centre(previous)
        self._blocks.clear()
        for key in list(self._sums):
            sums, last = self._sums.pop(key), previous[key]
            if sums.maximum is not None:
                arrays[key] = sums.maximum.reshape(last.shape)
            elif sums.counted is not None:
                arrays[key] = quotient(sums.counted, sums.weight, last)
                precision = np.asarray(sums.weight, np.float32)
                precisions[key] = precision.reshape(last.shape if precision.ndim else ())
        return Merged(arrays, precisions, sample_precision)

    def _add_integers(self, key: str, tensor: TensorEntry, values: np.ndarray) -> None:
        sums = self._sums[key]
        if sums.maximum is None:
            size, dtype = sum(prod(entry.shape) for entry in self.tensors[key]), values.dtype
            sums.maximum = np.full(size, np.iinfo(dtype).min if dtype.kind in "iu" else 0, dtype)
        maximum = sums.maximum[tensor.place]
        np.maximum(maximum, values.reshape(-1), out=maximum)

    def _centre(self, previous: Mapping[str, np.ndarray]) -> None:
        """Convert sums of second moments around 0 to sums of variances."""
        for key, tensor, mean_key, mean in self._variances:
            sums, mean_sums = self._sums.get(key), self._sums.get(mean_key)
            if sums is None or mean_sums is None or sums.counted is None or mean_sums.counted is None:
                continue
            last = previous[mean_key].reshape(-1)[mean.place].astype(np.float64)
            centre = quotient(mean_sums.counted[mean.place], _at(mean_sums.weight, mean), last)
            moments, weight = sums.counted[tensor.place], _at(sums.weight, tensor)
            np.maximum(moments - weight * np.square(centre), 0, out=moments)

    def _join(self, key: str, sums: _Accumulator) -> None:
        """Add the sums of both kinds of sites.

        A sample of a site without precision counts as much as a sample of the other sites, on average over a tensor,
        or over the array if their precision of the tensor is 0.
        """
        assert sums.weighted is not None and sums.precision is not None
        if sums.counted is not None:
            overall = mean_of(sums.precision) or sums.samples
            for tensor in self.tensors[key]:
                weighted, precision = sums.weighted[tensor.place], sums.precision[tensor.place]
                per_sample = (mean_of(precision) or overall) / sums.samples
                add_scaled(weighted, sums.counted[tensor.place], per_sample)
                precision += per_sample * sums.weight
        sums.counted, sums.weight = sums.weighted, sums.precision

    def _zeros(self, block: str, key: str, dtype: type[np.floating] = np.float64) -> np.ndarray:
        """Return the part of an array in one block of zeros for all arrays.

        The system gives a large block large pages; with small blocks, their first touch took a fifth of a merge's time.
        """
        if block not in self._blocks:
            size = sum(place.stop - place.start for place in self._places.values())
            self._blocks[block] = np.zeros(size, dtype)
        return self._blocks[block][self._places[key]]

    def _precision_zeros(self, key: str) -> np.ndarray:
        """Return zeros for an array's precision, in single precision unless the array contains variances.

        A mean loses a share of 1e-7 by that; a variance, the small difference of large moments, would lose more.
        """
        if any(tensor.name.endswith((MEAN, VARIANCE)) for tensor in self.tensors[key]):
            return self._zeros("double precision", key)
        return self._zeros("precision", key, np.float32)

    @cached_property
    def _places(self) -> dict[str, slice]:
        ends = [0, *accumulate(sum(prod(tensor.shape) for tensor in tensors) for tensors in self.tensors.values())]
        return {key: slice(*ends[i : i + 2]) for i, key in enumerate(self.tensors)}

    def _moments(self, key: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return a flattened array with second moments around 0 in place of variances."""
        values, variances = arrays[key].reshape(-1), [entry for entry in self._variances if entry[0] == key]
        if variances:
            values = values.astype(np.float64)
            for _, tensor, mean_key, mean in variances:
                values[tensor.place] += np.square(arrays[mean_key].reshape(-1)[mean.place], dtype=np.float64)
        return values

    @cached_property
    def _variances(self) -> list[tuple[str, TensorEntry, str, TensorEntry]]:
        """Return every running variance and its running mean, each after the key of its array."""
        by_name = {tensor.name: (key, tensor) for key, tensors in self.tensors.items() for tensor in tensors}
        means = {name: name.removesuffix(VARIANCE) + MEAN for name in by_name if name.endswith(VARIANCE)}
        pairs = [(*by_name[name], *by_name[mean]) for name, mean in means.items() if mean in by_name]
        return [pair for pair in pairs if pair[1].shape == pair[3].shape]

    @cached_property
    def _mean_names(self) -> dict[str, str]:
        """Return by name of a running variance the name of its running mean."""
        return {tensor.name: mean.name for _, tensor, _, mean in self._variances}


def quotient(weighted: np.ndarray, weight: float | np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return ``weighted / weight`` with the type and shape of the last values, which stay where the weight is 0."""
    flat, before = np.empty(last.size, last.dtype), last.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        where = slice(start, start + CHUNK)
        divisor = weight[where] if isinstance(weight, np.ndarray) and weight.ndim else weight
        with np.errstate(divide="ignore", invalid="ignore"):
            flat[where] = weighted[where] / divisor
        np.copyto(flat[where], before[where], where=np.equal(divisor, 0))
    return flat.reshape(last.shape)


def _at(weight: float | np.ndarray, tensor: TensorEntry) -> float | np.ndarray:
    return weight[tensor.place] if isinstance(weight, np.ndarray) and weight.ndim else weight
