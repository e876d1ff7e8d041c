"""What decoded images depend on besides their files: settings, versions of decoders, and the code that reads them.

An upgraded decoder or a changed reader decodes everything again; a changed loss does not.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from functools import cache, lru_cache, partial
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..tasks.kind import Kind, kind_of
from .formats import FORMATS

PACKAGES = ("numpy", "pillow", "torch")  # that scale and resize the images of all formats
READERS = ("root.py", "source.py", "letterbox.py", "decoding.py", "store.py", "formats/*.py")  # modules of mtfed.data


@lru_cache(maxsize=64)
def settings_digest(config: Config) -> str:
    """Return a digest of everything that decoding depends on except the files and cells of a manifest."""
    tasks = [(task.name, task.kind, task.classes, task.range) for task in config.labelled_tasks.values()]
    image = (config.image_size, config.dimensions, config.channels, config.window, config.proportions)
    kinds = {task.kind: label_code(kind_of(task)) for task in config.labelled_tasks.values()}
    return digest(repr((package_versions(), image_code(), sorted(kinds.items()), image, tasks))).hex()[:16]


def digest(text: str) -> bytes:
    """Return a digest of 16 bytes."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def package_versions() -> list[tuple[str, str]]:
    """Return the versions of all packages that can change pixels, "" for those that are not installed."""
    names = {*PACKAGES, *(name for format in FORMATS.values() for name in format.packages)}
    return [(name, _version(name)) for name in sorted(names)]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def image_code() -> list[bytes]:
    """Return digests of the modules that read images, including formats from outside."""
    home = Path(__file__).parent
    files = {path for pattern in READERS for path in home.glob(pattern)}
    files |= {path for format in FORMATS.values() if (path := _reader_file(format.reader))}
    return [digest(path.read_text("utf-8")) for path in sorted(files)]


def _reader_file(reader: Callable[..., Any] | str) -> Path | None:
    if not isinstance(reader, str):
        return _file(reader.__module__)
    module = reader.partition(":")[0]
    return None if module.startswith(".") else _file(module)  # this package's own are among READERS


def label_code(kind: Kind) -> bytes:
    """Return a digest of the code that reads labels of a kind: ``read`` and ``stack`` and all they use."""
    functions = [kind.read] + ([kind.stack] if kind.stack is not np.stack else [])
    return digest("\n".join(sorted({text for function in functions for text in used_code(function)})))


def used_code(function: Callable[..., Any]) -> Iterator[str]:
    """Yield the source of a function and of everything that it uses from its own package, directly or indirectly.

    Names are followed through imports, without executing anything. Comments, docstrings and type annotations do not
    count. If the function is not defined at the top of its module, as a lambda is not, its whole module counts.
    """
    while isinstance(function, partial):
        function = function.func
    package = function.__module__.rpartition(".")[0] or function.__module__
    waiting, seen = [(function.__module__, function.__qualname__)], set()
    while waiting:
        module, name = item = waiting.pop()
        if item in seen or not f"{module}.".startswith(f"{package}."):
            continue
        seen.add(item)
        statements, imports = _parse(module)
        known = imports.keys() | {name for _, names in statements for name in names}
        defining = [statement for statement, names in statements if name in names]
        for statement in defining or [statement for statement, _ in statements]:
            yield ast.unparse(statement)
            used = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
            waiting += [imports.get(name, (module, name)) for name in used & known]


@cache
def _parse(module: str) -> tuple[list[tuple[ast.stmt, set[str]]], dict[str, tuple[str, str]]]:
    """Return a module's statements with the names that they define, and the module and name of each import."""
    file = _file(module)
    if file is None:
        return [], {}
    tree = _Bare().visit(ast.parse(file.read_text("utf-8")))
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    imports: dict[str, tuple[str, str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                is_module = base == package and _file(submodule) is not None
                imports[alias.asname or alias.name] = (submodule, "") if is_module else (base, alias.name)
    plain = [statement for statement in tree.body if not isinstance(statement, ast.Import | ast.ImportFrom)]
    return [(statement, _defined(statement)) for statement in plain], imports


class _Bare(ast.NodeTransformer):
    """Remove the annotations and the docstrings of functions."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return self.generic_visit(node)


def _defined(statement: ast.stmt) -> set[str]:
    """Return the names that a statement at the top of a module defines."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    return {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _file(module: str) -> Path | None:
    """Return the source file of a module, ``None`` if it has none."""
    try:
        path = sys.modules[module].__file__ if module in sys.modules else getattr(find_spec(module), "origin", None)
    except ModuleNotFoundError:
        return None
    return Path(path) if path and path.endswith(".py") else None
