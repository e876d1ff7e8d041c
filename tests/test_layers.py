"""The architecture as imports show it: no circles, nothing imports upwards, and the strategies stand alone."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from helpers import ROOT

Graph = Mapping[str, set[str]]  # of each module or group, those that it imports

TREES = {"mtfed": ROOT / "mtfed", "mtfed.strategies": ROOT / "strategies", "mtfed.clients": ROOT / "clients"}
# From the bottom up; a module may import from its own layer and those below.
LAYERS = (
    ("mtfed.strategies",),
    ("mtfed.arguments", "mtfed.errors", "mtfed.progress", "mtfed.cores", "mtfed.startup"),
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
LIBRARIES_OF_STRATEGIES = sys.stdlib_module_names | {"flwr", "numpy", "scipy"}
NOT_INSTALLED = {"benchmarks", "clients", "helpers", "strategies", "tests"}  # under these names


@cache
def modules() -> dict[str, Path]:
    """Return the file of every module by its name."""
    files = {}
    for package, folder in TREES.items():
        for path in folder.rglob("*.py"):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            files[".".join(parts).removesuffix(".__init__")] = path
    return files


def imported_names(source: str, package: str) -> set[str]:
    """Return the absolute names of all that a module of a package imports, wherever in its source."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


@cache
def names_by_module() -> dict[str, set[str]]:
    """Return all that each module of the project imports."""
    packages = {
        name: name if path.name == "__init__.py" else name.rpartition(".")[0] for name, path in modules().items()
    }
    return {name: imported_names(path.read_text("utf-8"), packages[name]) for name, path in modules().items()}


def import_graph() -> Graph:
    """Return the modules of the project that each of them imports."""
    graph = {}
    for module, names in names_by_module().items():
        used = {name if name in modules() else name.rpartition(".")[0] for name in names}
        graph[module] = (used & modules().keys()) - {module}
    return graph


def group_graph(graph: Graph) -> Graph:
    """Return the groups that each group imports. A group is everything under one name in ``mtfed``."""
    groups: dict[str, set[str]] = {}
    for module, used in graph.items():
        group = group_of(module)
        groups.setdefault(group, set()).update({group_of(name) for name in used} - {group})
    return groups


def group_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def upward_imports(graph: Graph) -> list[str]:
    """Return a line for each import from a layer above."""
    layers = {group: height for height, layer in enumerate(LAYERS) for group in layer} | {"mtfed": 0}
    unknown = {group_of(module) for module in graph} - layers.keys()
    assert not unknown, f"add {', '.join(sorted(unknown))} to LAYERS"
    return [
        f"{module} imports {name}"
        for module, used in sorted(graph.items())
        for name in sorted(used)
        if layers[group_of(name)] > layers[group_of(module)]
    ]


def in_or_above_cycles(graph: Graph) -> set[str]:
    """Return the nodes that are in a cycle or lead to one."""
    left = dict(graph)
    while leaves := [node for node, used in left.items() if not used & left.keys()]:
        for node in leaves:
            del left[node]
    return set(left)


def foreign_to_strategies(names: set[str]) -> set[str]:
    """Return the imports that a module of the strategies may not have."""
    return {
        name for name in names
        if name.split(".")[0] not in LIBRARIES_OF_STRATEGIES and group_of(name) != "mtfed.strategies"
    }  # fmt: skip


def test_nothing_imports_upwards() -> None:
    assert upward_imports(import_graph()) == []


@pytest.mark.parametrize("graph", [import_graph(), group_graph(import_graph())], ids=["modules", "groups"])
def test_there_is_no_import_cycle(graph: Graph) -> None:
    assert in_or_above_cycles(graph) == set()


def test_strategies_import_only_their_libraries_and_each_other() -> None:
    strategies = {name: names for name, names in names_by_module().items() if group_of(name) == "mtfed.strategies"}
    assert len(strategies) > 20
    assert {name: foreign for name, names in strategies.items() if (foreign := foreign_to_strategies(names))} == {}


def test_the_product_imports_neither_tests_nor_benchmarks() -> None:
    imported = {name.split(".")[0] for names in names_by_module().values() for name in names}
    assert not imported & NOT_INSTALLED


def test_an_upward_import_is_caught() -> None:
    graph = {"mtfed.tasks.task": {"mtfed.errors", "mtfed.data.shard"}, "mtfed.errors": set(), "mtfed.data.shard": set()}
    assert upward_imports(graph) == ["mtfed.tasks.task imports mtfed.data.shard"]


def test_a_cycle_is_caught_between_modules_and_between_groups() -> None:
    assert in_or_above_cycles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == {"a", "b", "c"}
    graph = {"mtfed.a.x": {"mtfed.b.x"}, "mtfed.b.x": set(), "mtfed.b.y": {"mtfed.a.y"}, "mtfed.a.y": set()}
    assert in_or_above_cycles(graph) == set()
    assert in_or_above_cycles(group_graph(graph)) == {"mtfed.a", "mtfed.b"}


@pytest.mark.parametrize(
    "line", ["from ..errors import unknown", "from .. import errors", "import torch", "import mtfed"]
)
def test_a_foreign_import_of_strategies_is_caught(line: str) -> None:
    source = (
        f"from .wire import pack\nfrom . import wire\nimport numpy as np\n\ndef merge():\n    if np:\n        {line}\n"
    )
    assert len(foreign_to_strategies(imported_names(source, "mtfed.strategies"))) == 1
