"""The data of a simulated federation: one set that is divided, or a folder of site folders.

The config's ``data`` is ``sample`` (the set inside the package), a folder or zip with a manifest of its own (one set),
or a folder whose subfolders have manifests (one per site, and ``test`` for the server). Of a set, the rows of split
``test`` are the server's test images, and all others are divided among the sites.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path

from ..config import Config
from ..errors import MtfedError
from ..tasks.task import Task
from .feature_shift import Scanner, Scanners, site_shift
from .manifest import Row, SiteData, has_manifest, read_site
from .manifest_table import MANIFEST_NAMES
from .partition import Division, Options, hold_out, partition
from .partition import default_sites as default_sites_of_set
from .root import Root

SAMPLE = "sample"  # the set inside the package
TEST_FOLDER = "test"  # subfolder of a folder of site folders: the server's own test images
POOLED = "pooled"  # key of the only site of a pooled federation


def default_sites(config: Config) -> int:
    """Return how many sites the config's data makes by default."""
    return 1 if config.pooled else _default_data_sites(config)


def simulated_site(config: Config, index: int, sites: int) -> SiteData:
    """Return the data of site ``index`` of ``sites``; raise :class:`MtfedError` if the data does not suffice."""
    if config.pooled:
        if sites != 1:
            raise MtfedError(f"Config key pooled: a pooled federation is one site, got {sites}; ask for no number.")
        return _pooled_site(config)
    data = _simulated_site(config, index, sites)
    return replace(data, scanners=site_shift(config, data.key))


def site_folder(folder: Path, key: str, config: Config) -> SiteData:
    """Return the data of a real site's own folder."""
    if config.pooled:
        raise MtfedError(f"Config key pooled: site {key} is not simulated, and its images cannot leave it; set false.")
    return _site_folder(folder, key, config)


def division(config: Config, sites: int) -> Division | None:
    """Return how the config's data is divided among sites; ``None`` if the data is a folder of site folders."""
    if (path := set_path(config.data)) is None:
        return None
    return _divide(path, tuple(config.tasks.values()), sites, _options(config))


def test_data(config: Config) -> SiteData | None:
    """Return the server's test images, which no site trains on; ``None`` if the data has none."""
    if path := set_path(config.data):
        test = _read_set(path, tuple(config.tasks)).part("test")
        return test if test.rows else None
    folder = Path(config.data) / TEST_FOLDER
    return read_site(folder, TEST_FOLDER, list(config.tasks)) if has_manifest(folder) else None


def with_validation(data: SiteData, config: Config) -> SiteData:
    """Return a site's data with some patients held out for validation, unless the manifest names such patients."""
    rows = hold_out(data.rows, config.tasks, config.validation_share, f"{config.partition_seed}/{data.key}")
    return replace(data, rows=rows)


def set_path(data: str) -> Path | None:
    """Return the path of the set that a config's ``data`` names; ``None`` if it names a folder of site folders."""
    if data == SAMPLE:
        return sample_path()
    path = Path(data)
    return path if has_manifest(path) else None


@cache
def sample_path() -> Path:
    """Return the path of the set inside the package."""
    return Path(str(files("mtfed.data.sample") / "cxr.zip"))


def _default_data_sites(config: Config) -> int:
    if (path := set_path(config.data)) is None:
        return len(_site_folders(config.data))
    return _default_set_sites(path, tuple(config.tasks.values()), _options(config))


def _pooled_site(config: Config) -> SiteData:
    """Return the rows of all sites that the data makes by default, each in the split that it has at its site.

    Two hospitals may use the same patient numbers and file names, so patients, and files of site folders, are prefixed
    with the site. Each image keeps the scanner of its site.
    """
    rows: list[Row] = []
    scanners: dict[int, Scanner] = {}
    path = set_path(config.data)
    count = _default_data_sites(config)
    for data in (_simulated_site(config, index, count) for index in range(count)):
        prefix = "" if path else f"{data.root.path.name}/"
        scanner = site_shift(config, data.key)
        for row in data.rows:
            labels = {
                task: prefix + label if config.tasks[task].spec.in_files else label
                for task, label in row.labels.items()
            }
            patient, number = f"{data.key}/{row.patient}", row.number if path else len(rows)
            rows.append(replace(row, image=prefix + row.image, patient=patient, labels=labels, number=number))
            if scanner:
                scanners[number] = scanner
    site_scanners: Scanners | None = scanners or None
    if path:
        whole = _read_set(path, tuple(config.tasks))
        return SiteData(POOLED, whole.root, tuple(rows), whole.pool, site_scanners)
    return SiteData(POOLED, Root(Path(config.data)), tuple(rows), tuple(rows), site_scanners)


def _simulated_site(config: Config, index: int, sites: int) -> SiteData:
    if path := set_path(config.data):
        divided = _divide(path, tuple(config.tasks.values()), sites, _options(config))
        whole = _read_set(path, tuple(config.tasks))
        return with_validation(replace(whole, key=divided.names[index], rows=divided.parts[index]), config)
    folders = _site_folders(config.data)
    if sites > len(folders):
        raise MtfedError(
            f"Expected at most {len(folders)} sites, as {config.data} holds so many site folders, got {sites}."
        )
    return _site_folder(folders[index], folders[index].name, config)


def _site_folder(folder: Path, key: str, config: Config) -> SiteData:
    return with_validation(read_site(folder, key, list(config.tasks)), config)


def _options(config: Config) -> Options:
    return Options(
        config.partition,
        config.partition_alpha,
        config.partition_column,
        config.partition_seed,
        config.partition_options,
    )


@lru_cache(maxsize=4)
def _read_set(path: Path, tasks: tuple[str, ...]) -> SiteData:
    return read_site(path, SAMPLE if path == sample_path() else path.stem, list(tasks))


def _rows_to_divide(path: Path, tasks: tuple[Task, ...]) -> tuple[Row, ...]:
    return tuple(row for row in _read_set(path, tuple(task.name for task in tasks)).rows if row.split != "test")


@lru_cache(maxsize=4)
def _divide(path: Path, tasks: tuple[Task, ...], sites: int, options: Options) -> Division:
    return partition(_rows_to_divide(path, tasks), {task.name: task for task in tasks}, sites, options)


@lru_cache(maxsize=4)
def _default_set_sites(path: Path, tasks: tuple[Task, ...], options: Options) -> int:
    return default_sites_of_set(_rows_to_divide(path, tasks), {task.name: task for task in tasks}, options)


@lru_cache(maxsize=4)
def _site_folders(data: str) -> list[Path]:
    paths = sorted(Path(data).glob("*")) if Path(data).is_dir() else []
    folders = [path for path in paths if path.is_dir() and path.name != TEST_FOLDER and has_manifest(path)]
    if not folders:
        raise MtfedError(
            f"Config key data: expected 'sample' or a folder of site folders (each with a {MANIFEST_NAMES}), or a "
            f"folder or zip with one of its own, a set to divide; got {data!r}; an experiment's README, or "
            "experiments/README.md, says how its data are made, and `mtfed data list` which sets can be had by name."
        )
    return folders
