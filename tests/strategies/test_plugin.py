"""The plugin is light: flwr, numpy, scipy and pydantic, and no torch."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import requires

LOOK = """
import sys
import flwr.app, flwr.serverapp.strategy
import mtfed.strategies
assert not {"torch", "timm", "monai", "pandas", "matplotlib", "ray"} & set(sys.modules), sorted(sys.modules)
"""


def test_strategies_import_nothing_heavy() -> None:
    subprocess.run([sys.executable, "-c", LOOK], check=True)


def test_plain_install_brings_four_packages() -> None:
    plain = {line.split(">")[0].split("<")[0].strip() for line in requires("mtfed") or [] if "extra ==" not in line}
    assert plain == {"flwr", "numpy", "scipy", "pydantic"}
