"""The strategies by the names that a config gives them."""

from __future__ import annotations

from .adaptive import TaskFedAdam, TaskFedYogi
from .averaging import Alone, TaskFedAvg, TaskFedProx
from .base import TaskStrategy
from .bayesian import BayesianMatching
from .growing import GrowingMatching
from .local_norms import TaskFedBN
from .published import FisherMerging, Fola, Pfnm, Rebasin

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


def register_strategy(name: str, strategy: type[TaskStrategy]) -> None:
    """Add a strategy under a name that a config can then use; raise ``ValueError`` if the name is taken."""
    if name in STRATEGIES:
        taken = f"{name!r}, which is {STRATEGIES[name].__name__}"
        raise ValueError(f"Expected a new name for {strategy.__name__}, got {taken}; choose another name.")
    STRATEGIES[name] = strategy
