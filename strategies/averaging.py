"""Weighted averaging, task by task: FedAvg, FedProx, and sites that train alone."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord

from .base import DECODER, TaskStrategy
from .screening import Update
from .sites import SiteCard
from .wire import FlatArray, part_of


class TaskFedAvg(TaskStrategy):
    """FedAvg (McMahan et al., AISTATS 2017) with a denominator of its own for every part.

    The encoder is averaged over all sites, decoder *t* over the sites that hold task *t*; a decoder that nobody
    trained stays as it was. Sums run in float64 in the order of site keys, so a result does not depend on arrival.

    Args:
        weighting: how the encoder counts a site: by ``samples`` (images trained on), ``uniform``, or ``tasks`` (every
            task counts the same in total, however many samples it has: sum over tasks of the site's share of each
            task's samples). Decoders are weighted by the samples of their task, or uniformly.
        settings: see :class:`TaskStrategy`.
    """

    def __init__(self, *, weighting: Literal["samples", "uniform", "tasks"] = "samples", **settings: Any) -> None:
        super().__init__(**settings)
        self.weighting = weighting

    def begin_merge(self, arrays: ArrayRecord) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._weights: dict[str, float] = {}
        self._held: Counter[str] = Counter()  # task -> training samples of all sites
        for site in self.roster.sites:
            self._held.update({task: int(site.train_count(task)) for task in site.tasks or ()})

    def add_to_merge(self, update: Update) -> None:
        for key, values in update.arrays.items():
            weight = self._weight(update, part_of(key))
            if weight == 0:
                continue
            if key not in self._sums:
                self._sums[key] = np.zeros(values.shape, np.float64 if values.dtype.kind == "f" else values.dtype)
                self._weights[key] = 0.0
            if values.dtype.kind == "f":
                add_scaled(self._sums[key], values, weight)
            else:
                np.maximum(self._sums[key], values, out=self._sums[key])  # counters, as BatchNorm's
            self._weights[key] += weight

    def finish_merge(self) -> dict[str, np.ndarray]:
        return {
            key: (total / self._weights[key]).astype(self._arrays[key].dtype) if total.dtype.kind == "f" else total
            for key, total in self._sums.items()
        }

    def _weight(self, update: Update, part: str) -> float:
        if part.startswith(DECODER):
            samples = update.counts.get(part.removeprefix(DECODER), 0.0)
            return samples if self.weighting != "uniform" else float(samples > 0)
        if self.weighting == "samples" or not update.counts:
            return update.num_examples
        if self.weighting == "uniform":
            return float(update.num_examples > 0)
        return sum(count / max(self._held[task], count, 1.0) for task, count in update.counts.items())


def add_scaled(total: np.ndarray, values: np.ndarray, weight: float, chunk: int = 1 << 15) -> None:
    """Add ``weight * values`` to a float64 total in place, in pieces that stay in the processor's cache."""
    total, values = total.reshape(-1), values.reshape(-1)
    scratch = np.empty(min(chunk, total.size), np.float64)
    for start in range(0, total.size, chunk):
        piece = values[start : start + chunk]
        scaled = np.multiply(piece, weight, out=scratch[: piece.size], dtype=np.float64)
        total[start : start + chunk] += scaled


class TaskFedProx(TaskFedAvg):
    """FedProx (Li et al., MLSys 2020): FedAvg whose sites are held near the global weights while they train.

    A site adds ``proximal_mu / 2 * ||w - w_global||^2`` to its loss; the merge is that of :class:`TaskFedAvg`.
    """

    def __init__(self, *, proximal_mu: float = 0.01, **settings: Any) -> None:
        super().__init__(**settings)
        self.proximal_mu = proximal_mu

    def train_config(self, server_round: int, config: ConfigRecord) -> ConfigRecord:
        return ConfigRecord({**super().train_config(server_round, config), "proximal-mu": self.proximal_mu})


class Alone(TaskStrategy):
    """No federation: every site goes on from its own weights. The baseline that a federation has to beat.

    ``site_arrays`` holds each site's own record; the global arrays stay the initial ones.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.site_arrays: dict[str, ArrayRecord] = {}

    def begin_merge(self, arrays: ArrayRecord) -> None:
        pass

    def add_to_merge(self, update: Update) -> None:
        own, sent = ArrayRecord(), self._asked[update.site].content["arrays"]
        assert isinstance(sent, ArrayRecord)
        for key, array in sent.items():
            own[key] = FlatArray(update.arrays[key].copy()) if key in update.arrays else array
        self.site_arrays[update.site] = own

    def finish_merge(self) -> dict[str, np.ndarray]:
        return {}

    def arrays_for(self, site: SiteCard, arrays: ArrayRecord, tasks: Any) -> ArrayRecord:
        return self.site_arrays.get(site.key) or super().arrays_for(site, arrays, tasks)

    def models(self, arrays: ArrayRecord) -> dict[str, ArrayRecord]:
        return self.site_arrays

    def state(self) -> dict[str, ArrayRecord]:
        return self.site_arrays

    def restore(self, state: dict[str, ArrayRecord]) -> None:
        self.site_arrays = dict(state)
