"""Reach the first training step fast, and import timm where torchvision cannot load its operators.

Flower's deployment engine starts a process per message, so every import is paid again and again. Most of that
time goes to things a training step never calls: the compiler behind ``torch.compile``, the plots of torchmetrics,
the hundreds of files of monai. The functions here put those off until something asks for them, and fall back to
the ordinary import where a shortcut does not fit the installed versions. Call them before there are threads.
"""

import ast
import gc
import logging
import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, resolve_name
from types import FrameType, FunctionType, ModuleType
from typing import Any

# The libraries that can be lean, each with what its files ask of the root before the root's __init__ has run.
_ROOTS: dict[str, dict[str, Callable[[], object]]] = {
    "monai": {"__version__": lambda: str(import_module("monai._version").get_versions()["version"])},
    "torchmetrics": {"_logger": lambda: logging.getLogger("torchmetrics")},
}
# What monai takes single functions from, for work that a loss or a metric rarely does.
_MONAI_RARELY_USES = ("requests", "scipy.ndimage", "scipy.spatial")
# The wrapper torch puts around an optimizer's step is replaced only if this is all it can be doing.
_STEP_WRAPPER_NAMES = {"torch", "torch._dynamo", "_dynamo", "graph_break", "is_grad_enabled", "set_grad_enabled"}
_STEP_WRAPPER_NAMES |= {"Optimizer", "cast", "defaults"}
_declared: list[object] = []  # a torch.library.Library takes its operators along when it is collected


@contextmanager
def quick_imports() -> Iterator[None]:
    """Hold the garbage collector, which walks all of torch several times while modules load and finds nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def import_torchvision() -> ModuleType:
    """Import torchvision, also where its compiled operators do not load beside the installed torch.

    It describes its operators to torch even then, and torch refuses to hear of one that nobody declared. So those
    it names are declared, without a kernel: calling one fails as before, the rest of torchvision works.
    """
    if "torchvision" in sys.modules:
        return sys.modules["torchvision"]
    _forget("torchvision")  # what an earlier attempt, given up by another library, has left behind
    # torchvision.ops takes a function from torch._dynamo that it may call much later.
    promises = [] if "torch._dynamo" in sys.modules else ["torch._dynamo", "torch._dynamo.utils"]
    declared: set[str] = set()
    while True:
        try:
            with quick_imports(), _promised("torchvision", promises):
                return import_module("torchvision")
        except Exception as error:
            _forget("torchvision")
            missing = re.fullmatch(r"operator torchvision::(\w+) does not exist", str(error))
            if isinstance(error, RuntimeError) and missing and missing[1] not in declared:
                declared.add(missing[1])
                _declare_operator(missing[1])
            elif promises:
                promises = []
            else:
                raise


def import_timm() -> ModuleType:
    """Import timm with all its models but without torch's compiler, which some files load to opt out of it."""
    if "timm" in sys.modules:
        return sys.modules["timm"]
    import_torchvision()
    _forget("timm")
    import torch.compiler

    disable = torch.compiler.disable

    @wraps(disable)
    def disable_later(fn: Any = None, recursive: bool = True, *, reason: str | None = None) -> Any:
        if "torch._dynamo" in sys.modules or not isinstance(fn, FunctionType):
            return disable(fn, recursive, reason=reason)
        return torch._disable_dynamo(fn, recursive)

    torch.compiler.disable = disable_later
    try:
        with quick_imports():
            return import_module("timm")
    except Exception:
        _forget("timm")
    finally:
        torch.compiler.disable = disable
    return import_module("timm")


def make_optimizers_light() -> None:
    """Let torch's optimizers work without torch's compiler for as long as nobody else has loaded it.

    They load it to keep it out of some methods and to break compiled graphs around ``step``. Until it is loaded
    nothing is compiled; from then on they do as before.
    """
    from torch.optim import Optimizer

    if "torch._dynamo" in sys.modules:
        return
    for method in vars(Optimizer).values():
        if getattr(method, "__globals__", {}).get("__name__") == "torch._compile" and hasattr(method, "__wrapped__"):
            _disable_later(method.__wrapped__)
    kinds: list[Any] = Optimizer.__subclasses__()
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
        code = getattr(vars(kind).get("step"), "__code__", None)
        if code and code.co_name == "_use_grad" and _STEP_WRAPPER_NAMES.issuperset(code.co_names):
            kind.step = _lighten_step(kind.step)


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
            _forget(root, known)
            _repair_torchvision()
    return import_module(name)


def _declare_operator(name: str) -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    # The signature of nms, for every name: without a kernel behind it, it is never used.
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


def _repair_torchvision() -> None:
    """Have torchvision imported for a library that would stumble over a broken one but can do without."""
    with suppress(Exception):
        import_torchvision()


def _forget(root: str, known: Collection[str] = ()) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == root and name not in known:
            del sys.modules[name]


def _disable_later(function: Any) -> None:
    def call(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        import torch._dynamo

        function.__dynamo_disable = torch._dynamo.disable(function, wrapping=False)
        return function.__dynamo_disable(*args, **kwargs)

    function.__dynamo_disable = call  # where torch keeps the disabled function once it has made it


def _lighten_step(step: Any) -> Any:
    import torch

    @wraps(step)
    def light_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        # is_compiling comes first: in a compiled graph it is a constant, and sys.modules no business of the graph.
        if torch.compiler.is_compiling() or "torch._dynamo" in sys.modules:
            return step(self, *args, **kwargs)
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step.__wrapped__(self, *args, **kwargs)

    return light_step


def _asking_package() -> str:
    """Name the package whose code led here, past this file and the import system."""
    frame: FrameType | None = sys._getframe(1)
    while frame:
        name = frame.f_globals.get("__name__", "")
        package = name.partition(".")[0]
        if name != __name__ and package != "importlib":
            return package
        frame = frame.f_back
    return ""


class _Promise(ModuleType):
    """Stand for a module: name functions for one package while in ``sys.modules``, be the real one afterwards."""

    def __init__(self, name: str, package: str) -> None:
        super().__init__(name)
        self._package = package

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is not self:
            return getattr(import_module(self.__name__), name)
        if name.startswith("__") or _asking_package() != self._package:
            raise AttributeError(f"{self.__name__}.{name} is promised to {self._package} only")
        return _call_later(self.__name__, name)


def _call_later(module: str, name: str) -> Callable[..., Any]:
    def promised(*args: Any, **kwargs: Any) -> Any:
        if isinstance(sys.modules.get(module), _Promise):
            raise ImportError(f"{module}.{name} is called while it is only promised")
        return getattr(import_module(module), name)(*args, **kwargs)

    return promised


@contextmanager
def _promised(package: str, names: list[str]) -> Iterator[list[_Promise]]:
    promises = [_Promise(name, package) for name in names]
    sys.modules.update(zip(names, promises, strict=True))
    try:
        yield promises
    finally:
        for name in names:
            del sys.modules[name]


def _put_off_plots() -> None:
    """Import the plotting that every torchmetrics metric brings, and matplotlib when the first plot is drawn."""
    if "matplotlib" in sys.modules or find_spec("matplotlib") is None:
        return

    @contextmanager
    def styled(*args: Any, **kwargs: Any) -> Iterator[None]:
        with import_module("matplotlib.style").context(*args, **kwargs):
            yield

    names = ["matplotlib", "matplotlib.axes", "matplotlib.colors", "matplotlib.pyplot", "matplotlib.style"]
    with _promised("torchmetrics", names) as (matplotlib, axes, colors, pyplot, style):
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
        return _call_later(module, kwargs["name"]) if kwargs else _Promise(module, "monai"), True

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
        own = _asking_package() == root
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
