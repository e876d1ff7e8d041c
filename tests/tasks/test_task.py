"""Declarations of tasks, and that every name in the table of kinds is implemented."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from mtfed.config import flatten, read_config
from mtfed.learning.metrics import TaskMetrics
from mtfed.models.decoders import DECODERS
from mtfed.tasks.kind import kind_of
from mtfed.tasks.specs import KIND_SPECS
from mtfed.tasks.task import Task


def task(kind: str, **fields: Any) -> Task:
    ranged = {"range": "0, 80"} if KIND_SPECS[kind].has_range else {}
    return Task(**{"name": "it", "kind": kind, "classes": "a, b, c"} | ranged | fields)


@pytest.mark.parametrize("kind", KIND_SPECS)
def test_every_name_of_a_kind_is_implemented(kind: str) -> None:
    declared, done = KIND_SPECS[kind], kind_of(task(kind))
    assert set(done.losses) == set(declared.losses)
    assert set(done.metrics) == set(declared.metrics)
    assert set(DECODERS[kind]) == set(declared.decoders)
    assert bool(done.class_of) == declared.by_class


@pytest.mark.parametrize(
    ("loss", "terms"),
    [
        ("", ((1.0, "dice"), (1.0, "cross-entropy"))),
        ("focal", ((1.0, "focal"),)),
        ("dice + 0.5*cross-entropy", ((1.0, "dice"), (0.5, "cross-entropy"))),
        (" 2 * dice+.25*focal ", ((2.0, "dice"), (0.25, "focal"))),
    ],
)
def test_a_loss_is_a_sum_of_terms(loss: str, terms: tuple[tuple[float, str], ...]) -> None:
    assert task("segmentation", loss=loss).terms == terms


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("classification", {"classes": "only"}, "classes of a classification task must be 2 or more different names"),
        ("segmentation", {"classes": "a, b, a"}, "2 or more different names"),
        ("segmentation", {"loss": "dicee"}, "Unknown loss term of a segmentation task 'dicee'; did you mean 'dice'"),
        ("classification", {"loss": "dice"}, "expected one of: cross-entropy, focal"),
        ("segmentation", {"loss": "dice + "}, "loss must be a sum of terms"),
        ("segmentation", {"loss": "dice - focal"}, "loss must be a sum of terms"),
        ("segmentation", {"metrics": "dise"}, "Unknown metric of a segmentation task 'dise'; did you mean 'dice'"),
        ("regression", {"metrics": "r2, dice"}, "Unknown metric of a regression task 'dice'"),
        ("segmentation", {"decoder": "unett"}, "did you mean 'unet'"),
        ("regression", {"range": ""}, "range of a regression task must be its lowest and highest value"),
        ("regression", {"range": "8, 0"}, "range of a regression task must be its lowest and highest value"),
        ("regression", {"range": "0, 1, 2"}, "range of a regression task must be its lowest and highest value"),
        ("dose", {"range": "0, much"}, "valid number"),
        ("dose", {"range": "0, inf"}, "finite number"),
        ("segmentation", {"loss": "0*dice + focal"}, "expected weights above 0; leave 'dice' out"),
        ("segmentation", {"loss": "dice + 0.5*dice"}, "expected each term once"),
        ("classification", {"range": "0, 1"}, "a classification task has no range"),
    ],
)
def test_an_invalid_declaration_is_refused(kind: str, fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        task(kind, **fields)


@pytest.mark.parametrize(
    ("kind", "fields", "value", "score"),
    [
        ("classification", {}, 0.9, 0.9),
        ("ordinal", {}, 0.4, 0.4),
        ("regression", {"range": "10, 30"}, 5.0, 0.75),
        ("regression", {"range": "10, 30", "metrics": "r2"}, 0.5, 0.5),
        ("regression", {"range": "10, 30", "metrics": "r2"}, -157.3, -1.0),  # R² has no lower bound
        ("dose", {}, 2.0, 0.975),
    ],
)
def test_higher_scores_are_better_for_all_tasks(kind: str, fields: dict[str, str], value: float, score: float) -> None:
    assert task(kind, **fields).score(value) == pytest.approx(score)


def test_the_first_metric_of_a_task_decides() -> None:
    named = task("ordinal", metrics="accuracy, mae")
    assert named.metrics == ("accuracy", "mae") and named.metric == "accuracy"
    assert set(TaskMetrics(named).metrics) == {"accuracy", "mae"}
    assert task("ordinal").metrics == task("ordinal").spec.metrics
    config = read_config({f"task.it.{key}": value for key, value in flatten_task(named).items()})
    assert config.tasks["it"] == named.model_copy(update={"dimensions": 2}) and read_config(flatten(config)) == config


def flatten_task(given: Task) -> dict[str, str]:
    return {"kind": given.kind, "classes": ", ".join(given.classes), "metrics": ", ".join(given.metrics)}


def test_an_error_in_classes_is_a_share_of_the_largest() -> None:
    assert task("ordinal").score(0.5, "mae") == 0.75
