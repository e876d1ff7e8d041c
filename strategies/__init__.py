"""Strategies for Flower: task-aware merging of models whose sites have different tasks.

Needs only flwr, numpy and scipy; nothing in this package imports torch or the rest of mtfed.
"""

from .adaptive import TaskFedAdam, TaskFedYogi
from .averaging import Alone, TaskFedAvg, TaskFedProx
from .base import TaskStrategy
from .bayesian import BayesianMatching
from .growing import GrowingMatching
from .local_norms import TaskFedBN
from .phase import Failure, RoundResult
from .published import FisherMerging, Fola, Pfnm, Rebasin
from .registry import STRATEGIES, register_strategy
from .sites import FederationError, SiteCard
from .update import Update

__all__ = [
    "STRATEGIES", "Alone", "BayesianMatching", "Failure", "FederationError", "FisherMerging", "Fola", "GrowingMatching",
    "Pfnm", "Rebasin", "RoundResult", "SiteCard", "TaskFedAdam", "TaskFedAvg", "TaskFedBN", "TaskFedProx",
    "TaskFedYogi", "TaskStrategy", "Update", "register_strategy",
]  # fmt: skip
