"""Flower apps as folders: find one, read its config and components, apply overrides."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import KEYS, Config, RunConfigValue
from ..errors import MtfedError, unknown

# Where an app is searched by name: the working directory, the clone around the package, and where a wheel installs it.
_PLACES = (Path(), Path(__file__).parents[2], Path(sys.prefix) / "share/mtfed")
SEARCH_PATHS = tuple(place / "experiments" for place in _PLACES)


@dataclass(frozen=True)
class AppFolder:
    """A folder with a ``pyproject.toml`` that declares a Flower app."""

    path: Path
    components: dict[str, str]
    run_config: dict[str, RunConfigValue]

    def load(self, component: str) -> Any:
        """Import ``serverapp`` or ``clientapp``; the folder's own modules take precedence, as in Flower."""
        if str(self.path) not in sys.path:
            sys.path.insert(0, str(self.path))
        module, _, attribute = self.components[component].partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            file = self.path / "pyproject.toml"
            raise MtfedError(f"{file}: cannot load {component} {self.components[component]!r}: {error}.") from error


def find_app(name: str) -> AppFolder:
    """Return the app of a folder, given by its path or by its name under ``experiments/``."""
    for folder in (Path(name), *(place / name for place in SEARCH_PATHS)):
        if (folder / "pyproject.toml").is_file():
            return read_app(folder.resolve())
    raise unknown("app", name, {path.parent.name for place in SEARCH_PATHS for path in place.glob("*/pyproject.toml")})


def read_app(folder: Path) -> AppFolder:
    """Read an app folder's ``pyproject.toml``."""
    path = folder / "pyproject.toml"
    try:
        app = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("flwr", {}).get("app", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MtfedError(f"{path} is not valid TOML: {error}.") from None
    components = app.get("components", {})
    if {"serverapp", "clientapp"} - components.keys():
        raise MtfedError(f"{path} declares no Flower app; add [tool.flwr.app.components] with serverapp and clientapp.")
    return AppFolder(folder, components, _flatten(app.get("config", {})))


def override(run_config: dict[str, RunConfigValue], pairs: list[str]) -> dict[str, RunConfigValue]:
    """Return the config with ``key=value`` pairs applied; values are read as TOML, and bare words as strings.

    The value of a text key is a string even if it looks like a number (``name=2026``).
    """
    changed = dict(run_config)
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals:
            raise MtfedError(f"Expected -c key=value, got {pair!r}.")
        if key not in changed and key not in KEYS and not key.startswith("task."):
            raise unknown("config key", key, {*changed, *KEYS})
        value = _value(text.strip())
        is_text = key in KEYS and Config.model_fields[KEYS[key]].annotation is str
        changed[key] = text.strip() if is_text and not isinstance(value, str) else value
    return changed


def only_tasks(run_config: dict[str, RunConfigValue], names: Sequence[str]) -> dict[str, RunConfigValue]:
    """Return the config with only some of its tasks; raise :class:`MtfedError` if it does not have one of them."""
    declared = {key.split(".")[1] for key in run_config if key.startswith("task.")}
    for name in names:
        if name not in declared:
            raise unknown("task of the app", name, declared)
    return {key: v for key, v in run_config.items() if not key.startswith("task.") or key.split(".")[1] in names}


def _value(text: str) -> RunConfigValue:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, (bool, int, float, str)) else text


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, RunConfigValue]:
    flat: dict[str, RunConfigValue] = {}
    for key, value in config.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
