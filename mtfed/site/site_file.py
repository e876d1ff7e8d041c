"""The site file: what a site says of itself, once, in ``site.toml`` beside its manifest.

::

    key = "st-mary"
    modality = "chest X-ray"
    share-class-counts = false

    [task.lungs]
    kind = "segmentation"
    classes = "background, lung"

The client reads key, modality and what is shared, of which its node config may say otherwise. The tasks are for ``mtfed
site check``; a run has its own, in its config.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import MtfedError, unknown
from ..tasks.task import Task

SITE_FILE = "site.toml"
KEYS: dict[str, type] = {
    "key": str,
    "modality": str,
    "share-class-counts": bool,
    "share-tracebacks": bool,
    "dimensions": int,
    "task": dict,
}
DEFAULTS = ("modality", "share-class-counts", "share-tracebacks")  # that a node config may say otherwise of


@dataclass(frozen=True)
class SiteFile:
    """What a site file holds; of what it does not say there is nothing."""

    key: str = ""
    dimensions: int = 2
    tasks: dict[str, Task] = field(default_factory=dict)
    settings: dict[str, bool | str] = field(default_factory=dict)  # those of DEFAULTS


def read_site_file(path: Path) -> SiteFile:
    """Read a site file; raise :class:`MtfedError` naming file and key of the first fault."""
    try:
        held = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MtfedError(f"{path} is not valid TOML: {error}.") from None
    except OSError as error:
        raise MtfedError(f"Cannot read {path}: {error.strerror}.") from None
    for key, value in held.items():
        if key not in KEYS:
            raise unknown(f"key of {path}", key, KEYS)
        if type(value) is not KEYS[key]:
            raise MtfedError(f"{path}: {key} should be {_WORDS[KEYS[key]]}, it is {value!r}.")
    if held.get("key") == "":
        raise MtfedError(f"{path}: key should be the site's name in the federation, it is empty.")
    if (dimensions := held.get("dimensions", 2)) not in (2, 3):
        raise MtfedError(f"{path}: dimensions should be 2 for pictures or 3 for volumes, it is {dimensions}.")
    tasks = {name: _task(path, name, table) for name, table in held.get("task", {}).items()}
    settings = {key: held[key] for key in DEFAULTS if held.get(key, "") != ""}
    return SiteFile(held.get("key", ""), dimensions, tasks, settings)


_WORDS = {str: "a text in quotes", bool: "true or false", int: "a whole number", dict: "a table"}


def _task(path: Path, name: str, table: Any) -> Task:
    if not isinstance(table, dict):
        raise MtfedError(f"{path}: task.{name} should be a table [task.{name}] with kind and classes, it is {table!r}.")
    for key in table:
        if key not in Task.model_fields or key == "name":
            fields = [known for known in Task.model_fields if known != "name"]
            raise unknown(f"key of {path}", f"task.{name}.{key}", [f"task.{name}.{known}" for known in fields])
    try:
        return Task.model_validate(table | {"name": name})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["task", name, *(str(step) for step in first["loc"])])
        message = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        told = f"{path}: {key}: {message[0].lower()}{message[1:]}"
        if told[-1] not in ".?":
            told += (
                f", got {'nothing' if first['type'] == 'missing' or first['input'] == () else repr(first['input'])}."
            )
        raise MtfedError(told) from None
