"""A client's access to its site's data: a folder of its own, or its part of a simulated federation."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

from flwr.app import Context

from mtfed.config import Config
from mtfed.data.image_kinds import image_kinds
from mtfed.data.loading import load_shard
from mtfed.data.manifest import SiteData
from mtfed.data.root import Root
from mtfed.data.shard import Shard
from mtfed.data.simulated_sites import simulated_site, site_folder
from mtfed.data.site_file import DIMENSIONS, IMAGE_KEYS, find_site_file
from mtfed.errors import MtfedError
from mtfed.models.normalisation import encoder_normalisation
from mtfed.startup import garbage_collection_paused


class Site:
    """A site's data, read on first use and kept for the next messages that this process handles."""

    def __init__(self, data: SiteData, config: Config) -> None:
        self.key = data.key
        self.data = data
        self.config = config
        self._shards: dict[str, Shard] = {}

    def shard(self, split: str) -> Shard:
        """Return the images of a split (``train`` or ``val``)."""
        if split not in self._shards:
            self._shards[split] = load_shard(self.data, self.config, split, encoder_normalisation(self.config))
        return self._shards[split]

    def tasks(self) -> list[str]:
        """Return the tasks that the site has training labels for."""
        train = self.data.part("train")
        return [task for task in self.config.tasks if train.count(task)]

    def inputs(self, trained: Collection[str] | None = None) -> set[str]:
        """Return the kinds of the site's labelled images, or only of those that it trains the given tasks on."""
        rows = [row for row in self.data.rows if row.labels]
        if trained is not None:
            rows = [row for row in rows if row.split == "train" and not row.labels.keys().isdisjoint(trained)]
        return image_kinds(rows, self.config)


def open_site(context: Context, config: Config) -> Site:
    """Return the site of a node.

    A real site's node config names its folder (``data-path``) and its key (``site``), unless that is the name of the
    folder. A simulated node's config gives its part of the data (``partition-id``, ``num-partitions``). The settings
    of the folder's ``site.toml`` are added to the node config, except those that the node config sets itself.

    Raises:
        MtfedError: if the node config names neither.
    """
    node = context.node_config
    if "data-path" in node:
        folder = Path(str(node["data-path"]))
        site_file = find_site_file(Root(folder))
        for key, value in site_file.settings.items():
            node.setdefault(key, value)
        if (dimensions := str(node.get(DIMENSIONS, ""))) not in ("", "2", "3"):
            raise MtfedError(f"Node config key dimensions: expected 2 (images) or 3 (volumes), got {dimensions!r}.")
        site_cells = tuple((key, str(node[key])) for key in IMAGE_KEYS if node.get(key, "") != "")
        return site_of_folder(folder, str(node.get("site", site_file.key or folder.resolve().name)), config, site_cells)
    if "partition-id" in node:
        return _simulated(int(node["partition-id"]), int(node["num-partitions"]), config)
    raise MtfedError(
        "Expected the node config to name the site's folder; start the node with --node-config 'data-path=\"FOLDER\"'."
    )


@lru_cache(maxsize=4096)
def _simulated(index: int, sites: int, config: Config) -> Site:
    with garbage_collection_paused():  # the rows of a manifest are many objects, none of them garbage
        return Site(simulated_site(config, index, sites), config)


@lru_cache(maxsize=8)
def site_of_folder(folder: Path, key: str, config: Config, site_cells: tuple[tuple[str, str], ...] = ()) -> Site:
    """Return the site whose data is in a folder; ``site_cells`` are what the node config gives for all images."""
    with garbage_collection_paused():
        return Site(site_folder(folder, key, config, dict(site_cells)), config)
