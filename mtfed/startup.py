"""Reach the first training step fast, and import timm where torchvision cannot load its operators.

Flower's deployment engine starts a process per message, so every import is paid again and again. Much of that time
goes to the compiler behind ``torch.compile``, which a training step never calls. The functions here put it off until
something asks for it, and fall back to the ordinary import where a shortcut does not fit the installed versions. Call
them before there are threads. For monai and torchmetrics see :mod:`.lean`.
"""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from types import FrameType, FunctionType, ModuleType
from typing import Any

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
    forget("torchvision")  # what an earlier attempt, given up by another library, has left behind
    # torchvision.ops takes a function from torch._dynamo that it may call much later.
    promises = [] if "torch._dynamo" in sys.modules else ["torch._dynamo", "torch._dynamo.utils"]
    declared: set[str] = set()
    while True:
        try:
            with quick_imports(), promised("torchvision", promises):
                return import_module("torchvision")
        except Exception as error:
            forget("torchvision")
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
    forget("timm")
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
        forget("timm")
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


def _declare_operator(name: str) -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    # The signature of nms, for every name: without a kernel behind it, it is never used.
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


def forget(root: str, known: Collection[str] = ()) -> None:
    """Drop a library's modules, but for those known before, so that it can be imported afresh."""
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


def asking_package() -> str:
    """Name the package whose code led here, past this file and the import system."""
    frame: FrameType | None = sys._getframe(1)
    while frame:
        name = frame.f_globals.get("__name__", "")
        package = name.partition(".")[0]
        if name != __name__ and package != "importlib":
            return package
        frame = frame.f_back
    return ""


class Promise(ModuleType):
    """Stand for a module: name functions for one package while in ``sys.modules``, be the real one afterwards."""

    def __init__(self, name: str, package: str) -> None:
        super().__init__(name)
        self._package = package

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is not self:
            return getattr(import_module(self.__name__), name)
        if name.startswith("__") or asking_package() != self._package:
            raise AttributeError(f"{self.__name__}.{name} is promised to {self._package} only")
        return call_later(self.__name__, name)


def call_later(module: str, name: str) -> Callable[..., Any]:
    """Return a function that imports its module when it is called."""

    def promised(*args: Any, **kwargs: Any) -> Any:
        if isinstance(sys.modules.get(module), Promise):
            raise ImportError(f"{module}.{name} is called while it is only promised")
        return getattr(import_module(module), name)(*args, **kwargs)

    return promised


@contextmanager
def promised(package: str, names: list[str]) -> Iterator[list[Promise]]:
    """Put promises of some modules in their place while a package is imported."""
    promises = [Promise(name, package) for name in names]
    sys.modules.update(zip(names, promises, strict=True))
    try:
        yield promises
    finally:
        for name in names:
            del sys.modules[name]
