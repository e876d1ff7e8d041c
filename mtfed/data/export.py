"""Write a simulated federation as site folders, such as real hospitals have, to try a real deployment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..config import Config
from ..errors import MtfedError
from .federation import TEST_FOLDER, simulated_site, test_data
from .manifest import write_site


def export_sample(config: Config, sites: int, target: Path) -> Iterator[tuple[Path, int]]:
    """Write every simulated site and the test images to a folder; yield each site's folder and number of images."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        problem = "holds files" if target.is_dir() else "is a file"
        raise MtfedError(f"Expected an empty or new folder to export to, {target} {problem}; name another.")
    parts = [simulated_site(config, index, sites) for index in range(sites)]
    test = test_data(config)
    for name, data in [*((part.key, part) for part in parts), *([(TEST_FOLDER, test)] if test is not None else [])]:
        write_site(data, target / name, config.tasks)
        yield target / name, len(data.rows)
