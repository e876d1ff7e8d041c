"""Divide a data set among simulated sites. A patient is never divided.

A partition is a sum of schemes, such as ``"tasks + dirichlet"``; ``mtfed data partition -h`` lists them. Their
functions are in :data:`.schemes.SCHEMES`, their descriptions in :data:`mtfed.config.partitions.PARTITIONS`.
"""

from __future__ import annotations

from .allocation import MIN_PATIENTS, Division, Options
from .few_labels import sites_without_labels, withhold_labels
from .patients import hold_out, stratum_of
from .schemes import default_sites, partition, tasks_in_turn

__all__ = ["MIN_PATIENTS", "Division", "Options", "default_sites", "hold_out"]
__all__ += ["partition", "sites_without_labels", "stratum_of", "tasks_in_turn", "withhold_labels"]
