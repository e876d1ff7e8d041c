"""Weighted averaging, task by task: FedAvg, FedProx, and sites that train alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord

from .base import TaskStrategy
from .merging import add_scaled
from .screening import Update
from .settings import Weighting, check_settings
from .sites import KEY, SiteCard
from .wire import FlatArray, part_of, task_of


class TaskFedAvg(TaskStrategy):
    """FedAvg (McMahan et al., AISTATS 2017) with a denominator of its own for every part.

    The encoder is averaged over all sites, what belongs to task *t* (:func:`.wire.task_of`) over the sites that hold
    *t*; a part that nobody trained stays as it was. Sums run in float64 in the order of site keys, so a result does
    not depend on arrival.

    A site's metrics tell its samples: ``num-examples``, and ``num-examples.TASK`` of each task. Where it tells none by
    task, all its parts count by ``num-examples``.

    Args:
        weighting: how the encoder counts a site: by ``samples`` (images trained on), ``uniform``, or ``tasks`` (every
            task counts the same in total, however many samples it has: sum over tasks of the site's share of each
            task's samples, of those that the sites told on joining; holders of a task of which none was told count
            alike). A task's own parts are weighted by its samples, or uniformly.
        task_weights: how much a task counts in the encoder with ``weighting="tasks"``; 1 for those not named.
        settings: see :class:`TaskStrategy`.
    """

    def __init__(
        self,
        *,
        weighting: Weighting = "samples",
        task_weights: Mapping[str, float] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        check_settings(weighting=weighting)
        self.weighting = weighting
        self.task_weights = dict(task_weights or {})
        for task, weight in self.task_weights.items():
            if not (np.isfinite(weight) and weight > 0):
                raise ValueError(f"Expected a task weight above 0 for {task}, got {weight}; leave the task out for 1.")

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
                self._sums[key] = np.zeros(values.shape) if values.dtype.kind == "f" else values.copy()
                self._weights[key] = 0.0
            if values.dtype.kind == "f":
                add_scaled(self._sums[key], values, weight)
            else:
                np.maximum(self._sums[key], values, out=self._sums[key])  # counters, as BatchNorm's
            self._weights[key] += weight

    def finish_merge(self) -> dict[str, np.ndarray]:
        return {key: average.astype(self._arrays[key].dtype) for key, average in self._averages()}

    def _averages(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield, by key, the averages of what somebody trained, floats still in float64.

        One at a time: each takes twice the memory of its weights.
        """
        for key, total in self._sums.items():
            yield key, total / self._weights[key] if total.dtype.kind == "f" else total

    def _weight(self, update: Update, part: str) -> float:
        task, samples = task_of(part), update.num_examples
        if task and update.counts:
            samples = update.counts.get(task, 0.0)
        if self.weighting == "uniform":
            return float(samples > 0)
        if task or self.weighting == "samples" or not update.counts:
            return samples
        return sum(
            self.task_weights.get(task, 1.0) * (count / max(self._held[task], count, 1.0))
            for task, count in update.counts.items()
        )


class TaskFedProx(TaskFedAvg):
    """FedProx (Li et al., MLSys 2020): FedAvg whose sites are held near the global weights while they train.

    A site adds ``proximal_mu / 2 * ||w - w_global||^2`` to its loss; the merge is that of :class:`TaskFedAvg`.
    """

    def __init__(self, *, proximal_mu: float = 0.01, **settings: Any) -> None:
        super().__init__(**settings)
        check_settings(proximal_mu=proximal_mu)
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
        own, site = ArrayRecord(), self.roster.by_node(self._asked[update.site].metadata.dst_node_id)
        assert site is not None
        for key, array in self.arrays_for(site, self._arrays, site.tasks).items():  # of tasks that have stopped, too
            own[key] = FlatArray(update.arrays[key].copy()) if key in update.arrays else array
        self.site_arrays[update.site] = own

    def finish_merge(self) -> dict[str, np.ndarray]:
        return {}

    def arrays_for(self, site: SiteCard, arrays: ArrayRecord, tasks: Any) -> ArrayRecord:
        return super().arrays_for(site, self.site_arrays.get(site.key, arrays), tasks)

    def models(self, arrays: ArrayRecord) -> dict[str, ArrayRecord]:
        return self.site_arrays

    def state(self) -> dict[str, ArrayRecord]:
        return super().state() | self.site_arrays

    def restore(self, state: dict[str, ArrayRecord]) -> None:
        super().restore(state)
        self.site_arrays = {group: record for group, record in state.items() if KEY.fullmatch(group)}
