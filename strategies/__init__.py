"""Strategies for Flower: task-aware merging of models whose sites hold different tasks.

Needs flwr, numpy and scipy only; nothing here imports torch or the rest of mtfed.
"""

from .adaptive import TaskFedAdam, TaskFedYogi
from .averaging import Alone, TaskFedAvg, TaskFedProx
from .base import TaskStrategy
from .bayesian import BayesianMatching
from .local_norms import TaskFedBN
from .screening import Failure, Update
from .sites import FederationError, SiteCard

STRATEGIES: dict[str, type[TaskStrategy]] = {
    "bayesian": BayesianMatching,
    "fedavg": TaskFedAvg,
    "fedprox": TaskFedProx,
    "fedadam": TaskFedAdam,
    "fedyogi": TaskFedYogi,
    "fedbn": TaskFedBN,
    "alone": Alone,
}

__all__ = [
    "STRATEGIES",
    "Alone",
    "BayesianMatching",
    "Failure",
    "FederationError",
    "SiteCard",
    "TaskFedAdam",
    "TaskFedAvg",
    "TaskFedBN",
    "TaskFedProx",
    "TaskFedYogi",
    "TaskStrategy",
    "Update",
]
