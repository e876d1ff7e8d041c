"""No parameter of a strategy is left at its default in silence, and no config key is without effect."""

from __future__ import annotations

import pytest

from mtfed.config import Config
from mtfed.federation.strategy_settings import CONFIG_FIELDS, parameters
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
    reached = {CONFIG_FIELDS.get(name, name) for kind in STRATEGIES.values() for name in parameters(kind)}
    assert config_fields() - reached == set(NOT_OF_A_STRATEGY)
    assert reached >= NOT_CONFIGURABLE.keys()
