"""What a round adds to the record: lines of ``metrics.jsonl`` and of ``rounds.jsonl``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message

from ..config import Config
from ..strategies import Failure
from ..strategies.agreement import Figures
from ..strategies.wire import array_bytes
from .evaluation import MetricValues


@dataclass
class Traffic:
    """The bytes of arrays in a round's training messages and in the replies."""

    down: int = 0
    up: int = 0

    def sent(self, messages: Iterable[Message]) -> None:
        """Count the messages that go to the sites."""
        self.down += sum(array_bytes(message.content) for message in messages)

    def received(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Pass on the replies, and count each."""
        for reply in replies:
            self.up += array_bytes(reply.content) if reply.has_content() else 0
            yield reply


@dataclass
class RoundRecord:
    """Everything that is recorded of one round; filled in as the round goes on."""

    server_round: int
    learning_rate: float
    traffic: Traffic = field(default_factory=Traffic)
    asked: int = 0  # sites, to train
    answered: int = 0  # sites whose update was merged
    failures: list[Failure] = field(default_factory=list)
    trained: Mapping[str, Any] = field(default_factory=dict)  # the sites' training metrics, added up
    agreement: Figures = field(default_factory=dict)  # of the tasks' updates (:mod:`mtfed.strategies.agreement`)
    weighted_agreement: Figures = field(default_factory=dict)  # the same, weighted by precision
    validation: MetricValues = field(default_factory=dict)
    test: MetricValues = field(default_factory=dict)
    train_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def losses(self) -> dict[str, float]:
        """Return each task's mean training loss from the sites' sums."""
        sums = {name: value for name, value in self.trained.items() if isinstance(value, (int, float))}  # not lists
        counts = {name.removeprefix("seen."): count for name, count in sums.items() if name.startswith("seen.")}
        return {task: sums.get(f"loss-sum.{task}", math.nan) / count for task, count in counts.items() if count}

    def metric_lines(self, config: Config) -> list[dict[str, Any]]:
        """Return the lines of ``metrics.jsonl``, one for each task."""
        losses = self.losses
        return [
            {
                "round": self.server_round,
                "task": task,
                "strategy": config.strategy,
                "loss": losses.get(task),
                "samples": self.trained.get(f"num-examples.{task}"),
                "validation": self.validation.get(task, {}),
                "test": self.test.get(task, {}),
            }
            for task in config.tasks
        ]

    def round_line(self) -> dict[str, Any]:
        """Return the line of ``rounds.jsonl``; it contains the agreement of the tasks if there are two to compare."""
        figures = {"agreement": self.agreement, "weighted_agreement": self.weighted_agreement}
        return {
            "round": self.server_round,
            "seconds": self.seconds,
            "train_seconds": self.train_seconds,
            "asked": self.asked,
            "answered": self.answered,
            "steps": self.trained.get("steps", 0),
            "bytes_down": self.traffic.down,
            "bytes_up": self.traffic.up,
            "learning_rate": self.learning_rate,
            "merge": {k.removeprefix("merge."): v for k, v in self.trained.items() if k.startswith("merge.")},
            **{name: own for name, own in figures.items() if own},
            "failures": [vars(failure) for failure in self.failures],
        }
