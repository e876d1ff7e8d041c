"""Strategies for Flower: task-aware merging of models whose sites hold different tasks.

Needs flwr, numpy and scipy only; nothing here imports torch or the rest of mtfed.
"""

from .averaging import Alone, TaskFedAvg, TaskFedProx
from .base import Failure, TaskStrategy
from .screening import Update
from .sites import FederationError, SiteCard

STRATEGIES: dict[str, type[TaskStrategy]] = {"fedavg": TaskFedAvg, "fedprox": TaskFedProx, "alone": Alone}

__all__ = [
    "STRATEGIES",
    "Alone",
    "Failure",
    "FederationError",
    "SiteCard",
    "TaskFedAvg",
    "TaskFedProx",
    "TaskStrategy",
    "Update",
]
