"""Tasks: what is predicted, and for each kind of task how labels are read, trained, measured and shown.

A kind from outside needs a :class:`KindSpec`, a :class:`Kind` and one call of :func:`register_kind`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .specs import KIND_SPECS, METRIC_SPECS, KindSpec, MetricSpec
from .task import Task

if TYPE_CHECKING:
    from .kind import AdditiveMetric, Kind, kind_of, mean_metric, register_kind

__all__ = ["KIND_SPECS", "METRIC_SPECS", "AdditiveMetric", "Kind", "KindSpec", "MetricSpec", "Task"]
__all__ += ["kind_of", "mean_metric", "register_kind"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first used, because a config is checked without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".kind", __name__), name)
