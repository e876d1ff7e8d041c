"""Comparisons between groups of runs that several sections of the report need."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..tasks.task import Task
from .metric_format import gain
from .records import Group, differing, mean, split_of

SINGLE_TASK = "single-task"  # the model that shares nothing between tasks


def headline_group(groups: Sequence[Group]) -> Group:
    """Return the group that the headline is about: finished, federated, one model, most tasks, best on validation.

    Groups are ranked by validation figures, as rounds are chosen. Ranking by test figures would flatter the winner.
    """

    def rank(group: Group) -> tuple[bool, bool, bool, int, int, float]:
        tasks = group.runs[0].config.tasks
        scores = [task.score(mean(group.values(name, "validation", task.metric))) for name, task in tasks.items()]
        known = [score for score in scores if math.isfinite(score)]
        best = mean(known) if known else -math.inf
        return group.finished, not group.alone, not has_model_per_task(group), len(tasks), len(known), best

    return max(groups, key=rank)


def has_model_per_task(group: Group) -> bool:
    """Return whether each of several tasks has a model of its own."""
    config = group.runs[0].config
    return config.model == SINGLE_TASK and len(config.tasks) > 1


def nearest_finished(group: Group, others: Sequence[Group]) -> Group | None:
    """Return the finished one of some groups whose settings are closest to those of ``group``, if any."""
    finished = [other for other in others if other.finished]
    return min(finished, key=lambda other: len(differing([group.runs[0], other.runs[0]])), default=None)


def untrained_values(task: str, metric: str, group: Group, groups: Sequence[Group]) -> list[float]:
    """Return a metric of the model before training: of ``group`` if it recorded one, otherwise of all groups."""
    all_values = (value for other in groups for value in other.values(task, "untrained", metric))
    return group.values(task, "untrained", metric) or list(all_values)


def gain_over_alone(task: Task, group: Group, groups: Sequence[Group]) -> float:
    """Return by how much ``group`` is better than the mean of the sites training alone; NaN if there are none.

    Also NaN if there are no test images: sites that train alone validate on their own images only, which is easier.
    """
    alone, split = nearest_finished(group, [g for g in groups if g.alone]), split_of(task, groups)
    if alone is None or group.alone or split != "test":
        return math.nan
    together, by_itself = (mean(other.values(task.name, split, task.metric)) for other in (group, alone))
    return gain(together, by_itself, task.metric)
