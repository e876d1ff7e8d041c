"""Shared by the tests: a small federation that trains in a second, and the command as users run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from mtfed.record.run import Run

ROOT = Path(__file__).parents[2]
TASKS = {
    "task.pneumonia.kind": "classification",
    "task.pneumonia.classes": "normal, pneumonia",
    "task.lungs.kind": "segmentation",
    "task.lungs.classes": "background, lung",
}
SMALL = {
    "name": "small",
    "encoder": "vit_nano_patch8",
    "image-size": 32,
    "decoder-width": 8,
    "local-steps": 1,
    "batch-size": 16,
    "rounds": 2,
    "test-every": 0,
}
SHARED = ROOT.parent / "shared"


def mtfed(
    *arguments: object, cwd: Path = ROOT, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the ``mtfed`` command as a user would."""
    command = [sys.executable, "-m", "mtfed.cli", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=timeout, env=os.environ | environment, check=False
    )


def pairs(config: dict[str, bool | int | float | str]) -> list[str]:
    """Return a config as ``-c`` arguments."""
    return [
        word
        for key, value in config.items()
        for word in ("-c", f"{key}={str(value).lower() if isinstance(value, bool) else value}")
    ]


def only_run(out: str | Path) -> Run:
    """Open the only run in a folder of run folders."""
    (path,) = Path(out).glob("*/config.json")
    return Run.open(path.parent)
