"""Losses of earlier rounds in a training message, for balancing rules that use them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from .balancing import BALANCING

PREFIX = "losses."  # of a task's history in a message


def write_history(
    balancing: str, lines: Callable[[], Iterable[Mapping[str, object]]], tasks: Sequence[str]
) -> dict[str, list[float]]:
    """Return the settings of a training message that hold earlier losses; empty if the rule does not use them.

    They are computed from the record, so a resumed run sends the same history as an uninterrupted one.

    Args:
        balancing: name of the rule.
        lines: returns the lines of the record's ``metrics.jsonl``, ordered by round.
        tasks: that are still trained.
    """
    if not BALANCING[balancing].uses_history:
        return {}
    losses: dict[str, list[float]] = {}
    for line in lines():
        task, loss = str(line["task"]), line.get("loss")
        if task in tasks and isinstance(loss, float) and math.isfinite(loss):
            losses.setdefault(task, []).append(loss)
    return {PREFIX + task: [*values[:1], *values[1:][-2:]] for task, values in losses.items()}


def read_history(settings: Mapping[str, object]) -> dict[str, list[float]]:
    """Return the losses of earlier rounds in a training message, by task."""
    return {
        key.removeprefix(PREFIX): [float(loss) for loss in values]
        for key, values in settings.items()
        if key.startswith(PREFIX) and isinstance(values, Sequence)
    }
