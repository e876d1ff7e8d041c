"""Flower's flat run config: read it into a :class:`Config`, and write it back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ..errors import MtfedError, unknown
from ..tasks.task import Task
from .settings import Config

RunConfigValue = bool | int | float | str
KEYS = {str(field.alias): name for name, field in Config.model_fields.items() if name != "tasks"}  # key -> field
TASK_FIELDS = tuple(field for field in Task.model_fields if field != "name")


def read_config(run_config: Mapping[str, RunConfigValue]) -> Config:
    """Build the config from Flower's flat run config; raise :class:`MtfedError` naming the first wrong key."""
    values: dict[str, Any] = {"tasks": {}}
    # Sorted by key: not every engine keeps the order of a run config, and the data of a site depends on that of tasks.
    for key, value in sorted(run_config.items()):
        if key.startswith("task."):
            _, name, *field = key.split(".")
            if len(field) != 1 or field[0] not in TASK_FIELDS:
                raise unknown("config key", key, [f"task.{name}.{known}" for known in TASK_FIELDS])
            values["tasks"].setdefault(name, {"name": name})[field[0]] = value
        elif key not in KEYS:
            raise unknown("config key", key, KEYS)
        else:
            values[key] = value
    if not values["tasks"]:
        table = "[tool.flwr.app.config.task.NAME]"
        raise MtfedError(f"The config declares no task; add a table {table} with kind and classes.")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        path, message = first_error(error)
        key = ".".join(["task", *path[1:]] if path[0] == "tasks" else path)
        raise MtfedError(f"Config key {key}: {message}") from None


def flatten(config: Config) -> dict[str, RunConfigValue]:
    """Return the config as a flat run config that :func:`read_config` reads back to the same config."""
    flat = config.model_dump(by_alias=True, exclude={"tasks", "task_weights"})
    flat["task-weights"] = ", ".join(f"{task}={weight}" for task, weight in config.task_weights.items())
    for task in config.tasks.values():
        fields = task.model_dump(exclude={"name"})
        fields |= {"classes": ", ".join(task.classes), "metrics": ", ".join(task.metrics)}
        fields["range"] = ", ".join(repr(value).removesuffix(".0") for value in task.range)
        flat |= {f"task.{task.name}.{field}": value for field, value in fields.items()}
    return flat


def defaults() -> dict[str, RunConfigValue]:
    """Return the default of every key, in the form of a run config."""
    values = {key: Config.model_fields[name].default for key, name in KEYS.items()}
    return {key: "" if value == {} else value for key, value in values.items()}


def keys_of(section: str) -> set[str]:
    """Return the keys of a section of the settings, such as "Data" or "Model"."""
    keys, current = set(), ""
    for key, name in KEYS.items():
        extra = Config.model_fields[name].json_schema_extra
        current = str(extra["section"]) if isinstance(extra, dict) else current
        if current == section:
            keys.add(key)
    return keys


def first_error(error: ValidationError) -> tuple[list[str], str]:
    """Return the path of the first wrong value, and a sentence with what was expected and what came."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    message = message[0].lower() + message[1:]
    if message[-1] not in ".?":  # otherwise it already contains the value
        is_missing = first["type"] == "missing" or first["input"] == ()
        message += f", got {'nothing' if is_missing else repr(first['input'])}."
    return [str(step) for step in first["loc"]], message
