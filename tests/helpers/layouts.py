"""Public data sets in their official form, each with a few drawn files, and how to prepare and read them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from helpers import colour_layouts, image_layouts, volume_layouts
from helpers.drawings import SIDE
from mtfed.config import Config, read_config
from mtfed.data.loading import load_shard
from mtfed.data.manifest import SiteData, read_site
from mtfed.data.sets import find_set
from mtfed.data.sets.prepare import prepare
from mtfed.data.shard import Shard
from mtfed.federation.app_folder import read_app

# Functions that lay a set out in a folder, by the set's name.
LAYOUTS: dict[str, Callable[[Path], None]] = image_layouts.LAYOUTS | colour_layouts.LAYOUTS | volume_layouts.LAYOUTS


def prepared(name: str, folder: Path, lay_out: Callable[[Path], None] | None = None) -> tuple[Config, SiteData]:
    """Lay a set out and prepare it; return the config of the app that is written next to it, and the site's rows."""
    folder.mkdir(parents=True, exist_ok=True)
    (lay_out or LAYOUTS[name])(folder)
    prepare(find_set(name), folder)
    return opened(name, folder)


def opened(name: str, folder: Path, side: int = SIDE) -> tuple[Config, SiteData]:
    """Return the config of the app next to a prepared set, and its rows."""
    config = read_config(read_app(folder / "experiment").run_config | {"image-size": side})
    return config, read_site(folder, name, list(config.tasks))


def shards(config: Config, data: SiteData) -> dict[str, Shard]:
    """Read every image and label as training does, and check that all labels of every task are read."""
    by_split = {split: load_shard(data.part(split), config) for split in ("train", "val", "test")}
    assert sum(map(len, by_split.values())) == sum(bool(row.labels) for row in data.rows) > 0
    for task in config.tasks:
        assert sum(shard.count(task) for shard in by_split.values()) == data.count(task) > 0, task
    return by_split


def rows_by_image(folder: Path) -> dict[str, dict[str, str]]:
    """Return the rows of a manifest by the file name of the image."""
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as file:
        return {Path(row["image"]).name: row for row in csv.DictReader(file)}
