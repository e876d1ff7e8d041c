"""Limits and choices of the strategies' settings, and the registry."""

from __future__ import annotations

from typing import Any

import pytest

from mtfed.federation.strategy_settings import parameters
from mtfed.strategies import (
    STRATEGIES,
    Alone,
    BayesianMatching,
    TaskFedAdam,
    TaskFedAvg,
    TaskFedProx,
    register_strategy,
)
from mtfed.strategies.limits import CHOICES, LIMITS, check_settings


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"fraction_train": 0}, "Expected fraction_train to be a finite number that is above 0 and at most 1, got 0."),
        (
            {"fraction_train": 1.1},
            "Expected fraction_train to be a finite number that is above 0 and at most 1, got 1.1.",
        ),
        ({"quorum": -0.5}, "Expected quorum to be a finite number that is at least 0 and at most 1, got -0.5."),
        ({"on_failure": "stop"}, "Expected on_failure to be one of skip, retry, fail, got 'stop'."),
        ({"weighting": "sample"}, "Expected weighting to be one of samples, uniform, tasks, got 'sample'."),
        ({"proximal_mu": float("inf")}, "Expected proximal_mu to be a finite number that is at least 0, got inf."),
        ({"server_beta1": 1.0}, "Expected server_beta1 to be a finite number that is at least 0 and below 1, got 1.0."),
        ({"server_tau": float("nan")}, "Expected server_tau to be a finite number that is above 0, got nan."),
        ({"precision_floor": -0.1}, "Expected precision_floor to be a finite number that is at least 0, got -0.1."),
        (
            {"precision_floor": float("nan")},
            "Expected precision_floor to be a finite number that is at least 0, got nan.",
        ),
        (
            {"precision_floor": float("inf")},
            "Expected precision_floor to be a finite number that is at least 0, got inf.",
        ),
        (
            {"prior_strength": 1.1},
            "Expected prior_strength to be a finite number that is at least 0 and at most 1, got 1.1.",
        ),
        ({"gate": -1e-9}, "Expected gate to be a finite number that is at least 0, got -1e-09."),
        ({"start": "appart"}, "Expected start to be one of common, apart, got 'appart'."),
        ({"inner": "GL"}, "Expected inner to be one of none, orth, gl, got 'GL'."),
        ({"precision": "fischer"}, "Expected precision to be one of fisher, none, got 'fischer'."),
    ],
)
def test_a_setting_out_of_its_limits_is_named(settings: dict[str, Any], sentence: str) -> None:
    (name,) = settings
    strategy = next(
        strategy_class
        for strategy_class in (TaskFedProx, TaskFedAdam, BayesianMatching)
        if name in parameters(strategy_class)
    )
    with pytest.raises(ValueError) as error:
        strategy(**settings)
    assert str(error.value) == sentence


def test_limits_are_inclusive_where_they_say_so() -> None:
    check_settings(
        {"fraction_train": 1, "quorum": 0, "prior_strength": 1.0, "server_beta2": 0.0, "min_sites": 1, "retries": 0}
    )


def test_every_row_of_the_tables_is_a_setting_of_a_strategy() -> None:
    names = set().union(*(parameters(strategy) for strategy in STRATEGIES.values()))
    assert LIMITS.keys() | CHOICES.keys() <= names


def test_a_strategy_from_outside_gets_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Median(TaskFedAvg):
        """Merge by the median."""

    monkeypatch.delitem(STRATEGIES, "median", raising=False)
    monkeypatch.setitem(STRATEGIES, "median", Alone)  # removed again after the test
    del STRATEGIES["median"]
    register_strategy("median", Median)
    assert STRATEGIES["median"] is Median
    with pytest.raises(ValueError, match="Expected a new name for Median, got 'alone', which is Alone; choose another"):
        register_strategy("alone", Median)
