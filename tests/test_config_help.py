"""The descriptions of config keys and models."""

from __future__ import annotations

from helpers import TASKS
from mtfed.config import flatten, read_config
from mtfed.config.run_config import TASK_FIELDS
from mtfed.config_help import describe_keys, describe_models
from mtfed.models.specs import MODEL_SPECS


def test_every_key_is_described() -> None:
    text = describe_keys()
    assert all(key in text for key in flatten(read_config(TASKS)) if not key.startswith("task."))
    assert all(f"task.NAME.{field} " in text for field in TASK_FIELDS)


def test_every_model_is_described() -> None:
    assert [line.split()[0] for line in describe_models().splitlines()] == list(MODEL_SPECS)
