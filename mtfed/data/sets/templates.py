"""Texts of the files that are written for prepared data sets: site files, and Flower apps that train on them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..vocabulary import BODY_PART, MODALITY
from .dataset import DataSet, Setting

VOLUME_SETTINGS: dict[str, Setting] = {"encoder": "swin3d_mini", "image-size": 32, "decoder-width": 16, "batch-size": 4}
NO_COMMENTS: Mapping[str, str] = {}
APP_TEMPLATE = """\
# A Flower app, written by `mtfed data {action}`. It contains settings only; the code is the installed mtfed.
[project]
name = "mtfed-{name}"
version = "0.1.0"
description = {title}
dependencies = ["mtfed[simulate]"]

[tool.flwr.app]
publisher = "mtfed"

[tool.flwr.app.components]
serverapp = "mtfed.server:app"
clientapp = "mtfed.clients.app:app"

# What differs from the defaults; `mtfed config` lists all keys.
[tool.flwr.app.config]
{settings}
"""


def render_site_file(dataset: DataSet) -> str:
    """Return the text of a set's site file."""
    settings: dict[str, Setting] = {
        "key": dataset.name,
        MODALITY: dataset.modality, BODY_PART: dataset.body_part, "dimensions": dataset.dimensions,
        "share-class-counts": False, "share-tracebacks": False,
    }  # fmt: skip
    return _toml(settings) + "".join(f"\n[task.{name}]\n{_toml(task)}" for name, task in dataset.tasks.items())


def render_app_file(dataset: DataSet, folder: Path, has_sites: bool) -> str:
    """Return the text of an app's ``pyproject.toml``; ``has_sites`` means that the site of every image is known."""
    settings: dict[str, Setting] = {
        "name": dataset.name, "data": str(folder.resolve()),
        "dimensions": dataset.dimensions, "channels": dataset.channels,
        **({"partition": "column", "partition-column": "site"} if has_sites else {}),
        **(VOLUME_SETTINGS if dataset.dimensions == 3 else {}),
        **dataset.settings,
    }  # fmt: skip
    return render_app(f"get {dataset.name}", dataset.title, settings, dataset.tasks)


def render_app(
    action: str, title: str, settings: Mapping[str, Setting], tasks: Mapping[str, Mapping[str, Setting]],
    comments: Mapping[str, str] = NO_COMMENTS,
) -> str:  # fmt: skip
    """Return the text of the ``pyproject.toml`` of an app that ``mtfed data ACTION`` writes.

    Args:
        action: the action with its main argument, such as "get busi".
        title: one line about the app.
        settings: keys of the run config, among them the name.
        tasks: tables of the tasks, by name.
        comments: comments at the ends of lines, by key of the settings.
    """
    tables = [f"\n[tool.flwr.app.config.task.{name}]\n{_toml(task)}" for name, task in tasks.items()]
    text = (_toml(settings, comments) + "".join(tables)).rstrip("\n")
    return APP_TEMPLATE.format(action=action, name=settings["name"], title=json.dumps(title), settings=text)


def _toml(table: Mapping[str, Setting], comments: Mapping[str, str] = NO_COMMENTS) -> str:
    # Texts, numbers and booleans in JSON are valid TOML.
    ends = {key: f"  # {comments[key]}" if key in comments else "" for key in table}
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}{ends[key]}\n" for key, value in table.items())
