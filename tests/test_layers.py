"""The architecture as imports show it: no circles, and nothing imports upwards."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from helpers import ROOT

TREES = {"mtfed": ROOT / "mtfed", "mtfed.strategies": ROOT / "strategies", "mtfed.clients": ROOT / "clients"}
# From the bottom up; a module may import from its own layer and those below. The longest prefix counts.
LAYERS = (
    ("mtfed.arguments", "mtfed.errors", "mtfed.progress", "mtfed.cores", "mtfed.startup", "mtfed.strategies"),
    ("mtfed.tasks",),
    ("mtfed.config",),
    ("mtfed.data",),
    ("mtfed.models",),
    ("mtfed.learning",),
    ("mtfed.record",),
    ("mtfed.report",),
    ("mtfed.federation",),
    ("mtfed.site",),
    ("mtfed.clients",),
    ("mtfed.server", "mtfed.config_help", "mtfed.cli"),
)


@cache
def modules() -> dict[str, Path]:
    """Return the file of every module by its name."""
    found = {}
    for package, folder in TREES.items():
        for path in folder.rglob("*.py"):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(module: str) -> set[str]:
    """Return the modules of the project that a module imports, wherever in its file."""
    path = modules()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules() else base for alias in node.names}
    return {name for name in names if name in modules()} - {module}


def layer(module: str) -> int:
    """Return how high a module stands."""
    prefixes = {prefix: height for height, layer in enumerate(LAYERS) for prefix in layer}
    own = [prefix for prefix in prefixes if module == prefix or module.startswith(f"{prefix}.")]
    assert own, f"{module} has no layer; add it to LAYERS"
    return prefixes[max(own, key=len)]


@pytest.mark.parametrize("module", sorted(modules().keys() - {"mtfed"}))
def test_nothing_imports_upwards(module: str) -> None:
    above = {name for name in imports(module) - {"mtfed"} if layer(name) > layer(module)}
    assert not above, f"{module} imports {', '.join(sorted(above))} from a layer above"


def test_there_is_no_import_cycle() -> None:
    left = {module: imports(module) for module in modules()}
    while leaves := [module for module, used in left.items() if not used & left.keys()]:
        for module in leaves:
            del left[module]
    assert not left, f"these modules are in an import cycle, or import one that is: {', '.join(sorted(left))}"
