"""The settings of the strategies: their limits and choices, in one table that mtfed's config reads too."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from math import isfinite
from typing import Any, Literal, get_args

from .axes import Gauge

OnFailure = Literal["skip", "retry", "fail"]
Weighting = Literal["samples", "uniform", "tasks"]
PrecisionKind = Literal["fisher", "none"]
Start = Literal["common", "apart"]

# In pydantic's terms, so that a config can write Field(0.2, **LIMITS["quorum"]). All of these values are finite.
LIMITS: dict[str, dict[str, Any]] = {
    "fraction_train": {"gt": 0, "le": 1},
    "retries": {"ge": 0},
    "quorum": {"ge": 0, "le": 1},
    "max_norm_ratio": {"ge": 0},
    "min_sites": {"ge": 1},
    "proximal_mu": {"ge": 0},
    "server_learning_rate": {"gt": 0},
    "server_beta1": {"ge": 0, "lt": 1},
    "server_beta2": {"ge": 0, "lt": 1},
    "server_tau": {"gt": 0},
    "precision_floor": {"ge": 0},
    "prior_strength": {"ge": 0, "le": 1},
    "cavity": {"ge": 0},
    "gate": {"ge": 0},
    "gamma": {"gt": 0},
    "width_cap": {"ge": 1},
    "sigma0": {"gt": 0},
    "min_fisher": {"ge": 0},
}
CHOICES: dict[str, tuple[str, ...]] = {
    "on_failure": get_args(OnFailure),
    "weighting": get_args(Weighting),
    "precision": get_args(PrecisionKind),
    "start": get_args(Start),
    "inner": get_args(Gauge),
}
WORDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}  # the keys are functions of operator


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check a constructor's arguments, its ``locals()``, against :data:`LIMITS` and :data:`CHOICES`.

    Raises:
        ValueError: naming the first setting that is out of its limits, or not one of its choices.
    """
    for name, value in settings.items():
        if value not in CHOICES.get(name, [value]):
            raise ValueError(f"Expected {name} to be one of {', '.join(CHOICES[name])}, got {value!r}.")
        if (limits := LIMITS.get(name)) is None:
            continue
        if not (isfinite(value) and all(getattr(operator, word)(value, limit) for word, limit in limits.items())):
            allowed = " and ".join(f"{WORDS[word]} {limit:g}" for word, limit in limits.items())
            raise ValueError(f"Expected {name} to be a finite number that is {allowed}, got {value}.")


def with_fixed(strategy: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings and those that a strategy has in ``fixed``; raise ``TypeError`` if the user set one of these."""
    if clash := sorted(strategy.fixed.keys() & settings.keys()):
        raise TypeError(f"{type(strategy).__name__} fixes {', '.join(clash)}; leave it out.")
    return {**strategy.fixed, **settings}
