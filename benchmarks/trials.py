"""One run of a comparison: loaded if it exists already, otherwise started."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mtfed.config import Config, RunConfigValue, read_config
from mtfed.federation.app_folder import find_app, only_tasks
from mtfed.federation.pretrain import pretext_config
from mtfed.record.run import Run

HOME = Path(__file__).parents[1] / "experiments"
Figures = dict[str, Any]


def run_of(
    experiment: str,
    name: str,
    settings: Mapping[str, RunConfigValue],
    seed: int,
    runs: Path,
    collect: bool = False,
    tasks: Sequence[str] = (),
) -> Run | None:
    """Return the finished run of an experiment with these settings.

    Args:
        experiment: folder of :data:`HOME`.
        name: name of the run, with which its folder's name begins.
        settings: differences from the experiment's own settings.
        seed: the run's seed.
        runs: folder of the run folders.
        collect: return None instead of starting a run that does not exist.
        tasks: the experiment's tasks to train; by default all.
    """
    app = find_app(experiment).run_config
    own = only_tasks(app, tasks) if tasks else app
    expected = read_config(_of_run({**own, **settings, "name": name}, seed, runs))
    command = ["simulate", str(HOME / experiment), *(["--tasks", *tasks] if tasks else [])]
    return _run(command, {**settings, "name": name}, expected, collect)


def pretrained_run(
    experiment: str,
    name: str,
    settings: Mapping[str, RunConfigValue],
    seed: int,
    runs: Path,
    kinds: str,
    tasks: Sequence[str] = (),
) -> Run:
    """Return the finished run that pre-trains an experiment's model on a sum of task kinds without labels.

    For the other arguments see :func:`run_of`; the folder's name begins with NAME-pretrain.
    """
    app = find_app(experiment).run_config
    own = only_tasks(app, tasks) if tasks else app
    own = pretext_config({**own, **settings, "name": name}, kinds, federated=False)
    expected = read_config(_of_run(own, seed, runs))
    command = ["pretrain", str(HOME / experiment), "--kinds", kinds, *(["--tasks", *tasks] if tasks else [])]
    run = _run(command, {**settings, "name": name}, expected, False)
    assert run is not None
    return run


def _of_run(run_config: Figures, seed: int, runs: Path) -> Figures:
    return run_config | {"seed": seed, "out": str(runs), "share-tracebacks": True}


def _run(command: Sequence[str], settings: Mapping[str, RunConfigValue], expected: Config, collect: bool) -> Run | None:
    """Return the finished run with the expected config; start it by a command of mtfed if it does not exist."""
    runs = Path(expected.out)
    for path in sorted(runs.glob(f"{expected.name}-2*/summary.json")):
        if (run := Run.open(path.parent)).config() == expected:
            return run
    if collect:
        return None
    arguments = [sys.executable, "-m", "mtfed.cli", *command, "--workers", "1"]
    arguments += ["--out", str(runs), "--seed", str(expected.seed)]
    for key, value in settings.items():
        arguments += ["-c", f"{key}={str(value).lower() if isinstance(value, bool) else value}"]
    process = subprocess.run(arguments, capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"{expected.name} failed:\n{process.stdout[-2000:]}{process.stderr[-2000:]}")
    return Run.open(max(runs.glob(f"{expected.name}-2*/summary.json")).parent)


def run_parser(description: str | None, source: str) -> argparse.ArgumentParser:
    """Return a parser of the options of a comparison, whose data a module of this name has written."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"folder written by {source}")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the run folders")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser


def run_parallel(run: Callable[[Any], Figures | None], trials: Iterable[object], jobs: int) -> list[Figures]:
    """Return the figures of the trials that have any, in the order of the trials."""
    with ThreadPoolExecutor(jobs) as pool:
        return [figures for figures in pool.map(run, trials) if figures is not None]
