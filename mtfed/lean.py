"""Import one part of monai or torchmetrics without the rest: seconds less for every process that trains.

``import monai`` loads all its submodules and with them matplotlib, scipy.signal and more, about 3 s; its losses alone
take a tenth of a second. The packages here are read for where the names they gather come from, and load those files
when a name is first touched. Anything else that is asked of them runs their own ``__init__``; a library whose files do
not fit this gets the ordinary import.
"""

from __future__ import annotations

import ast
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, resolve_name
from types import ModuleType
from typing import Any

from .startup import Promise, asking_package, call_later, forget, import_torchvision, promised, quick_imports

# The libraries that can be lean, each with what its files ask of the root before the root's __init__ has run.
_ROOTS: dict[str, dict[str, Callable[[], object]]] = {
    "monai": {"__version__": lambda: str(import_module("monai._version").get_versions()["version"])},
    "torchmetrics": {"_logger": lambda: logging.getLogger("torchmetrics")},
}
# What monai takes single functions from, for work that a loss or a metric rarely does.
_MONAI_RARELY_USES = ("requests", "scipy.ndimage", "scipy.spatial")


def lean_import(name: str) -> ModuleType:
    """Import one part of monai or torchmetrics, such as ``monai.losses``, without the rest of that library.

    Its packages become lean: they load the file of a name they gather when it is first touched, and run their own
    ``__init__`` when asked for a name they do not know. So ``monai.transforms`` and the like keep working.
    """
    root = name.partition(".")[0]
    known = set(sys.modules)
    if root in _ROOTS and (root not in known or isinstance(sys.modules[root], _LeanPackage)):
        finder = _LeanFinder(root)
        if finder not in sys.meta_path:
            sys.meta_path.insert(0, finder)
        try:
            with quick_imports():
                if root == "monai":
                    _put_off_optional_imports()
                else:
                    _put_off_plots()
                return import_module(name)
        except Exception:
            sys.meta_path.remove(finder)
            forget(root, known)
            _repair_torchvision()
    return import_module(name)


def _repair_torchvision() -> None:
    """Have torchvision imported for a library that would stumble over a broken one but can do without."""
    with suppress(Exception):
        import_torchvision()


def _put_off_plots() -> None:
    """Import the plotting that every torchmetrics metric brings, and matplotlib when the first plot is drawn."""
    if "matplotlib" in sys.modules or find_spec("matplotlib") is None:
        return

    @contextmanager
    def styled(*args: Any, **kwargs: Any) -> Iterator[None]:
        with import_module("matplotlib.style").context(*args, **kwargs):
            yield

    names = ["matplotlib", "matplotlib.axes", "matplotlib.colors", "matplotlib.pyplot", "matplotlib.style"]
    with promised("torchmetrics", names) as (matplotlib, axes, colors, pyplot, style):
        vars(matplotlib).update(axes=axes, colors=colors, pyplot=pyplot)
        vars(pyplot).update(style=style)
        vars(style).update(context=styled)
        import_module("torchmetrics.utilities.plot")


def _put_off_optional_imports() -> None:
    """Let monai's ``optional_import`` promise what it would find but rarely use."""
    utilities: Any = import_module("monai.utils.module")
    optional_import = utilities.optional_import
    if hasattr(optional_import, "__wrapped__"):
        return

    @wraps(optional_import)
    def optional_import_later(module: str, *args: Any, **kwargs: Any) -> tuple[Any, bool]:
        rare = module in _MONAI_RARELY_USES and module not in sys.modules and not args and kwargs.keys() <= {"name"}
        if not rare or not find_spec(module.partition(".")[0]):
            return optional_import(module, *args, **kwargs)
        return call_later(module, kwargs["name"]) if kwargs else Promise(module, "monai"), True

    utilities.optional_import = optional_import_later


class _LeanPackage(ModuleType):
    """A package whose ``__init__`` was read for where its names come from, and runs when that does not suffice."""

    _origins: dict[str, tuple[str, str]]
    _only_gathers: bool
    _has_run: bool

    def __init__(self, name: str, origins: dict[str, tuple[str, str]], only_gathers: bool) -> None:
        super().__init__(name)
        vars(self).update(_origins=origins, _only_gathers=only_gathers, _has_run=False)

    def __getattr__(self, name: str) -> Any:
        root = self.__name__.partition(".")[0]
        if self.__name__ == root and name in _ROOTS[root]:
            return _ROOTS[root][name]()
        unknown = AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if name.startswith("__") and name not in ("__all__", "__version__"):
            raise unknown
        # The library's own files get single names, often amid their imports. Whoever else asks gets all that the
        # __init__ does, if it does more than gather names.
        own = asking_package() == root
        try:
            with quick_imports():
                if name not in self._origins:
                    return import_module(f"{self.__name__}.{name}")
                if self._only_gathers or own:
                    module, attribute = self._origins[name]
                    vars(self)[name] = getattr(import_module(module), attribute)
        except (ImportError, AttributeError):
            if own and name in self._origins:
                raise
        if name not in vars(self):
            self._run()
        if name not in vars(self) and not own and isinstance(sys.modules[root], _LeanPackage):
            sys.modules[root]._run()  # whose other parts may add to this one
        if name not in vars(self):
            raise unknown
        return vars(self)[name]

    def __setattr__(self, name: str, value: object) -> None:
        # A file is set on its package when it loads, but the function of its name that it defines has precedence.
        if not (isinstance(value, ModuleType) and name in self._origins):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        self._run()
        return sorted(vars(self))

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        return import_module, (self.__name__,)  # picklers that take modules know them by their exact type

    def _run(self) -> None:
        spec: Any = self.__spec__
        if self._has_run:
            return
        if self.__name__ in _ROOTS:
            _repair_torchvision()
        self._has_run = True
        try:
            with quick_imports():
                spec.loader.exec_module(self)
        except BaseException:
            self._has_run = False
            raise


@dataclass(frozen=True)
class _LeanFinder(MetaPathFinder, Loader):
    """Make the packages under a root lean as they are imported."""

    root: str

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] != self.root:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and spec.submodule_search_locations and spec.loader:
            spec.loader, spec.loader_state = self, spec.loader
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        source: str = spec.loader_state.get_source(spec.name)
        return _LeanPackage(spec.name, *_read_origins(spec.name, ast.parse(source).body))

    def exec_module(self, module: ModuleType) -> None:
        spec: Any = module.__spec__
        module.__loader__ = spec.loader = spec.loader_state


def _read_origins(package: str, body: list[ast.stmt]) -> tuple[dict[str, tuple[str, str]], bool]:
    """Give the module and the name behind each name a package gathers, and whether gathering is all it does."""
    origins: dict[str, tuple[str, str]] = {}
    only_gathers = True
    for statement in body:
        match statement:
            case ast.ImportFrom(level=0, module="__future__") | ast.Expr(value=ast.Constant()):
                pass
            case ast.ImportFrom():
                module = resolve_name("." * statement.level + (statement.module or ""), package)
                if module != package and module.partition(".")[0] == package.partition(".")[0]:
                    origins.update({alias.asname or alias.name: (module, alias.name) for alias in statement.names})
            case ast.Assign(targets=[ast.Name(id="__all__")]) | ast.AugAssign(target=ast.Name(id="__all__")):
                pass
            case ast.If():
                conditional, gathers = _read_origins(package, statement.body + statement.orelse)
                only_gathers = only_gathers and gathers
                for name in conditional:  # for the __init__ itself to decide
                    origins.pop(name, None)
            case _:
                only_gathers = False
    return origins, only_gathers
