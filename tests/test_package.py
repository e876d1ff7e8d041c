"""The installed project is complete: every package and every experiment is listed."""

from __future__ import annotations

import tomllib

from helpers import ROOT

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_is_listed() -> None:
    packages = {
        ".".join(("mtfed" if top == "mtfed" else f"mtfed.{top}", *path.parent.relative_to(ROOT / top).parts))
        for top in ("mtfed", "strategies", "clients")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert set(SETTINGS["packages"]) == packages


def test_every_experiment_is_shipped() -> None:
    listed = {path for paths in SETTINGS["data-files"].values() for path in paths}
    files = {
        str(path.relative_to(ROOT))
        for pattern in ("*/pyproject.toml", "*/README.md", "README.md")
        for path in (ROOT / "experiments").glob(pattern)
    }
    assert listed == files
