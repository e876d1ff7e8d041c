"""Run all benchmarks, or those that are named, and write their figures to ``benchmarks/results.json``.

python -m benchmarks [federation] [merging] [digits] [systems_cost] [pipeline]
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
import time
from pathlib import Path

from mtfed.cores import usable_cores

SUITES = ("federation", "merging", "digits", "systems_cost", "pipeline")
RESULTS = Path(__file__).with_name("results.json")


def main(names: list[str]) -> None:
    """Run the benchmarks and update ``results.json``."""
    for name in names or SUITES:
        if name not in SUITES:
            sys.exit(f"Unknown benchmark {name!r}; expected one of: {', '.join(SUITES)}.")
        figures = importlib.import_module(f"benchmarks.{name}").measure()
        # Read only now, because another benchmark may have written meanwhile.
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        machine = {"cores": usable_cores(), "python": platform.python_version()}
        results[name] = {"measured": time.strftime("%Y-%m-%d"), **machine, **figures}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
