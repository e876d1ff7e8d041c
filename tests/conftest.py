"""Fixtures of all tests: a small federation that trains in a second."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from helpers import SMALL, TASKS

if "MTFED_TESTED_BY" not in os.environ:  # once a run: processes that it starts share its cache
    os.environ["MTFED_TESTED_BY"] = str(os.getpid())
    os.environ["MTFED_CACHE"] = tempfile.mkdtemp(prefix="mtfed-cache-")  # not the user's own
    atexit.register(shutil.rmtree, os.environ["MTFED_CACHE"], ignore_errors=True)
os.environ.update(OMP_NUM_THREADS="1", FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")


@pytest.fixture
def small(tmp_path: Path) -> dict[str, bool | int | float | str]:
    """The run config of a federation on 32 px images, with one step per round and its runs in a temporary folder."""
    return TASKS | SMALL | {"out": str(tmp_path / "runs")}
