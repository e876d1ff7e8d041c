"""Every parameter of a strategy has a config key, whose value reaches the strategy."""

from __future__ import annotations

from operator import attrgetter

import pytest

from helpers import TASKS
from mtfed.config import Config, read_config
from mtfed.federation.strategy_settings import CONFIG_FIELDS, make_strategy, parameters
from mtfed.strategies import STRATEGIES

NOT_CONFIGURABLE = {
    "axes": "derived from the model",
    "evaluate": "mtfed's clients always have an evaluate function",
    "min_fisher": "a constant of the published method",
    "norms": "the names of normalisation layers; mtfed's models have no others",
    "sweeps": "a constant of the published method",
}
NOT_OF_A_STRATEGY = {
    "strategy": "chooses it",
    "matching": "decides whether it gets axes",
    "curvature_samples": "read by the sites",
    "apart_epochs": "read by the sites",
    "rounds": "read by the server",
}


VALUES = {  # config keys that reach strategies, with values that are not their defaults
    "fraction-train": 0.5,
    "seed": 7,
    "on-failure": "retry",
    "retries": 4,
    "quorum": 0.25,
    "max-norm-ratio": 3.0,
    "min-sites": 2,
    "join-timeout": 17.0,
    "round-timeout": 19.0,
    "weighting": "tasks",
    "task-weights": "lungs=4",
    "proximal-mu": 0.3,
    "server-learning-rate": 0.2,
    "server-beta1": 0.4,
    "server-beta2": 0.6,
    "server-tau": 0.5,
    "precision": "none",
    "precision-floor": 0.7,
    "prior-strength": 0.8,
    "cavity": 0.35,
    "start": "apart",
    "inner": "none",
    "gate": 0.01,
    "gamma": 2.0,
    "width-cap": 1.25,
    "sigma0": 3.0,
}
ATTRIBUTES = {  # parameter -> the attribute that contains it, if their names differ
    "on_failure": "policy.on_failure",
    "retries": "policy.retries",
    "quorum": "policy.quorum",
    "retry_timeout": "policy.retry_timeout",
    "max_norm_ratio": "memory.max_norm_ratio",
    "min_sites": "roster.min_sites",
    "join_timeout": "roster.join_timeout",
    "cavity": "cavities.strength",
    "start": "start_from",
}


def config_fields() -> set[str]:
    """Return the fields of the config in its sections on strategies and federation."""
    fields, section = set(), ""
    for name, field in Config.model_fields.items():
        if isinstance(extra := field.json_schema_extra, dict):
            section = str(extra["section"])
        if section in ("Strategy", "Federation"):
            fields.add(name)
    return fields


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_parameter_of_a_strategy_has_a_config_key(name: str) -> None:
    fields = {CONFIG_FIELDS.get(parameter, parameter) for parameter in parameters(STRATEGIES[name])}
    assert fields - NOT_CONFIGURABLE.keys() <= Config.model_fields.keys()


def test_every_key_about_strategies_reaches_one() -> None:
    reached = {CONFIG_FIELDS.get(name, name) for strategy in STRATEGIES.values() for name in parameters(strategy)}
    assert config_fields() - reached == set(NOT_OF_A_STRATEGY)
    assert reached >= NOT_CONFIGURABLE.keys()


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_values_of_the_config_reach_the_strategy(name: str) -> None:
    default, config = read_config(TASKS), read_config(TASKS | VALUES | {"strategy": name})
    strategy = make_strategy(config)
    for parameter in parameters(STRATEGIES[name]) - NOT_CONFIGURABLE.keys():
        field = CONFIG_FIELDS.get(parameter, parameter)
        value = getattr(config, field)
        assert value != getattr(default, field), f"{field} has its default"
        assert attrgetter(ATTRIBUTES.get(parameter, parameter))(strategy) == value, parameter
