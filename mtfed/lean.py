"""Import torchmetrics or MONAI beside a repaired torchvision."""

from importlib import import_module
from types import ModuleType

from .startup import import_torchvision


def lean_import(name: str) -> ModuleType:
    """Import a module of torchmetrics or MONAI."""
    import_torchvision()
    return import_module(name)
