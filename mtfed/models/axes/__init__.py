"""The axes of torch modules: one describer per type of module builds an :class:`mtfed.strategies.axes.AxisGraph`.

Importing this package registers all describers. A new type of module needs one function, decorated with
``@describes`` of :mod:`.builder`, in one of the modules imported below.
"""

from . import chains, decoders, encoders, transformers  # noqa: F401  (each registers its describers)
from .builder import AxisGraphBuilder, describe, describes

__all__ = ["AxisGraphBuilder", "describe", "describes"]
