"""Weighted averaging, task by task: FedAvg, FedProx, and sites that train alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord

from .agreement import split_weight
from .base import TaskStrategy
from .limits import Weighting, check_settings
from .product import add_scaled
from .sites import KEY, SiteCard
from .update import Update
from .wire import part_of, record_of, task_of


@dataclass(frozen=True)
class SiteWeights:
    """How much each site's update counts in the average of a part, by the settings of :class:`TaskFedAvg`."""

    weighting: Weighting
    task_weights: Mapping[str, float]
    task_samples: Mapping[str, int]  # training samples of each task, over all sites

    def weight(self, update: Update, part: str) -> float:
        """Return the weight of an update in a part."""
        task, samples = task_of(part), update.num_examples
        if task and update.counts:
            samples = update.counts.get(task, 0.0)
        if self.weighting == "uniform":
            return float(samples > 0)
        if task or self.weighting == "samples" or not update.counts:
            return samples
        return sum(self.by_task(update).values())

    def by_task(self, update: Update) -> dict[str, float]:
        """Return an update's weight in the shared parts, divided among the tasks of its site."""
        if self.weighting != "tasks":
            return split_weight(self.weight(update, ""), update.counts)
        return {
            task: self.task_weights.get(task, 1.0) * (count / max(self.task_samples.get(task, 0), count, 1.0))
            for task, count in update.counts.items() if count > 0
        }  # fmt: skip


class TaskFedAvg(TaskStrategy):
    """FedAvg (McMahan et al., AISTATS 2017) with a separate denominator for each part.

    The encoder is averaged over all sites, what belongs to task *t* (:func:`.wire.task_of`) over the sites that have
    *t*, and an input part (:func:`.wire.input_of`) over the sites that have such images; a part that no site trained
    stays as it was. Sums run in float64 in the order of site keys, so the result does not depend on the order of
    arrival.

    A site's metrics report its samples: ``num-examples``, and ``num-examples.TASK`` for each task. If it reports none
    by task, all its parts count by ``num-examples``.

    Args:
        weighting: how a site counts in the encoder and in input parts: by ``samples`` (images trained on), ``uniform``,
            or ``tasks`` (every task counts the same in total, however many samples it has: the sum over tasks of the
            site's share of each task's samples, as the sites reported them on joining; if no site reported any for a
            task, its sites count equally). A task's own parts are weighted by its samples, or uniformly.
        task_weights: how much a task counts in the encoder with ``weighting="tasks"``; 1 for those not named.
        settings: see :class:`TaskStrategy`.
    """

    def __init__(
        self, *, weighting: Weighting = "samples", task_weights: Mapping[str, float] | None = None, **settings: Any
    ) -> None:
        super().__init__(**settings)
        check_settings(locals())
        self.weighting: Weighting = weighting
        self.task_weights = dict(task_weights or {})
        for task, weight in self.task_weights.items():
            if not (np.isfinite(weight) and weight > 0):
                raise ValueError(f"Expected a task weight above 0 for {task}, got {weight}; leave the task out for 1.")
        self._average: WeightedAverage | None = None  # the current merge's

    def begin_merge(self, arrays: ArrayRecord) -> None:
        self._average = WeightedAverage(arrays, self.site_weights())

    def add_to_merge(self, update: Update) -> None:
        assert self._average is not None
        self._average.add(update)

    def finish_merge(self) -> dict[str, np.ndarray]:
        average = self.end_average()
        return {key: mean.astype(average.arrays[key].dtype) for key, mean in average.means()}

    def end_average(self) -> WeightedAverage:
        """Return the average of the current merge, and release it."""
        assert self._average is not None
        average, self._average = self._average, None
        return average

    def task_weights_of(self, update: Update) -> dict[str, float]:
        assert self._average is not None
        return self._average.weights.by_task(update)

    def site_weights(self) -> SiteWeights:
        """Return the weights of the updates of the current round."""
        samples: Counter[str] = Counter()
        for site in self.roster.sites:
            samples.update({task: int(site.train_count(task)) for task in site.tasks or ()})
        return SiteWeights(self.weighting, self.task_weights, samples)


@dataclass
class WeightedAverage:
    """The running weighted sums of one merge."""

    arrays: ArrayRecord  # the global arrays that the round started from
    weights: SiteWeights
    _sums: dict[str, np.ndarray] = field(default_factory=dict)
    _totals: dict[str, float] = field(default_factory=dict)

    def add(self, update: Update) -> None:
        """Add an update's arrays; integers, such as BatchNorm's counters, contribute their maximum."""
        for key, values in update.arrays.items():
            weight = self.weights.weight(update, part_of(key))
            if weight == 0:
                continue
            if key not in self._sums:
                self._sums[key] = np.zeros(values.shape) if values.dtype.kind == "f" else values.copy()
                self._totals[key] = 0.0
            if values.dtype.kind == "f":
                add_scaled(self._sums[key], values, weight)
            else:
                np.maximum(self._sums[key], values, out=self._sums[key])
            self._totals[key] += weight

    def means(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield by key the average of each array that a site trained; floats are float64.

        They come one at a time because each takes twice the memory of its weights.
        """
        for key, total in self._sums.items():
            yield key, total / self._totals[key] if total.dtype.kind == "f" else total


class TaskFedProx(TaskFedAvg):
    """FedProx (Li et al., MLSys 2020): FedAvg whose sites stay near the global weights while they train.

    A site adds ``proximal_mu / 2 * ||w - w_global||^2`` to its loss; the merge is that of :class:`TaskFedAvg`.
    """

    def __init__(self, *, proximal_mu: float = 0.01, **settings: Any) -> None:
        super().__init__(**settings)
        check_settings(locals())
        self.proximal_mu = proximal_mu

    def train_config(self, server_round: int, config: ConfigRecord) -> ConfigRecord:
        return ConfigRecord({**super().train_config(server_round, config), "proximal-mu": self.proximal_mu})


class Alone(TaskStrategy):
    """No federation: every site continues from its own weights. The baseline that a federation has to beat.

    ``site_arrays`` contains each site's own record, with the parts that it can use; the global arrays stay the initial
    ones, from which a site starts in a part that is new to it.
    """

    is_federated: ClassVar[bool] = False

    @classmethod
    def title(cls) -> str:
        return "Each hospital alone"

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.site_arrays: dict[str, ArrayRecord] = {}

    def begin_merge(self, arrays: ArrayRecord) -> None:
        pass

    def add_to_merge(self, update: Update) -> None:
        site = self.roster.by_key(update.site)
        # All tasks of the site, not only those sent: a task that is no longer trained keeps its decoder.
        earlier = self.arrays_for(site, self.phase.arrays, site.tasks)
        trained = {key: values.copy() for key, values in update.arrays.items()}
        self.site_arrays[update.site] = record_of({key: trained.get(key, array) for key, array in earlier.items()})

    def finish_merge(self) -> dict[str, np.ndarray]:
        return {}

    def arrays_for(self, site: SiteCard, arrays: ArrayRecord, tasks: Any) -> ArrayRecord:
        own: Mapping[str, Array] = self.site_arrays.get(site.key, {})
        return super().arrays_for(site, record_of({key: own.get(key, array) for key, array in arrays.items()}), tasks)

    def trained_models(self, arrays: ArrayRecord) -> dict[str, ArrayRecord]:
        return self.site_arrays

    def state(self) -> dict[str, ArrayRecord]:
        return super().state() | self.site_arrays

    def restore(self, state: dict[str, ArrayRecord]) -> None:
        super().restore(state)
        self.site_arrays = {group: record for group, record in state.items() if KEY.fullmatch(group)}
