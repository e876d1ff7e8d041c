"""Join prepared data sets: write one app that trains one model on all of them.

Every set stays in its own folder and becomes one site of the app. A task that several sets
declare in the same way is one task, with one decoder.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config import Config, read_config
from ...errors import MtfedError
from ..manifest_table import has_manifest
from ..site_file import SITE_FILE
from .dataset import Setting
from .prepare import EXPERIMENT
from .templates import render_app

Tables = Mapping[str, Mapping[str, Setting]]
APP_FILE = "pyproject.toml"
PATCH = 8  # sides of images and volumes must be multiples of it: the side of the patches of the encoder below
MODEL: Mapping[str, Setting] = {"model": "medformer", "encoder": "vit_mini_patch8"}
VOLUMES: Mapping[str, Setting] = {"decoder-width": 24, "batch-size": 16}  # those of experiments/medformer
COMMENTS = {
    "data": "one site folder per set",
    "pooled": "all sets on one machine; false: a federation of one hospital per set",
    "sampling": "images of small sets are drawn more often than their share; 1.0: every image once in a pass",
}


@dataclass(frozen=True)
class PreparedSet:
    """A folder that ``mtfed data get`` has prepared, and the config and the task tables of its app."""

    folder: Path
    config: Config
    tables: Tables


@dataclass(frozen=True)
class Joined:
    """The app that was written: its file and config, and the names of the sets that have each task."""

    file: Path
    config: Config
    sets_by_task: Mapping[str, Sequence[str]]
    has_own_windows: bool  # the sets have different windows, none of which is in the config


def join(folders: Sequence[Path], app: Path) -> Joined:
    """Write an app that trains on several prepared sets.

    Raises:
        MtfedError: if a folder is not a prepared set, two sets have the same folder name or declare a task differently,
            or the app's folder has other content.
    """
    sets = [_read_set(folder) for folder in folders]
    _check_folders([prepared.folder for prepared in sets])
    tables, sets_by_task = _join_tasks(sets)
    windows = {prepared.config.window for prepared in sets}
    settings = _settings(app.resolve().name, sets)
    if len(windows) == 1 and windows != {""}:
        settings |= {"window": min(windows)}
    tasks = {f"task.{task}.{key}": value for task, table in tables.items() for key, value in table.items()}
    config = read_config({**settings, **tasks})
    title = f"One model for {', '.join(prepared.folder.name for prepared in sets)}"
    file = _write(app, render_app("join", title, settings, tables, COMMENTS))
    return Joined(file, config, sets_by_task, len(windows) > 1)


def _read_set(folder: Path) -> PreparedSet:
    file = folder / EXPERIMENT / APP_FILE
    missing = [path.name for path in (folder / SITE_FILE, file) if not path.is_file()]
    if missing or not has_manifest(folder):
        raise MtfedError(
            f"Expected folders that `mtfed data get` has prepared, {folder} is not one: it has no "
            f"{missing[0] if missing else 'manifest'}; prepare it, or leave it out."
        )
    try:
        settings: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MtfedError(f"Cannot read the settings in {file}: {error}; prepare the set again.") from None
    tables: Tables = settings.pop("task", {})
    tasks = {f"task.{task}.{key}": value for task, table in tables.items() for key, value in table.items()}
    try:
        return PreparedSet(folder.resolve(), read_config(settings | tasks), tables)
    except MtfedError as error:
        raise MtfedError(f"{file}: {error}") from None


def _check_folders(folders: Sequence[Path]) -> None:
    names = [folder.name for folder in folders]
    if len(folders) < 2:
        raise MtfedError(f"Expected several sets to join, got {names[0]} alone; train on it with its own experiment.")
    for folder in folders:
        if names.count(folder.name) > 1:
            raise MtfedError(f"Two of the folders are called {folder.name}; leave one out, or rename it.")
        if "," in str(folder):
            raise MtfedError(f"{folder} has a comma in its path, which separates folders in a config; move it.")


def _join_tasks(sets: Sequence[PreparedSet]) -> tuple[Tables, Mapping[str, Sequence[str]]]:
    """Return the tables of all tasks, each with its dimensions, and the names of the sets that have each task."""
    tables: dict[str, Mapping[str, Setting]] = {}
    owners: dict[str, list[PreparedSet]] = {}
    for prepared in sets:
        for name, task in prepared.config.tasks.items():
            first, *_ = owners.setdefault(name, [prepared])
            if first.config.tasks[name] != task:
                raise MtfedError(
                    f"{first.folder} and {prepared.folder} declare task {name!r} differently: "
                    f"{_difference(first, prepared, name)}; leave one of them out, or rename its task in its manifest, "
                    f"{SITE_FILE} and {EXPERIMENT}/{APP_FILE}."
                )
            if first is not prepared:
                owners[name].append(prepared)
            tables.setdefault(name, {**prepared.tables[name], "dimensions": task.dimensions})
    return tables, {name: [owner.folder.name for owner in own] for name, own in owners.items()}


def _difference(first: PreparedSet, second: PreparedSet, task: str) -> str:
    """Return the first field in which two declarations of a task differ, with both values."""
    tables = [prepared.config.tasks[task].model_dump() for prepared in (first, second)]
    field = next(field for field in tables[0] if tables[0][field] != tables[1][field])
    values = [table[field] for table in tables]
    texts = [", ".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in values]
    return f"{field} {texts[0]!r} and {texts[1]!r}"


def _settings(name: str, sets: Sequence[PreparedSet]) -> dict[str, Setting]:
    sizes: dict[int, int] = {}  # the largest side by dimensionality
    for prepared in sets:
        for form in prepared.config.forms:
            side = -(-form.size // PATCH) * PATCH
            sizes[form.dimensions] = max(side, sizes.get(form.dimensions, 0))
    return {
        "name": name, "data": ", ".join(str(prepared.folder) for prepared in sets),
        "dimensions": min(sizes), "channels": max(prepared.config.channels for prepared in sets),
        **({"image-size": sizes[2]} if 2 in sizes else {}), **({"volume-size": sizes[3]} if 3 in sizes else {}),
        "pooled": True, **MODEL, **(VOLUMES if 3 in sizes else {}), "sampling": 0.5,
    }  # fmt: skip


def _write(app: Path, text: str) -> Path:
    """Write the app's file; an app with the same text stays as it is."""
    file = app / APP_FILE
    try:
        if file.is_file() and file.read_text(encoding="utf-8") == text:
            return file
        if app.exists() and (not app.is_dir() or any(app.iterdir())):
            raise MtfedError(f"Expected --out to be a new or empty folder, {app} has other content; name another.")
        app.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MtfedError(f"Cannot write {file}: {error}; name another folder for --out.") from None
    return file
