"""The data of a simulated federation: one set that is divided, or folders of sites.

The config's ``data`` is ``sample`` (the set inside the package), a folder or zip with a manifest of its own (one set),
a folder whose subfolders have manifests (one per site, and ``test`` for the server), or several site folders with
commas between them. Rows of the split ``test`` are the server's test images, unless there is a folder ``test``; all
others are divided among the sites, or belong to the site of the folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path

from ..config import Config
from ..errors import MtfedError
from .every_image import keep_dimensions, label_every_image
from .feature_shift import Scanner, site_shift
from .manifest import NO_CELLS, Row, SiteData, read_site, write_site
from .manifest_table import MANIFEST_NAMES, has_manifest
from .partition import Division, Options, hold_out, partition, sites_without_labels, withhold_labels
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
            raise MtfedError(f"Config key pooled: a pooled federation is one site, got {sites}; omit --num-supernodes.")
        return label_every_image(_all_sites(config), config)
    data = _simulated_site(config, index, sites)
    return label_every_image(replace(data, scanners=site_shift(config, data.key)), config)


def site_folder(folder: Path, key: str, config: Config, site_cells: Mapping[str, str] = NO_CELLS) -> SiteData:
    """Return the data of a real site's own folder; ``site_cells`` are as for :func:`.manifest.read_site`."""
    if config.pooled:
        raise MtfedError(
            f"Config key pooled: site {key} is not simulated, and its images cannot leave it; set pooled = false."
        )
    return label_every_image(_site_folder(folder, key, config, site_cells), config)


def division(config: Config, sites: int) -> Division | None:
    """Return how the config's data is divided among sites; ``None`` if the data is a folder of site folders."""
    return _divide(config, sites) if set_path(config.data) else None


def test_data(config: Config) -> SiteData | None:
    """Return the server's test images, which no site trains on; ``None`` if the data has none."""
    if whole := _whole_set(config):
        test = whole.part("test")
    elif has_manifest(folder := Path(config.data) / TEST_FOLDER):
        test = read_site(folder, TEST_FOLDER, list(config.labelled_tasks))
    elif any(map(has_manifest, _find_site_folders(config.data))):
        test = replace(_all_sites(config), key=TEST_FOLDER, scanners=None).part("test")
    else:  # the server of real hospitals has none of their folders
        return None
    return label_every_image(test, config) if test.rows else None


def export_sample(config: Config, sites: int, target: Path) -> Iterator[tuple[Path, int]]:
    """Write every simulated site and the test images as folders, such as real hospitals have; yield folder and images.

    Real deployments can be tried with them.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        problem = "holds files" if target.is_dir() else "is a file"
        raise MtfedError(f"Expected an empty or new folder to export to, {target} {problem}; name another.")
    parts = [simulated_site(config, index, sites) for index in range(sites)]
    folders = {part.key: part for part in parts} | ({TEST_FOLDER: test} if (test := test_data(config)) else {})
    for name, data in folders.items():
        write_site(data, target / name, config.tasks)
        yield target / name, len(data.rows)


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


@lru_cache(maxsize=4)
def _default_data_sites(config: Config) -> int:
    if set_path(config.data) is None:
        return len(_site_folders(config.data))
    return default_sites_of_set(_rows_to_divide(config), config.labelled_tasks, _options(config))


@lru_cache(maxsize=4)
def _all_sites(config: Config) -> SiteData:
    """Return the rows of all sites that the data makes by default, each in the split that it has at its site.

    Two hospitals may use the same patient numbers and file names, so patients, and files of site folders, are prefixed
    with the site. Each image keeps the scanner of its site.
    """
    rows: list[Row] = []
    scanners: dict[int, Scanner] = {}
    whole, count = _whole_set(config), _default_data_sites(config)
    root = whole.root if whole else Root(_common_folder(config.data))
    in_files = {name for name, task in config.tasks.items() if task.spec.in_files}
    for data in (_simulated_site(config, index, count) for index in range(count)):
        prefix = "" if whole else f"{data.root.path.resolve().relative_to(root.path).as_posix()}/"
        scanner = site_shift(config, data.key)
        for row in data.rows:
            labels = {task: prefix + cell if task in in_files else cell for task, cell in row.labels.items()}
            patient, number = f"{data.key}/{row.patient}", row.number if whole else len(rows)
            rows.append(replace(row, image=prefix + row.image, patient=patient, labels=labels, number=number))
            if scanner:
                scanners[number] = scanner
    pool, cells = (whole.pool, whole.site_cells) if whole else (tuple(rows), NO_CELLS)
    return SiteData(POOLED, root, tuple(rows), pool, scanners or None, cells)


def _simulated_site(config: Config, index: int, sites: int) -> SiteData:
    """Return the data of a simulated site, without the labels that the config withholds."""
    data = _whole_site(config, index, sites)
    if index in unlabelled_sites(config, sites):
        rows = tuple(row if row.split == "test" else replace(row, labels={}) for row in data.rows)
    elif config.label_share == 1:
        return data
    else:
        seed = f"{config.partition_seed}/labels/{data.key}"
        rows = withhold_labels(data.rows, config.tasks, config.label_share, seed)
    return replace(data, rows=keep_dimensions(data.rows, rows, config))


@lru_cache(maxsize=4)
def unlabelled_sites(config: Config, sites: int) -> frozenset[int]:
    """Return the indices of the simulated sites whose labels are withheld."""
    if not config.unlabelled:
        return frozenset()
    parts = [_whole_site(config, index, sites).part("train") for index in range(sites)]
    tasks = [frozenset(task for row in part.rows for task in row.labels) for part in parts]
    return sites_without_labels(tasks, config.unlabelled, config.partition_seed)


def _whole_site(config: Config, index: int, sites: int) -> SiteData:
    if whole := _whole_set(config):
        divided = _divide(config, sites)
        rows = divided.parts[index]
        if len(config.forms) > 1:  # the site may have images, but not the labels that tell their dimensions
            rows = keep_dimensions([whole.rows[row.number] for row in rows], rows, config)
        return with_validation(replace(whole, key=divided.names[index], rows=rows), config)
    folders = _site_folders(config.data)
    if sites > len(folders):
        raise MtfedError(f"Expected at most {len(folders)} sites, one for each folder in {config.data}, got {sites}.")
    return _site_folder(folders[index], folders[index].name, config)


def _site_folder(folder: Path, key: str, config: Config, site_cells: Mapping[str, str] = NO_CELLS) -> SiteData:
    return with_validation(read_site(folder, key, list(config.labelled_tasks), site_cells), config)


def _whole_set(config: Config) -> SiteData | None:
    path = set_path(config.data)
    return _read_set(path, tuple(config.labelled_tasks)) if path else None


@lru_cache(maxsize=4)
def _read_set(path: Path, tasks: tuple[str, ...]) -> SiteData:
    return read_site(path, SAMPLE if path == sample_path() else path.stem, list(tasks))


@lru_cache(maxsize=4)
def _divide(config: Config, sites: int) -> Division:
    return partition(_rows_to_divide(config), config.labelled_tasks, sites, _options(config))


def _rows_to_divide(config: Config) -> tuple[Row, ...]:
    whole = _whole_set(config)
    return tuple(row for row in whole.rows if row.split != "test") if whole else ()


def _options(config: Config) -> Options:
    column, seed, flower = config.partition_column, config.partition_seed, config.partition_options
    return Options(config.partition, config.partition_alpha, column, seed, flower, bool(config.pretext_tasks))


@lru_cache(maxsize=4)
def _site_folders(data: str) -> list[Path]:
    folders = _find_site_folders(data)
    if not folders:
        raise MtfedError(
            f"Config key data: expected 'sample', a folder of site folders (each with a {MANIFEST_NAMES}), several "
            "site folders with commas, or a folder or zip with a manifest of its own, a set to divide; got "
            f"{data!r}; an experiment's README, or experiments/README.md, explains how its data are made, and "
            "`mtfed data list` lists the sets that can be prepared by name."
        )
    names = [folder.name for folder in folders]
    for folder in folders:
        if not has_manifest(folder):
            problem = f"expected folders with a {MANIFEST_NAMES}, {folder} has none"
            raise MtfedError(f"Config key data: {problem}; prepare it, or leave it out.")
        if names.count(folder.name) > 1:
            raise MtfedError(f"Config key data: two site folders are called {folder.name}; rename one of them.")
    return folders


def _find_site_folders(data: str) -> list[Path]:
    """Return the folders that ``data`` lists, or the site folders in the folder that it names."""
    if "," in data and not Path(data).exists():
        return [Path(name.strip()) for name in data.split(",") if name.strip()]
    paths = sorted(Path(data).glob("*")) if Path(data).is_dir() else []
    return [path for path in paths if path.is_dir() and path.name != TEST_FOLDER and has_manifest(path)]


def _common_folder(data: str) -> Path:
    """Return the folder that contains all site folders."""
    parents = {str(folder.resolve().parent) for folder in _site_folders(data)}
    return Path(os.path.commonpath(sorted(parents)))
