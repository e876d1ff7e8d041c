"""Strategies for Flower: task-aware merging of models whose sites hold different tasks.

Needs flwr, numpy and scipy only; nothing here imports torch or the rest of mtfed.
"""

from .adaptive import TaskFedAdam, TaskFedYogi
from .averaging import Alone, TaskFedAvg, TaskFedProx
from .base import TaskStrategy
from .bayesian import BayesianMatching
from .growing import GrowingMatching
from .local_norms import TaskFedBN
from .published import FisherMerging, Fola, Pfnm, Rebasin
from .screening import Failure, Update
from .sites import FederationError, SiteCard

STRATEGIES: dict[str, type[TaskStrategy]] = {
    "bayesian": BayesianMatching,
    "growing": GrowingMatching,
    "fedavg": TaskFedAvg,
    "fedprox": TaskFedProx,
    "fedadam": TaskFedAdam,
    "fedyogi": TaskFedYogi,
    "fedbn": TaskFedBN,
    "fisher": FisherMerging,
    "fola": Fola,
    "rebasin": Rebasin,
    "pfnm": Pfnm,
    "alone": Alone,
}

__all__ = [
    "STRATEGIES",
    "Alone",
    "BayesianMatching",
    "Failure",
    "FederationError",
    "FisherMerging",
    "Fola",
    "GrowingMatching",
    "Pfnm",
    "Rebasin",
    "SiteCard",
    "TaskFedAdam",
    "TaskFedAvg",
    "TaskFedBN",
    "TaskFedProx",
    "TaskFedYogi",
    "TaskStrategy",
    "Update",
]
