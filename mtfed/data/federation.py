"""Where a simulated federation's data comes from: the embedded sample, or a folder of site folders."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from ..config import Config
from ..errors import MtfedError
from ..tasks import KINDS, Task
from .manifest import MANIFEST, Row, SiteData, read_site
from .partition import hold_out, partition
from .root import Root

SAMPLE_SITES = 8  # hospitals that the sample makes unless told otherwise
TEST_FOLDER = "test"  # of a folder of site folders: the server's own test images
POOLED = "pooled"  # key of the one site of a pooled federation


def default_sites(config: Config) -> int:
    """Return how many sites the config's data makes by default."""
    return 1 if config.pooled else _data_sites(config)


def simulated_site(config: Config, index: int, sites: int) -> SiteData:
    """Return the data of site ``index`` of ``sites``; errors say what the data can serve."""
    if config.pooled:
        if sites != 1:
            raise MtfedError(f"Config key pooled: a pooled federation is one site, got {sites}; ask for no number.")
        return _pooled_site(config)
    return _simulated_site(config, index, sites)


def site_folder(folder: Path, key: str, config: Config) -> SiteData:
    """Return the data of a site's own folder."""
    if config.pooled:
        raise MtfedError(f"Config key pooled: site {key} is not simulated, and its images cannot leave it; set false.")
    return _site_folder(folder, key, config)


def _data_sites(config: Config) -> int:
    return SAMPLE_SITES if config.data == "sample" else len(_folders(config.data))


def _pooled_site(config: Config) -> SiteData:
    """Return the rows of all sites that the data makes by default, each in the split that it has there.

    Two hospitals may number patients and name files alike, so a patient is named with the site, and so is a file of a
    site folder.
    """
    rows: list[Row] = []
    count = _data_sites(config)
    for data in (_simulated_site(config, index, count) for index in range(count)):
        within = "" if config.data == "sample" else f"{data.root.path.name}/"
        for row in data.rows:
            labels = {
                task: within + label if KINDS[config.tasks[task].kind].in_files else label
                for task, label in row.labels.items()
            }
            patient, number = f"{data.key}/{row.patient}", row.number if config.data == "sample" else len(rows)
            rows.append(replace(row, image=within + row.image, patient=patient, labels=labels, number=number))
    if config.data == "sample":
        sample = _sample(tuple(config.tasks))
        return SiteData(POOLED, sample.root, tuple(rows), sample.pool)
    return SiteData(POOLED, Root(Path(config.data)), tuple(rows), tuple(rows))


def _simulated_site(config: Config, index: int, sites: int) -> SiteData:
    if config.data == "sample":
        parts = _sample_parts(tuple(config.tasks.values()), sites, config.partition_alpha, config.partition_seed)
        key = f"hospital-{index + 1:0{len(str(sites))}d}"
        return with_validation(replace(_sample(tuple(config.tasks)), key=key, rows=tuple(parts[index])), config)
    folders = _folders(config.data)
    if sites > len(folders):
        raise MtfedError(
            f"Expected at most {len(folders)} sites, as {config.data} holds so many site folders, got {sites}."
        )
    return _site_folder(folders[index], folders[index].name, config)


def _site_folder(folder: Path, key: str, config: Config) -> SiteData:
    return with_validation(read_site(folder, key, list(config.tasks)), config)


def with_validation(data: SiteData, config: Config) -> SiteData:
    """Return a site's data with some patients held out, if the manifest does not say which."""
    rows = hold_out(data.rows, config.tasks, config.validation_share, f"{config.partition_seed}/{data.key}")
    return replace(data, rows=rows)


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
            f"Config key data: expected 'sample' or a folder of site folders (each with a {MANIFEST}), got {data!r}; "
            "an experiment's README, or experiments/README.md, says how its data are made."
        )
    return folders
