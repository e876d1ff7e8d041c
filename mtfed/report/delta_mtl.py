"""Delta_MTL: the gain of training tasks together over training each by itself, in percent."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from statistics import fmean

from ..errors import MtfedError
from ..tasks import specs

TaskValues = Mapping[str, Mapping[str, float]]  # task -> metric -> value


def delta_mtl(multi: TaskValues, single: TaskValues, lower_is_better: Collection[str] | None = None) -> float:
    """Return the mean relative gain of a multi-task model over single-task models, in percent; above 0 is better.

    ``100 / T sum_t 1 / M_t sum_m (-1)^l (multi_tm - single_tm) / single_tm`` over T tasks with M_t metrics each, where
    l is 1 for a metric that is better when lower (Maninis, Radosavovic, Kokkinos, CVPR 2019, Eq. 4; over the metrics of
    a task first, as Vandenhende et al., TPAMI 2021, Eq. 10).

    Args:
        multi: metrics of the multi-task model; all of its tasks and metrics count.
        single: metrics of models trained on a single task each, with at least the same tasks and metrics.
        lower_is_better: names of metrics that are errors; by default, as their specs say.

    Raises:
        MtfedError: if there is nothing to compare, a task or metric has no single-task value, or a relative change is
            undefined because a value is not finite or a single-task value is not above 0.

    >>> delta_mtl({"lungs": {"dice": 0.75}, "age": {"mae": 9.0}}, {"lungs": {"dice": 0.5}, "age": {"mae": 12.0}})
    37.5
    """
    if not multi or not all(multi.values()):
        raise MtfedError("Delta_MTL: expected at least one metric for every task, got none; compare finished runs.")
    is_error = specs.lower_is_better if lower_is_better is None else lower_is_better.__contains__
    gains = []
    for task, metrics in multi.items():
        if task not in single:
            raise MtfedError(
                f"Delta_MTL: expected a single-task figure for {task!r}, got {', '.join(single) or 'none'}; "
                "train this task by itself too."
            )
        changes = {metric: _relative_change(task, metric, value, single[task]) for metric, value in metrics.items()}
        gains.append(fmean((-1 if is_error(metric) else 1) * change for metric, change in changes.items()))
    return 100 * fmean(gains)


def _relative_change(task: str, metric: str, value: float, single: Mapping[str, float]) -> float:
    if metric not in single:
        raise MtfedError(
            f"Delta_MTL: expected a single-task {metric!r} for {task!r}, got {', '.join(single) or 'none'}; "
            "use the same metrics for both models."
        )
    before = single[metric]
    if not (math.isfinite(value) and math.isfinite(before) and before > 0):
        raise MtfedError(
            f"Delta_MTL: expected finite values of {metric!r} of {task!r}, the single-task one above 0, got {value:g} "
            f"after {before:g}; leave this metric out."
        )
    return (value - before) / before
