"""What the tests share: a small federation that trains in a second."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

if "MTFED_TESTED_BY" not in os.environ:  # once a run: processes that it starts share its cache
    os.environ["MTFED_TESTED_BY"] = str(os.getpid())
    os.environ["MTFED_CACHE"] = tempfile.mkdtemp(prefix="mtfed-cache-")  # not the user's own
    atexit.register(shutil.rmtree, os.environ["MTFED_CACHE"], ignore_errors=True)
os.environ.update(OMP_NUM_THREADS="1", FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")

ROOT = Path(__file__).parents[1]
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


@pytest.fixture
def small(tmp_path: Path) -> dict[str, bool | int | float | str]:
    """The run config of a federation on 32 px images, one step a round, its runs in a temporary folder."""
    return TASKS | SMALL | {"out": str(tmp_path / "runs")}


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
