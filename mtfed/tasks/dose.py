"""The radiation dose of every voxel, as OpenKBP predicts and scores it (Babier et al., Med. Phys. 48:5549, 2021).

A label is the path of an ``.npz`` in the site's folder with arrays over the image: ``dose`` (Gy), ``possible`` (where
there can be dose at all), a mask for every structure of the task's classes that is delineated (one that is absent
counts in no metric), and ``spacing``, three numbers in mm in the order of the axes; of a slice the first is its
thickness. Or it is the path of a folder with a file for each, as ``dose.nii.gz``, in which spacing is the image's.

Values (M, 3, *S) are small integers, for a hundred patients have to fit in memory: planes of the dose in steps of the
range's 32000th part, -1 where there can be none; of a bit for each structure; and of the number of voxels in 0.1 cm^3,
one for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..data.source import Source
from ..errors import MtfedError
from .dvh import dvh_metrics, soft_histogram, voxels_of_tenth
from .kind import Kind, Loss, Measure, random_signs
from .multi_label_segmentation import read_arrays, structures
from .regression import TERMS, from_units, to_units
from .segmentation import mean_metric
from .task import Task

STEPS = 32000  # of the dose within the range
MAX_STRUCTURES = 16  # bits of a plane
LEVELS = 32  # of the histograms that the loss compares


def read_dose(cell: str, task: Task, source: Source) -> np.ndarray:
    """Return (3, *S) int16, see above."""
    if len(task.classes) > MAX_STRUCTURES:
        raise MtfedError(
            f"Task {task.name} should have at most {MAX_STRUCTURES} structures, it has {len(task.classes)}; leave out "
            "those whose dose is not judged."
        )
    arrays = read_arrays(cell, task, source)
    spacing = source.spacing if "spacing" not in arrays else None  # in a folder, it is that of the files
    for name in ("dose", "possible", *(("spacing",) if spacing is None else ())):
        if name not in arrays or arrays[name].dtype.kind not in "buif":
            raise MtfedError(f"Expected an array {name!r} of numbers in {cell} of site {source.data.key}, found none.")
    dose, possible = arrays["dose"].astype(np.float32), arrays["possible"].astype(bool)
    if dose.shape != possible.shape or not possible.any():
        raise MtfedError(
            f"Arrays 'dose' and 'possible' in {cell} of site {source.data.key} should have one shape, and some voxel "
            f"where dose is possible; the shapes are {list(dose.shape)} and {list(possible.shape)}."
        )
    (low, high), found = task.range, dose[possible]
    if not low <= found.min() <= found.max() <= high:
        raise MtfedError(
            f"Dose in {cell} of site {source.data.key} should lie in the range of task {task.name}, {low:g} to "
            f"{high:g} Gy; where it is possible it goes from {found.min():g} to {found.max():g}. Correct one of them."
        )
    dose = source.fit(np.where(possible, dose, np.float32(0)).clip(low, high), f"dose in {cell}", nearest=False)
    possible = source.fit(possible.astype(np.uint8), f"array 'possible' in {cell}", nearest=True) != 0
    steps = np.where(possible, np.round((dose - low) * (STEPS / (high - low))), -1)
    masks = structures(arrays, cell, task, source)
    bits = np.zeros(dose.shape, np.uint16)
    for index, name in enumerate(task.classes):
        if name in masks:
            bits |= masks[name].astype(np.uint16) << index
    tenth = min(voxels_of_tenth(_voxel(spacing or arrays["spacing"], cell, source)), np.iinfo(np.int16).max)
    return np.stack([steps.astype(np.int16), bits.view(np.int16), np.full(dose.shape, tenth, np.int16)])


def _voxel(spacing: np.ndarray | tuple[float, ...], cell: str, source: Source) -> float:
    """Return the volume of the frame's voxels in mm^3."""
    spacing = np.asarray(spacing, np.float64)
    if spacing.shape != (3,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise MtfedError(
            f"Spacing in {cell} of site {source.data.key} should be three numbers above 0, in mm; it is "
            f"{spacing.tolist()}."
        )
    return float(spacing.prod() / source.letterbox.scale.prod())


@dataclass(frozen=True)
class Plan:
    """One patient's dose as it was planned."""

    dose: Tensor  # (*S) in units of the range; where there can be none, as much as 0 Gy
    possible: Tensor  # (*S) bool
    structures: dict[str, Tensor]  # (*S) bool, of those that have voxels
    tenth: int  # voxels in 0.1 cm^3


def plans(values: Tensor, task: Task) -> Iterator[Plan]:
    """Unpack values (M, 3, *S), a patient at a time."""
    none = to_units(torch.tensor(0.0), task)
    for steps, bits, tenth in values:
        possible = steps >= 0
        masks = {name: (bits >> index & 1).bool() for index, name in enumerate(task.classes)}
        yield Plan(
            torch.where(possible, steps / STEPS, none.to(steps.device)),
            possible,
            {name: mask for name, mask in masks.items() if mask.any()},
            int(tenth.flatten()[0]),
        )


def voxel_loss(term: str, task: Task, config: Config) -> Loss:
    """Return a loss of voxels, in units of the range: mean over a patient's where there can be dose, and patients."""

    def loss(outputs: Tensor, values: Tensor) -> Tensor:
        steps = values[:, 0].flatten(1)
        possible = steps >= 0
        terms = TERMS[term](outputs.flatten(1), (steps / STEPS).to(outputs), reduction="none")
        return (torch.where(possible, terms, 0).sum(1) / possible.sum(1).clamp(min=1)).mean()

    return loss


def dvh(task: Task, config: Config) -> Loss:
    """Return the mean squared difference of dose-volume histograms, over levels, a patient's structures, and patients.

    Our form of the loss of Nguyen et al., Med. Phys. 47:837, 2020: levels lie evenly in the range and its sigmoids are
    as wide as the steps between them.
    """

    def loss(outputs: Tensor, values: Tensor) -> Tensor:
        levels = (torch.arange(LEVELS, device=outputs.device) + 0.5).to(outputs) / LEVELS
        total = outputs.sum() * 0
        for output, plan in zip(outputs[:, 0], plans(values, task), strict=True):
            if plan.structures:
                masks = torch.stack(list(plan.structures.values()))
                where = masks.any(0)
                output = torch.where(plan.possible, output, plan.dose.to(output))
                found, true = (
                    soft_histogram(dose[where].to(output), masks[:, where], levels, 1 / LEVELS)
                    for dose in (output, plan.dose)
                )
                total = total + (found - true).square().mean()
        return total / len(outputs)

    return loss


def dose_scores(task: Task, outputs: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    """Return each patient's mean absolute difference in Gy, where there can be dose: (M,)."""
    low, high = task.range
    scores = [
        (output - plan.dose)[plan.possible].abs().sum() / plan.possible.sum().clamp(min=1) * (high - low)
        for output, plan in zip(outputs[:, 0], plans(values, task), strict=True)
    ]
    return (torch.stack(scores),)


def dvh_differences(task: Task, outputs: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    """Return the absolute differences in Gy of all metrics of all structures of all patients: (N,)."""
    differences = [torch.zeros(0)]
    for output, plan in zip(outputs[:, 0], plans(values, task), strict=True):
        both = torch.stack([torch.where(plan.possible, output, plan.dose), plan.dose])
        metrics = dvh_metrics(from_units(both, task), plan.structures, plan.tenth)
        differences += [(found - true).abs()[None] for found, true in metrics.values()]
    return (torch.cat(differences),)


def _signs(outputs: Tensor, values: Tensor, task: Task) -> Tensor:
    """Return signs where there can be dose, as for a regression; for all losses alike (our design)."""
    possible = values[:, :1] >= 0
    count = possible.flatten(1).sum(1).clamp(min=1).reshape(-1, *(1,) * (outputs.ndim - 1))
    return random_signs(outputs) * possible / count.sqrt()


KIND = Kind(
    read=read_dose,
    signs=_signs,
    losses={"l1": partial(voxel_loss, "l1"), "mse": partial(voxel_loss, "mse"), "dvh": dvh},
    measures={
        "dose-score": Measure(mean_metric(higher_is_better=False), dose_scores),
        "dvh-score": Measure(mean_metric(higher_is_better=False), dvh_differences),
    },
    show=lambda outputs, task: from_units(outputs[:, 0], task).half().numpy(),
)
