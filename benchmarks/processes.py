"""Run a benchmark in a separate process, so that its memory and caches are its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def run_module(module: str, *arguments: str) -> Any:
    """Run ``python -m benchmarks.MODULE`` on one thread.

    Return the JSON on the last line of its output, and print the other lines.
    """
    environment = {name: value for name, value in os.environ.items() if name != "MTFED_CACHE"} | ONE_THREAD
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    process = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with exit code {process.returncode}.")
    *lines, last = process.stdout.splitlines()
    for line in lines:
        print(line, flush=True)
    return json.loads(last)
