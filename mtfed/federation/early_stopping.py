"""Choice of the best round, and early stopping: of the whole model, or of each task separately."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class EarlyStopping:
    """State of the choice of a round and of early stopping. Both use validation metrics, never test images.

    Higher scores are better. The score of a round is the mean over tasks. A round without the score of a task that an
    earlier round had (the sites that measure it may have failed) is not compared with others. With ``per_task``, a task
    that has stopped is not resumed, whatever its score does while the other tasks are trained.
    """

    patience: int  # evaluations without improvement before stopping; 0: never
    per_task: bool
    best_round: int = 0
    best: float = -math.inf
    stale: int = 0  # evaluations since the best one
    task_best: dict[str, float] = field(default_factory=dict)
    task_stale: dict[str, int] = field(default_factory=dict)

    def update(self, server_round: int, scores: dict[str, float]) -> bool:
        """Add a round's scores and return whether it is the best so far."""
        scores = {task: score for task, score in scores.items() if math.isfinite(score)}
        if scores.keys() > self.task_best.keys():
            self.best = -math.inf  # it was a mean over fewer tasks
        for task, score in scores.items():
            is_better = score > self.task_best.get(task, -math.inf)
            self.task_best[task] = max(score, self.task_best.get(task, -math.inf))
            if not self._has_stopped(task):
                self.task_stale[task] = 0 if is_better else self.task_stale.get(task, 0) + 1
        if not scores or scores.keys() < self.task_best.keys():
            return False
        score = sum(scores.values()) / len(scores)
        if is_better := score > self.best:
            self.best, self.best_round = score, server_round
        self.stale = 0 if is_better else self.stale + 1
        return is_better

    def active(self, tasks: list[str]) -> list[str]:
        """Return the tasks that have not stopped."""
        if not self.patience:
            return tasks
        if self.per_task:
            return [task for task in tasks if not self._has_stopped(task)]
        return tasks if self.stale < self.patience else []

    def _has_stopped(self, task: str) -> bool:
        return bool(self.patience) and self.per_task and self.task_stale.get(task, 0) >= self.patience

    def dump(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return asdict(self) | {"best": self.best if math.isfinite(self.best) else None}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint; ``patience`` and ``per_task`` stay as configured."""
        for name in ("best_round", "stale", "task_best", "task_stale"):
            setattr(self, name, state[name])
        self.best = -math.inf if state["best"] is None else state["best"]
