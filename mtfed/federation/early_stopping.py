"""Which round was best, and when to stop: for the whole model, or for each task by itself."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class EarlyStopping:
    """The state of model choice and early stopping. It goes by validation figures, never by test images.

    ``scores`` are oriented so that up is better. The model's score is the mean over its tasks; a round that lacks the
    figure of a task which an earlier one had, as the sites that could tell it failed, is not compared with others. With
    ``per_task`` a task that has stopped stays so, whatever its figure does while the others go on.
    """

    patience: int
    per_task: bool
    best_round: int = 0
    best: float = -math.inf
    stale: int = 0
    task_best: dict[str, float] = field(default_factory=dict)
    task_stale: dict[str, int] = field(default_factory=dict)

    def update(self, server_round: int, scores: dict[str, float]) -> bool:
        """Take in a round's scores; say whether the model is the best so far."""
        scores = {task: score for task, score in scores.items() if math.isfinite(score)}
        if scores.keys() > self.task_best.keys():
            self.best = -math.inf  # a mean over fewer tasks
        for task, score in scores.items():
            better = score > self.task_best.get(task, -math.inf)
            self.task_best[task] = max(score, self.task_best.get(task, -math.inf))
            if not self._stopped(task):
                self.task_stale[task] = 0 if better else self.task_stale.get(task, 0) + 1
        if not scores or scores.keys() < self.task_best.keys():
            return False
        score = sum(scores.values()) / len(scores)
        if better := score > self.best:
            self.best, self.best_round = score, server_round
        self.stale = 0 if better else self.stale + 1
        return better

    def active(self, tasks: list[str]) -> list[str]:
        """Return the tasks that are still worth training."""
        if not self.patience:
            return tasks
        if self.per_task:
            return [task for task in tasks if not self._stopped(task)]
        return tasks if self.stale < self.patience else []

    def _stopped(self, task: str) -> bool:
        return bool(self.patience) and self.per_task and self.task_stale.get(task, 0) >= self.patience

    def dump(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return asdict(self) | {"best": self.best if math.isfinite(self.best) else None}

    def restore(self, state: dict[str, Any]) -> None:
        """Take the state back; patience itself stays as configured."""
        for name in ("best_round", "stale", "task_best", "task_stale"):
            setattr(self, name, state[name])
        self.best = -math.inf if state["best"] is None else state["best"]
