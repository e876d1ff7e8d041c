"""Where a simulated federation's data comes from: one set that is divided, or a folder of site folders.

The config's ``data`` is ``sample`` (the embedded set), a folder or zip with a manifest of its own (one set), or a
folder whose folders have manifests (one a site, and ``test`` for the server). Of a set the rows of split ``test`` are
the server's test images, and all others are divided among the sites.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from ..config import Config
from ..errors import MtfedError
from ..tasks.specs import KIND_SPECS
from ..tasks.task import Task
from .feature_shift import Scanner, Scanners, site_shift
from .manifest import Row, SiteData, has_manifest, read_site
from .manifest_table import NAMES
from .partition import Division, Options, hold_out, partition
from .partition import default_sites as sites_of_set
from .root import Root

SAMPLE = "sample"  # the set inside the package
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
    data = _simulated_site(config, index, sites)
    return replace(data, scanners=site_shift(config, data.key))


def site_folder(folder: Path, key: str, config: Config) -> SiteData:
    """Return the data of a site's own folder."""
    if config.pooled:
        raise MtfedError(f"Config key pooled: site {key} is not simulated, and its images cannot leave it; set false.")
    return _site_folder(folder, key, config)


def division(config: Config, sites: int) -> Division | None:
    """Return how the config's data is divided among sites; ``None`` of site folders, which are sites already."""
    if (place := set_place(config.data)) is None:
        return None
    return _divided(place, tuple(config.tasks.values()), sites, _options(config))


def test_data(config: Config) -> SiteData | None:
    """Return the server's test images, which no site trains on; ``None`` if the data has none."""
    if place := set_place(config.data):
        test = _set(place, tuple(config.tasks)).part("test")
        return test if test.rows else None
    folder = Path(config.data) / TEST_FOLDER
    return read_site(folder, TEST_FOLDER, list(config.tasks)) if has_manifest(folder) else None


def with_validation(data: SiteData, config: Config) -> SiteData:
    """Return a site's data with some patients held out, if the manifest does not say which."""
    rows = hold_out(data.rows, config.tasks, config.validation_share, f"{config.partition_seed}/{data.key}")
    return replace(data, rows=rows)


def set_place(data: str) -> Path | None:
    """Return where the one set is that a config's ``data`` names; ``None`` if it is a folder of site folders."""
    if data == SAMPLE:
        return Path(str(files("mtfed.data.sample") / "cxr.zip"))
    path = Path(data)
    return path if has_manifest(path) else None


def _data_sites(config: Config) -> int:
    if (place := set_place(config.data)) is None:
        return len(_folders(config.data))
    return _default_sites(place, tuple(config.tasks.values()), _options(config))


def _pooled_site(config: Config) -> SiteData:
    """Return the rows of all sites that the data makes by default, each in the split that it has there.

    Two hospitals may number patients and name files alike, so a patient is named with the site, and so is a file of a
    site folder. What an image was taken with stays with it.
    """
    rows: list[Row] = []
    scanners: dict[int, Scanner] = {}
    place = set_place(config.data)
    count = _data_sites(config)
    for data in (_simulated_site(config, index, count) for index in range(count)):
        within = "" if place else f"{data.root.path.name}/"
        scanner = site_shift(config, data.key)
        for row in data.rows:
            labels = {
                task: within + label if KIND_SPECS[config.tasks[task].kind].in_files else label
                for task, label in row.labels.items()
            }
            patient, number = f"{data.key}/{row.patient}", row.number if place else len(rows)
            rows.append(replace(row, image=within + row.image, patient=patient, labels=labels, number=number))
            if scanner:
                scanners[number] = scanner
    shifted: Scanners | None = scanners or None
    if place:
        whole = _set(place, tuple(config.tasks))
        return SiteData(POOLED, whole.root, tuple(rows), whole.pool, shifted)
    return SiteData(POOLED, Root(Path(config.data)), tuple(rows), tuple(rows), shifted)


def _simulated_site(config: Config, index: int, sites: int) -> SiteData:
    if place := set_place(config.data):
        divided = _divided(place, tuple(config.tasks.values()), sites, _options(config))
        whole = _set(place, tuple(config.tasks))
        return with_validation(replace(whole, key=divided.names[index], rows=divided.parts[index]), config)
    folders = _folders(config.data)
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
def _set(place: Path, tasks: tuple[str, ...]) -> SiteData:
    return read_site(place, "sample" if place.name == "cxr.zip" else place.stem, list(tasks))


def _to_divide(place: Path, tasks: tuple[Task, ...]) -> tuple[Row, ...]:
    return tuple(row for row in _set(place, tuple(task.name for task in tasks)).rows if row.split != "test")


@lru_cache(maxsize=4)
def _divided(place: Path, tasks: tuple[Task, ...], sites: int, options: Options) -> Division:
    return partition(_to_divide(place, tasks), {task.name: task for task in tasks}, sites, options)


@lru_cache(maxsize=4)
def _default_sites(place: Path, tasks: tuple[Task, ...], options: Options) -> int:
    return sites_of_set(_to_divide(place, tasks), {task.name: task for task in tasks}, options)


@lru_cache(maxsize=4)
def _folders(data: str) -> list[Path]:
    within = sorted(Path(data).glob("*")) if Path(data).is_dir() else []
    folders = [path for path in within if path.is_dir() and path.name != TEST_FOLDER and has_manifest(path)]
    if not folders:
        raise MtfedError(
            f"Config key data: expected 'sample' or a folder of site folders (each with a {NAMES}), or a folder or zip "
            f"with one of its own, a set to divide; got {data!r}; an experiment's README, or experiments/README.md, "
            "says how its data are made, and `mtfed data list` which sets can be had by name."
        )
    return folders
