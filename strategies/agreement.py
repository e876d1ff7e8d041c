"""The agreement of the tasks: whether they move the shared weights in the same direction, layer by layer.

A site's update is what it returns minus what it was sent. Sites with the same tasks form a group, and the update of
task t is

    u_t = sum over groups of (share of t in the group's samples) * (sum over its sites of weight * update)

with the weights that sites have in the merge. The figure of two tasks is the cosine of their updates: for each shared
part, each layer and over all. Below 0 the tasks interfere: a step that helps one undoes a part of the other's.

A site with both tasks sends one update for the two. In u_a and u_b it would be the same term, and raise their cosine
whatever the tasks are. Therefore u_a is taken over the sites that have a and not b, and u_b over those that have b and
not a; if either has no site, there is no figure. Two limits remain. A third task that the sites of both have raises
their cosine. And sites that do not start from the weights they were sent have no meaningful update.

If sites sent their precision, a second figure has the merged precision P of the weights as metric,
sum_k P_k u_a,k u_b,k: weights that no task needs then do not count. BatchNorm's statistics and integers are left out of
both figures, and so are layers that only one of the tasks moved.

Large tensors are sampled (:mod:`.shared_sample`). The memory is one sample for every set of tasks that sites have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations

import numpy as np
from flwr.app import ArrayRecord

from .shared_sample import SharedSample
from .wire import TensorEntry

DIGITS = 4
Figures = dict[str, dict[str, float]]  # "task, task" -> "all", part or layer -> cosine


@dataclass
class _Group:
    """The sites with the same tasks: the weighted sum of their updates, and the weights by task."""

    update: np.ndarray
    weights: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def share(self, task: str) -> float:
        return self.weights[task] / sum(self.weights.values())


class Agreement:
    """The updates of one merge by task, added site by site.

    Args:
        arrays: the global arrays that the round starts from.
        all_tasks: the tasks of all sites, if they are known; a site that has all of them belongs to no pair.
    """

    def __init__(self, arrays: ArrayRecord, all_tasks: frozenset[str] | None = None) -> None:
        self.arrays = arrays
        self.all_tasks = all_tasks
        self._groups: dict[frozenset[str], _Group] = {}

    def add(self, weights: Mapping[str, float], arrays: Mapping[str, np.ndarray], sent: ArrayRecord) -> None:
        """Add a site's arrays by key.

        Args:
            weights: how much the site counts for each of its tasks.
            arrays: what it returned, by key.
            sent: what it was sent.
        """
        if not self._is_needed(weights):
            return
        group, weight = self._group(weights), sum(weights.values())
        for run in self._sample.runs:
            if run.key in arrays:
                start = self._start[run.place]
                if sent[run.key] is not self.arrays[run.key]:
                    start = run.read(sent[run.key].numpy())
                self._add_step(group.update[run.place], run.read(arrays[run.key]), start, weight)

    def add_tensors(
        self,
        weights: Mapping[str, float],
        tensors: Mapping[str, np.ndarray],
        layout: Mapping[str, Sequence[TensorEntry]],
        *,
        are_steps: bool = False,
    ) -> None:
        """Add a site's tensors in the global model's order of units, under the names of ``layout``.

        With ``are_steps`` they are what the site added to the weights, otherwise the weights.
        """
        if not self._is_needed(weights):
            return
        group, weight = self._group(weights), sum(weights.values())
        for sampled in self._sample.tensors:
            if (tensor := tensors.get(layout[sampled.key][sampled.index].name)) is not None:
                start = None if are_steps else self._start[sampled.place]
                self._add_step(group.update[sampled.place], sampled.read_tensor(tensor), start, weight)

    def finish(self, precision: Mapping[str, np.ndarray]) -> tuple[Figures, Figures]:
        """Return the cosine of every pair of tasks, and the same weighted by precision; release the updates.

        Args:
            precision: that of the merged weights by key; arrays without it are left out of the second figure.
        """
        cosines, weighted = self._cosines(None), self._cosines(precision) if precision else {}
        self._groups.clear()
        return cosines, weighted

    def _is_needed(self, weights: Mapping[str, float]) -> bool:
        return bool(weights) and weights.keys() != self.all_tasks and self._sample.size > 0

    def _group(self, weights: Mapping[str, float]) -> _Group:
        """Return the group of a site, with the site's weights added."""
        if (group := self._groups.get(frozenset(weights))) is None:
            group = self._groups[frozenset(weights)] = _Group(np.zeros(self._sample.size, np.float32))
        for task, weight in weights.items():
            group.weights[task] += weight
        return group

    def _add_step(self, total: np.ndarray, own: np.ndarray, start: np.ndarray | None, weight: float) -> None:
        """Add ``weight * (own - start)`` to a flat total in place."""
        step = self._scratch[: total.size].reshape(own.shape)
        if start is None:
            np.copyto(step, own, casting="same_kind")
        else:
            np.subtract(own, start.reshape(own.shape), out=step, casting="same_kind", dtype=self._start.dtype)
        step *= np.float32(weight)
        total += step.reshape(-1)

    def _cosines(self, precision: Mapping[str, np.ndarray] | None) -> Figures:
        tasks = sorted({task for tasks in self._groups for task in tasks})
        pairs = [(a, b, self._shares(a, b), self._shares(b, a)) for a, b in combinations(tasks, 2)]
        pairs = [(a, b, own, other) for a, b, own, other in pairs if own.any() and other.any()]
        if not pairs:
            return {}
        members, products = self._members(), self._inner_products(precision)
        figures: Figures = {}
        for a, b, own, other in pairs:
            inner, squares, other_squares = (
                np.einsum("lgh,g,h->l", products, left, right)
                for left, right in ((own, other), (own, own), (other, other))
            )
            moved = (squares > 0) & (other_squares > 0)
            figures[f"{a}, {b}"] = {
                name: round(_cosine(inner[chosen], squares[chosen], other_squares[chosen]), DIGITS)
                for name, is_member in members.items() if (chosen := moved & is_member).any()
            }  # fmt: skip
        return {pair: own for pair, own in figures.items() if own}

    def _shares(self, task: str, other: str) -> np.ndarray:
        """Return how much of each group's update is a task's; of a group with the other task, nothing is."""
        groups = self._groups.items()
        return np.array([own.share(task) if task in tasks and other not in tasks else 0.0 for tasks, own in groups])

    def _members(self) -> dict[str, np.ndarray]:
        """Return by the name of each figure which layers it is over."""
        layers = self._sample.layers
        names = ["all", *(part for part, _ in layers if part), *(name for _, name in layers)]
        return {name: np.array([name in ("all", *layer) for layer in layers]) for name in dict.fromkeys(names)}

    def _inner_products(self, precision: Mapping[str, np.ndarray] | None) -> np.ndarray:
        """Return (layers, groups, groups) the inner products of the groups' updates."""
        index = {layer: i for i, layer in enumerate(self._sample.layers)}
        products = np.zeros((len(index), len(self._groups), len(self._groups)))
        for tensor in self._sample.tensors:
            if precision is not None and tensor.key not in precision:
                continue
            steps = np.stack([group.update[tensor.place] for group in self._groups.values()]).astype(np.float64)
            metric: float | np.ndarray = tensor.factor
            if precision is not None:
                metric = tensor.factor * tensor.read(precision[tensor.key]).reshape(-1)
            products[index[tensor.part, tensor.layer]] += (steps * metric) @ steps.T
        return products

    @cached_property
    def _sample(self) -> SharedSample:
        return SharedSample(self.arrays)

    @cached_property
    def _scratch(self) -> np.ndarray:
        return np.empty(max((run.place.stop - run.place.start for run in self._sample.runs), default=0), np.float32)

    @cached_property
    def _start(self) -> np.ndarray:
        return self._sample.values(self.arrays)


def split_weight(weight: float, counts: Mapping[str, float]) -> dict[str, float]:
    """Return a site's weight divided among its tasks by their samples."""
    total = sum(counts.values())
    return {task: weight * (count / total) for task, count in counts.items() if count > 0}


def _cosine(inner: np.ndarray, squares: np.ndarray, other_squares: np.ndarray) -> float:
    return float(np.clip(inner.sum() / np.sqrt(squares.sum() * other_squares.sum()), -1.0, 1.0))
