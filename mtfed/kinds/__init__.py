"""How each kind of task reads labels, is trained, is measured and is shown: a module a kind."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module

from ..tasks import Task
from .kind import Kind

__all__ = ["Kind", "kind_of"]


def kind_of(task: Task) -> Kind:
    """Return what a task's kind can do; its module is imported when first asked for."""
    return _load(task.kind)


@lru_cache
def _load(name: str) -> Kind:
    return import_module(f".{name.replace('-', '_')}", __name__).KIND
