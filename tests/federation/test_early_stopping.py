"""Which round is the best, and when training stops."""

from __future__ import annotations

import math

import pytest

from mtfed.federation.early_stopping import EarlyStopping

A, B = "lungs", "pneumonia"
CASES = [  # patience, per task, and for each round: its scores, whether it is the best, the tasks still trained
    (2, False, [({A: 0.5}, True, [A, B]), ({A: 0.5}, False, [A, B]), ({A: 0.5}, False, [])]),
    (2, False, [({A: 0.8, B: 0.6}, True, [A, B]), ({A: 0.9}, False, [A, B]), ({A: 0.8, B: 0.65}, True, [A, B])]),
    (1, False, [({A: 0.9}, True, [A, B]), ({A: 0.8, B: 0.2}, True, [A, B]), ({A: 0.8, B: 0.1}, False, [])]),
    (1, False, [({A: math.nan}, False, [A, B]), ({}, False, [A, B]), ({A: 0.1}, True, [A, B])]),
    (2, True, [({A: 0.5, B: 0.5}, True, [A, B]), ({A: 0.5, B: 0.6}, True, [A, B]), ({A: 0.5, B: 0.7}, True, [B])]),
    (1, True, [({A: 0.5, B: 0.5}, True, [A, B]), ({A: 0.5, B: 0.6}, True, [B]), ({A: 0.9, B: 0.7}, True, [B])]),
    (0, False, [({A: 0.5}, True, [A, B]), ({A: 0.4}, False, [A, B]), ({A: 0.4}, False, [A, B])]),
]


@pytest.mark.parametrize(("patience", "per_task", "rounds"), CASES)
def test_the_best_round_and_the_active_tasks(patience: int, per_task: bool, rounds: list) -> None:
    state = EarlyStopping(patience, per_task)
    for number, (scores, best, active) in enumerate(rounds, 1):
        assert state.update(number, scores) == best
        assert state.active([A, B]) == active
        again = EarlyStopping(patience, per_task)
        again.restore(state.dump())
        assert again == state
