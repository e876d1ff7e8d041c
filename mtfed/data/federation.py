"""Where a simulated federation's data comes from: the embedded sample, or a folder of site folders."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from ..config import Config
from ..errors import MtfedError
from ..tasks import Task
from .manifest import MANIFEST, Row, SiteData, read_site
from .partition import hold_out, partition

SAMPLE_SITES = 8  # hospitals that the sample makes unless told otherwise
TEST_FOLDER = "test"  # of a folder of site folders: the server's own test images


def default_sites(config: Config) -> int:
    """Return how many sites the config's data makes by default."""
    return SAMPLE_SITES if config.data == "sample" else len(_folders(config.data))


def simulated_site(config: Config, index: int, sites: int) -> SiteData:
    """Return the data of site ``index`` of ``sites``; errors say what the data can serve."""
    if config.data == "sample":
        parts = _sample_parts(tuple(config.tasks.values()), sites, config.partition_alpha, config.partition_seed)
        key = f"hospital-{index + 1:0{len(str(sites))}d}"
        return with_validation(SiteData(key, _sample(tuple(config.tasks)).root, tuple(parts[index])), config)
    folders = _folders(config.data)
    if sites > len(folders):
        raise MtfedError(
            f"Expected at most {len(folders)} sites, as {config.data} holds so many site folders, got {sites}."
        )
    return site_folder(folders[index], folders[index].name, config)


def site_folder(folder: Path, key: str, config: Config) -> SiteData:
    """Return the data of a site's own folder."""
    return with_validation(read_site(folder, key, list(config.tasks)), config)


def with_validation(data: SiteData, config: Config) -> SiteData:
    """Return a site's data with some patients held out, if the manifest does not say which."""
    rows = hold_out(data.rows, config.tasks, config.validation_share, f"{config.partition_seed}/{data.key}")
    return SiteData(data.key, data.root, rows)


def test_data(config: Config) -> SiteData | None:
    """Return the server's test images, which no site trains on; ``None`` if the data has none."""
    if config.data == "sample":
        return _sample(tuple(config.tasks)).part("test")
    folder = Path(config.data) / TEST_FOLDER
    return read_site(folder, TEST_FOLDER, list(config.tasks)) if (folder / MANIFEST).exists() else None


@lru_cache(maxsize=4)
def _sample(tasks: tuple[str, ...]) -> SiteData:
    return read_site(Path(str(files("mtfed.data.sample") / "cxr.zip")), "sample", list(tasks))


@lru_cache(maxsize=4)
def _sample_parts(tasks: tuple[Task, ...], sites: int, alpha: float, seed: int) -> list[list[Row]]:
    rows = _sample(tuple(task.name for task in tasks)).part("train").rows
    return partition(rows, {task.name: task for task in tasks}, sites, alpha, seed)


@lru_cache(maxsize=4)
def _folders(data: str) -> list[Path]:
    folders = sorted(path.parent for path in Path(data).glob(f"*/{MANIFEST}") if path.parent.name != TEST_FOLDER)
    if not folders:
        raise MtfedError(
            f"Config key data: expected 'sample' or a folder of site folders (each with a {MANIFEST}), got {data!r}."
        )
    return folders
