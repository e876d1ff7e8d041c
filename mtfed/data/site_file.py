"""The site file, ``site.toml``: the settings of one site, stored in the site's folder next to its manifest.

::

    key = "st-mary"
    modality = "X-ray"
    body-part = "chest"
    dimensions = 2
    share-class-counts = false

    [task.lungs]
    kind = "segmentation"
    classes = "background, lung"

The client reads all keys except the tasks; its node config can override them. ``modality``, ``body-part`` and
``dimensions`` describe every image whose own cell in the manifest's column of that name is empty. The tasks are only
used by ``mtfed site check``; in a run, the tasks come from the run config.
"""

from __future__ import annotations

import json
import tomllib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..config import first_error
from ..errors import MtfedError, unknown
from ..tasks.task import Task
from .root import Root
from .vocabulary import BODY_PART, MODALITY

SITE_FILE = "site.toml"
DIMENSIONS = "dimensions"  # column of a manifest, and key of a site file and of a node config
KEYS: dict[str, type] = {
    "key": str,
    MODALITY: str,
    BODY_PART: str,
    "share-class-counts": bool,
    "share-tracebacks": bool,
    DIMENSIONS: int,
    "task": dict,
}
DEFAULTS = (MODALITY, BODY_PART, "share-class-counts", "share-tracebacks")  # a node config can override these
IMAGE_KEYS = (MODALITY, BODY_PART, DIMENSIONS)  # what every image is, unless its cell in the manifest differs
_TYPE_NAMES = {str: "a text in quotes", bool: "true or false", int: "a whole number", dict: "a table"}


@dataclass(frozen=True)
class SiteFile:
    """The content of a site file. Keys that the file does not set have the defaults below."""

    key: str = ""
    dimensions: int = 2
    tasks: dict[str, Task] = field(default_factory=dict)
    settings: dict[str, bool | str] = field(default_factory=dict)  # keys are a subset of DEFAULTS
    cells: dict[str, str] = field(default_factory=dict)  # manifest cells of all images; keys are a subset of IMAGE_KEYS


def find_site_file(root: Root) -> SiteFile:
    """Read the site file of a folder or zip; one without a site file gives the defaults.

    Raises:
        MtfedError: naming the file and the key of the first mistake.
    """
    try:
        content = root.read(SITE_FILE)
    except (FileNotFoundError, KeyError):
        return SiteFile()
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise MtfedError(f"Cannot read {root.path / SITE_FILE}: {error}; repair or remove it.") from None
    return _parse(content, root.path / SITE_FILE)


def read_site_file(path: Path) -> SiteFile:
    """Read a site file.

    Raises:
        MtfedError: naming the file and the key of the first mistake.
    """
    try:
        return _parse(path.read_bytes(), path)
    except OSError as error:
        raise MtfedError(f"Cannot read {path}: {error.strerror}.") from None


def write_site_file(path: Path, cells: Mapping[str, str]) -> None:
    """Write a site file that describes every image by its ``modality``, ``body-part`` and ``dimensions``."""
    values = {name: int(cell) if KEYS[name] is int else cell for name, cell in cells.items()}
    path.write_text(
        "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items()), "utf-8"
    )


def _parse(text: bytes, path: Path) -> SiteFile:
    """Return the content of a site file; the path is for errors."""
    try:
        content = tomllib.loads(text.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MtfedError(f"{path} is not valid TOML: {error}.") from None
    for key, value in content.items():
        if key not in KEYS:
            raise unknown(f"key of {path}", key, KEYS)
        if type(value) is not KEYS[key]:
            raise MtfedError(f"{path}: expected {key} to be {_TYPE_NAMES[KEYS[key]]}, got {value!r}.")
    if content.get("key") == "":
        raise MtfedError(f"{path}: expected key to be the site's name in the federation, got an empty text.")
    if (dimensions := content.get(DIMENSIONS, 2)) not in (2, 3):
        raise MtfedError(f"{path}: expected dimensions to be 2 (pictures) or 3 (volumes), got {dimensions}.")
    tasks = {name: _read_task(path, name, table) for name, table in content.get("task", {}).items()}
    settings = {key: content[key] for key in DEFAULTS if content.get(key, "") != ""}
    cells = {key: str(content[key]) for key in IMAGE_KEYS if content.get(key, "") != ""}
    return SiteFile(content.get("key", ""), dimensions, tasks, settings, cells)


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
