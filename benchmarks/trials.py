"""One run of a comparison: found again by its name and settings, or made."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from mtfed.config import RunConfigValue, read_config
from mtfed.federation.app_folder import find_app
from mtfed.record.run import Run

HOME = Path(__file__).parents[1] / "experiments"


def run_of(
    experiment: str, name: str, settings: Mapping[str, RunConfigValue], seed: int, runs: Path, collect: bool = False
) -> Run | None:
    """Return the finished run of an experiment with these settings.

    Args:
        experiment: folder of :data:`HOME`
        name: of the run, and so of its folder
        settings: what differs from the experiment's own
        runs: folder of the run folders
        collect: return nothing instead of starting a run that is not there

    """
    settings = {**settings, "name": name}
    wanted = read_config(
        find_app(experiment).run_config | settings | {"seed": seed, "out": str(runs), "share-tracebacks": True}
    )
    for path in sorted(runs.glob(f"{name}-2*/summary.json")):
        if (run := Run.open(path.parent)).config() == wanted:
            return run
    if collect:
        return None
    command = [sys.executable, "-m", "mtfed.cli", "simulate", str(HOME / experiment), "--workers", "1"]
    command += ["--out", str(runs), "--seed", str(seed)]
    command += [word for key, value in settings.items() for word in ("-c", f"{key}={toml(value)}")]
    told = subprocess.run(command, capture_output=True, text=True)
    if told.returncode:
        sys.exit(f"{name} failed:\n{told.stdout[-2000:]}{told.stderr[-2000:]}")
    return Run.open(max(runs.glob(f"{name}-2*/summary.json")).parent)


def toml(value: RunConfigValue) -> str:
    """Return a value as the command line reads it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
