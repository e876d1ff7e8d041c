"""The site file, ``site.toml``: the settings of one site, stored in the site's folder next to its manifest.

::

    key = "st-mary"
    modality = "chest X-ray"
    share-class-counts = false

    [task.lungs]
    kind = "segmentation"
    classes = "background, lung"

The client reads ``key``, ``modality`` and the two ``share-`` settings; its node config can override them. The tasks are
only used by ``mtfed site check``; in a run, the tasks come from the run config.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..config import first_error
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
DEFAULTS = ("modality", "share-class-counts", "share-tracebacks")  # a node config can override these
_TYPE_NAMES = {str: "a text in quotes", bool: "true or false", int: "a whole number", dict: "a table"}


@dataclass(frozen=True)
class SiteFile:
    """The content of a site file. Keys that the file does not set have the defaults below."""

    key: str = ""
    dimensions: int = 2
    tasks: dict[str, Task] = field(default_factory=dict)
    settings: dict[str, bool | str] = field(default_factory=dict)  # keys are a subset of DEFAULTS


def read_site_file(path: Path) -> SiteFile:
    """Read a site file.

    Raises:
        MtfedError: naming the file and the key of the first mistake.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MtfedError(f"{path} is not valid TOML: {error}.") from None
    except OSError as error:
        raise MtfedError(f"Cannot read {path}: {error.strerror}.") from None
    for key, value in content.items():
        if key not in KEYS:
            raise unknown(f"key of {path}", key, KEYS)
        if type(value) is not KEYS[key]:
            raise MtfedError(f"{path}: expected {key} to be {_TYPE_NAMES[KEYS[key]]}, got {value!r}.")
    if content.get("key") == "":
        raise MtfedError(f"{path}: expected key to be the site's name in the federation, got an empty text.")
    if (dimensions := content.get("dimensions", 2)) not in (2, 3):
        raise MtfedError(f"{path}: expected dimensions to be 2 (pictures) or 3 (volumes), got {dimensions}.")
    tasks = {name: _read_task(path, name, table) for name, table in content.get("task", {}).items()}
    settings = {key: content[key] for key in DEFAULTS if content.get(key, "") != ""}
    return SiteFile(content.get("key", ""), dimensions, tasks, settings)


def _read_task(path: Path, name: str, table: Any) -> Task:
    if not isinstance(table, dict):
        raise MtfedError(
            f"{path}: expected task.{name} to be a table [task.{name}] with kind and classes, got {table!r}."
        )
    for key in table:
        if key not in Task.model_fields or key == "name":
            options = [f"task.{name}.{option}" for option in Task.model_fields if option != "name"]
            raise unknown(f"key of {path}", f"task.{name}.{key}", options)
    try:
        return Task.model_validate(table | {"name": name})
    except ValidationError as error:
        steps, message = first_error(error)
        raise MtfedError(f"{path}: {'.'.join(['task', name, *steps])}: {message}") from None
