"""How much a site's update counts in the average of a part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .screening import Update
from .settings import Weighting
from .sites import SiteCard
from .wire import task_of


@dataclass(frozen=True)
class SiteWeights:
    """The weights of the sites' updates in a round, by the settings of :class:`~.averaging.TaskFedAvg`."""

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
        return sum(
            self.task_weights.get(task, 1.0) * (count / max(self.task_samples.get(task, 0), count, 1.0))
            for task, count in update.counts.items()
        )


def count_samples(sites: Iterable[SiteCard]) -> Counter[str]:
    """Return the training samples of each task, over all sites."""
    samples: Counter[str] = Counter()
    for site in sites:
        samples.update({task: int(site.train_count(task)) for task in site.tasks or ()})
    return samples
