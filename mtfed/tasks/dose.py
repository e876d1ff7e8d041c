"""The radiation dose of every voxel, as OpenKBP predicts and scores it (Babier et al., Med. Phys. 48:5549, 2021).

A label is the path of an ``.npz`` in the site's folder with arrays over the image: ``dose`` (Gy), ``possible`` (where
dose is possible at all), a mask for every structure of the task's classes that is delineated (an absent structure
counts in no metric), and ``spacing``, three numbers in mm in the order of the axes; the first of a slice is its
thickness. Or it is the path of a folder with a file for each, such as ``dose.nii.gz``, whose spacing is the image's.

Values (M, 3, *S) are small integers, because a hundred patients have to fit in memory. The planes are the dose in steps
of 1/32000 of the range, -1 where no dose is possible; a bit for each structure; and the number of voxels in 0.1 cm^3,
the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..errors import LabelError
from .curvature_factors import random_signs
from .dvh import dvh_metrics, soft_histogram, voxels_of_tenth
from .kind import Kind, LabelSource, LossSettings, mean_metric
from .multi_label_segmentation import read_arrays, structure_masks
from .regression import TERMS, from_units, to_units
from .task import Task

STEPS = 32000  # steps of the dose within the range
MAX_STRUCTURES = 16  # bits of a plane
LEVELS = 32  # levels of the histograms that the loss compares


def read_dose(cell: str, task: Task, source: LabelSource) -> np.ndarray:
    """Return (3, *S) int16, see above."""
    if len(task.classes) > MAX_STRUCTURES:
        raise LabelError(
            f"Task {task.name} should have at most {MAX_STRUCTURES} structures, it has {len(task.classes)}; leave out "
            "those whose dose is not judged."
        )
    arrays, place = read_arrays(cell, task, source), f"{cell} of site {source.site}"
    spacing = source.spacing if "spacing" not in arrays else None  # in a folder, the files have it
    for name in ("dose", "possible", *(("spacing",) if spacing is None else ())):
        if name not in arrays or arrays[name].dtype.kind not in "buif":
            raise LabelError(f"Expected an array {name!r} of numbers in {place}, found none.")
    dose, possible = arrays["dose"].astype(np.float32), arrays["possible"].astype(bool)
    if dose.shape != possible.shape or not possible.any():
        raise LabelError(
            f"Arrays 'dose' and 'possible' in {place} should have the same shape, and some voxel where dose is "
            f"possible; the shapes are {list(dose.shape)} and {list(possible.shape)}.",
            "misfit" if dose.shape != possible.shape else "range",
        )
    (low, high), judged = task.range, dose[possible]
    if not low <= judged.min() <= judged.max() <= high:
        raise LabelError(
            f"Dose in {place} should be in the range of task {task.name}, {low:g} to {high:g} Gy; where dose is "
            f"possible it is {judged.min():g} to {judged.max():g} Gy. Correct one of them.",
            "range",
        )
    dose = source.fit(np.where(possible, dose, np.float32(0)).clip(low, high), f"dose in {cell}", nearest=False)
    possible = source.fit(possible.astype(np.uint8), f"array 'possible' in {cell}", nearest=True) != 0
    steps = np.where(possible, np.round((dose - low) * (STEPS / (high - low))), -1)
    masks = structure_masks(arrays, cell, task, source)
    bits = np.zeros(dose.shape, np.uint16)
    for index, name in enumerate(task.classes):
        if name in masks:
            bits |= masks[name].astype(np.uint16) << index
    tenth = min(voxels_of_tenth(_voxel_volume(spacing or arrays["spacing"], cell, source)), np.iinfo(np.int16).max)
    return np.stack([steps.astype(np.int16), bits.view(np.int16), np.full(dose.shape, tenth, np.int16)])


def _voxel_volume(spacing: np.ndarray | tuple[float, ...], cell: str, source: LabelSource) -> float:
    """Return the volume of the model's voxels in mm^3."""
    spacing = np.asarray(spacing, np.float64)
    if spacing.shape != (3,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise LabelError(
            f"Spacing in {cell} of site {source.site} should be three numbers above 0, in mm; it is {spacing.tolist()}."
        )
    return float(spacing.prod() / source.letterbox.scale.prod())


def _class_counts(label: np.ndarray, task: Task, raw: np.ndarray | None) -> dict[str, int]:
    """Return the voxels of each structure."""
    bits = label[1].view(np.uint16)
    counts = {name: int((bits >> k & 1).sum()) for k, name in enumerate(task.classes)}
    return {name: count for name, count in counts.items() if count}


@dataclass(frozen=True)
class Plan:
    """The planned dose of one patient."""

    dose: Tensor  # (*S) in units of the range; 0 Gy where no dose is possible
    possible: Tensor  # (*S) bool
    structures: dict[str, Tensor]  # (*S) bool, of the structures that have voxels
    tenth: int  # voxels in 0.1 cm^3


def plans(values: Tensor, task: Task) -> Iterator[Plan]:
    """Unpack values (M, 3, *S), one patient at a time."""
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


def voxel_loss(term: str, task: Task, settings: LossSettings, outputs: Tensor, values: Tensor) -> Tensor:
    """Return a loss in units of the range, mean over the voxels where dose is possible, and over patients."""
    steps = values[:, 0].flatten(1)
    possible = steps >= 0
    terms = TERMS[term](outputs.flatten(1), (steps / STEPS).to(outputs), reduction="none")
    return (torch.where(possible, terms, 0).sum(1) / possible.sum(1).clamp(min=1)).mean()


def dvh(task: Task, settings: LossSettings, outputs: Tensor, values: Tensor) -> Tensor:
    """Return the mean squared difference of dose-volume histograms, over levels, a patient's structures, and patients.

    Our form of the loss of Nguyen et al., Med. Phys. 47:837, 2020: levels are evenly spaced in the range, and the
    sigmoids are as wide as the steps between them.
    """
    levels = (torch.arange(LEVELS, device=outputs.device) + 0.5).to(outputs) / LEVELS
    total = outputs.sum() * 0
    for output, plan in zip(outputs[:, 0], plans(values, task), strict=True):
        if plan.structures:
            masks = torch.stack(list(plan.structures.values()))
            inside = masks.any(0)
            output = torch.where(plan.possible, output, plan.dose.to(output))
            predicted, planned = (
                soft_histogram(dose[inside].to(output), masks[:, inside], levels, 1 / LEVELS)
                for dose in (output, plan.dose)
            )
            total = total + (predicted - planned).square().mean()
    return total / len(outputs)


def dose_scores(task: Task, outputs: Tensor, values: Tensor) -> Tensor:
    """Return each patient's mean absolute difference in Gy, where dose is possible: (M,)."""
    (low, high), scores = task.range, []
    for output, plan in zip(outputs[:, 0], plans(values, task), strict=True):
        difference = (output - plan.dose)[plan.possible].abs().sum()
        scores.append(difference / plan.possible.sum().clamp(min=1) * (high - low))
    return torch.stack(scores)


def dvh_differences(task: Task, outputs: Tensor, values: Tensor) -> Tensor:
    """Return the absolute differences in Gy of all metrics of all structures of all patients: (N,)."""
    differences = [torch.zeros(0)]
    for output, plan in zip(outputs[:, 0], plans(values, task), strict=True):
        both = torch.stack([torch.where(plan.possible, output, plan.dose), plan.dose])
        metrics = dvh_metrics(from_units(both, task), plan.structures, plan.tenth)
        differences += [(predicted - planned).abs()[None] for predicted, planned in metrics.values()]
    return torch.cat(differences)


def _curvature_factor(outputs: Tensor, values: Tensor, task: Task) -> Tensor:
    """Return the curvature factor of a regression where dose is possible, for all losses (our design)."""
    possible = values[:, :1] >= 0
    count = possible.flatten(1).sum(1).clamp(min=1).reshape(-1, *(1,) * (outputs.ndim - 1))
    return random_signs(outputs) * possible / count.sqrt()


def in_gray(values: Tensor, task: Task) -> Tensor:
    """Return the dose (M, *S) float16 in Gy, NaN where no dose is possible."""
    steps = values[:, 0]
    return torch.where(steps >= 0, from_units(steps / STEPS, task), torch.nan).half()


KIND = Kind(
    read=read_dose,
    class_counts=_class_counts,
    losses={"l1": partial(voxel_loss, "l1"), "mse": partial(voxel_loss, "mse"), "dvh": dvh},
    metrics={"dose-score": mean_metric(dose_scores), "dvh-score": mean_metric(dvh_differences)},
    curvature_factor=_curvature_factor,
    # Beyond the edge no dose is possible, there is no structure, and a voxel is as large as elsewhere.
    outside=lambda first: torch.stack([torch.full_like(first[0], -1), torch.zeros_like(first[1]), first[2]]),
    show=lambda outputs, task: from_units(outputs[:, 0], task).half().numpy(),
    show_values=in_gray,
    slice_weights=lambda values, task: values[:, 0].clamp(min=0).sum((2, 3)),
)
