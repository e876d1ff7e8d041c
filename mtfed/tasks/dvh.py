"""Dose-volume histograms: the doses of a structure by which a plan is judged.

The metrics are those of the OpenKBP challenge (Babier et al., Med. Phys. 48:5549, 2021). For an organ at risk, they are
the mean dose and D_0.1cc, the minimum dose of its hottest 0.1 cm^3; for a target, D_99, D_95 and D_1, the dose that at
least so many percent of its volume receive. All are percentiles of the structure's voxels as ``numpy.percentile``
computes them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

TARGETS = ("PTV", "CTV", "GTV")  # structures whose names start like this are irradiated; others are spared
PERCENTILES = {"D_99": 1.0, "D_95": 5.0, "D_1": 99.0}  # percentiles of the dose in a target
TENTH = 100.0  # mm^3 in 0.1 cm^3


def is_target(structure: str) -> bool:
    """Return whether a structure is to be irradiated."""
    return structure.upper().startswith(TARGETS)


def voxels_of_tenth(volume: float) -> int:
    """Return how many voxels of a volume in mm^3 make up 0.1 cm^3, at least one."""
    return max(1, round(TENTH / volume))


def percentiles(values: Tensor, at: Tensor) -> Tensor:
    """Return percentiles of values (..., N) as (..., Q), with linear interpolation between neighbours.

    ``torch.quantile`` refuses more than 16 million numbers, and a large scan can have more.

    Args:
        values: (..., N), N at least 1.
        at: (Q,), in percent, 0 to 100.
    """
    ordered = values.sort(dim=-1).values
    position = at.to(values) / 100 * (values.shape[-1] - 1)
    below = position.floor().long()
    above = (below + 1).clamp(max=values.shape[-1] - 1)
    return torch.lerp(ordered[..., below], ordered[..., above], position - below)


def structure_metrics(dose: Tensor, structure: str, tenth: int) -> dict[str, Tensor]:
    """Return the metrics (...) of one structure.

    Args:
        dose: (..., N) in Gy, of the structure's voxels, N at least 1.
        structure: its name, which distinguishes targets from organs.
        tenth: voxels in 0.1 cm^3; for a smaller structure, all voxels count.
    """
    if is_target(structure):
        doses = percentiles(dose, torch.tensor(list(PERCENTILES.values())))
        return dict(zip(PERCENTILES, doses.unbind(-1), strict=True))
    cooler = max(0.0, 100 - 100 * tenth / dose.shape[-1])
    return {"D_0.1cc": percentiles(dose, torch.tensor([cooler], dtype=torch.float64))[..., 0], "mean": dose.mean(-1)}


def dvh_metrics(dose: Tensor, structures: Mapping[str, Tensor], tenth: int) -> dict[tuple[str, str], Tensor]:
    """Return the metrics (...) of every structure that has voxels, by structure and name of the metric.

    Args:
        dose: (..., *S) in Gy.
        structures: name -> (*S) bool.
        tenth: voxels in 0.1 cm^3, see :func:`voxels_of_tenth`.
    """
    return {
        (structure, metric): value
        for structure, mask in structures.items()
        if mask.any()
        for metric, value in structure_metrics(dose[..., mask], structure, tenth).items()
    }


def soft_histogram(dose: Tensor, masks: Tensor, levels: Tensor, width: float) -> Tensor:
    """Return the share (K, T) of each structure's volume that receives each dose or more, differentiable in the dose.

    The step at a level is a sigmoid (Nguyen et al., Med. Phys. 47:837, 2020).

    Args:
        dose: (N,).
        masks: (K, N) bool, each with at least one voxel.
        levels: (T,), in the dose's unit.
        width: width of the sigmoid, in the dose's unit.
    """
    above = torch.sigmoid((dose[:, None] - levels) / width)  # (N, T)
    shares = masks.to(dose)
    return shares @ above / shares.sum(1, keepdim=True)
