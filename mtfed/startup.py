"""Import torchvision and timm: repair torchvision where its operators do not load, and leave torch's compiler unloaded.

Flower's deployment engine starts a process for every message, so imports are paid for again and again. torch's compiler
(``torch._dynamo``) takes about a second to import, and a plain training step never calls it. Three places keep it
unloaded: :func:`import_timm`, which :mod:`mtfed.models.timm_library` calls for all models; :func:`import_torchvision`,
for everything that needs only torchvision; and :class:`mtfed.learning.train.AdamW`, an optimizer without the decorators
that load the compiler. If a shortcut does not fit the installed versions, the reason is logged and the ordinary import
is used.
"""

from __future__ import annotations

import gc
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

log = logging.getLogger("mtfed")
_libraries: list[object] = []  # keeps the torch.library.Library objects alive: their operators vanish with them


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Pause the garbage collector, which would traverse many new objects several times and free none of them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def import_timm() -> ModuleType:
    """Import timm, with torchvision repaired and without torch's compiler."""
    import_torchvision()
    return _import_without_compiler("timm", _disable_lazily)


def import_torchvision() -> ModuleType:
    """Import torchvision, even if its compiled operators do not load with the installed torch.

    torchvision then still registers fake kernels for its operators, and torch refuses those of an undeclared operator.
    Each operator that torch reports as missing is declared here without a kernel: calling it still fails, but the rest
    of torchvision works.
    """
    declared: set[str] = set()
    while True:
        try:
            return _import_without_compiler("torchvision", _promise_compile_check)
        except RuntimeError as error:
            missing = re.fullmatch(r"operator torchvision::(\w+) does not exist", str(error))
            if not missing or missing[1] in declared:
                raise
            log.info("torchvision lacks its operator %s; it is declared without a kernel.", missing[1])
            declared.add(missing[1])
            library = import_module("torch.library").Library("torchvision", "FRAGMENT")
            # Every operator gets the signature of nms; without a kernel, the signature is never used.
            library.define(f"{missing[1]}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _libraries.append(library)


def _import_without_compiler(name: str, deferral: Callable[[], Any]) -> ModuleType:
    """Import a library within a context that defers the compiler; if that fails, without the context.

    A failed import leaves none of the library's modules behind, so that it can be repeated.
    """
    if name in sys.modules:
        return sys.modules[name]
    with garbage_collection_paused():
        if "torch._dynamo" not in sys.modules:
            try:
                with _forgetting(name), deferral():
                    return import_module(name)
            except (AttributeError, ImportError, TypeError) as error:  # the deferral hid what the import needs
                log.warning("Importing %s together with torch's compiler, which is slower: %s", name, error)
        with _forgetting(name):
            return import_module(name)


@contextmanager
def _disable_lazily() -> Iterator[None]:
    """Let ``torch.compiler.disable``, with which timm decorates functions, load the compiler at their first call."""
    import torch

    disable = torch.compiler.disable
    torch.compiler.disable = lambda fn=None, recursive=True, *, reason=None: torch._disable_dynamo(fn, recursive)
    try:
        yield
    finally:
        torch.compiler.disable = disable


@contextmanager
def _promise_compile_check() -> Iterator[None]:
    """Let torchvision import ``is_compile_supported``, which only its roi_align calls, without loading the compiler."""

    def is_compile_supported(device_type: str) -> bool:
        return bool(import_module("torch._dynamo.utils").is_compile_supported(device_type))

    modules = {name: ModuleType(name) for name in ("torch._dynamo", "torch._dynamo.utils")}
    vars(modules["torch._dynamo.utils"]).update(is_compile_supported=is_compile_supported)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


@contextmanager
def _forgetting(library: str) -> Iterator[None]:
    """Drop a library's modules if its import fails."""
    try:
        yield
    except Exception:
        for name in [name for name in sys.modules if name.partition(".")[0] == library]:
            del sys.modules[name]
        raise
