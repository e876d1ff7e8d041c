"""Who holds what: patients are dealt to sites by named schemes, and never divided.

A partition is a sum of schemes: ``"tasks + dirichlet"``. ``mtfed data partition -h`` tells what there is. The table is
:data:`mtfed.config.PARTITIONS`; the function of a scheme stands under its name in :mod:`.schemes`.
"""

from __future__ import annotations

from .deal import MIN_PATIENTS, Division, Options
from .divide import default_sites, partition
from .hold import hold_out
from .patients import stratum_of
from .schemes import held_tasks

__all__ = [
    "MIN_PATIENTS",
    "Division",
    "Options",
    "default_sites",
    "held_tasks",
    "hold_out",
    "partition",
    "stratum_of",
]
