"""Tasks of several kinds with random outputs and labels, and slow references for doses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mtfed.config import Config
from mtfed.data.manifest import SiteData
from mtfed.data.root import Root
from mtfed.data.source import Source
from mtfed.tasks import dose
from mtfed.tasks.task import Task

FINDINGS = Task(name="findings", kind="multi-label", classes=("effusion", "mass", "nodule"))

NUMBERED = Task(name="birads", kind="ordinal", classes=("1", "2", "3", "4"))

GRADE = Task(name="grade", kind="ordinal", classes=("none", "mild", "moderate", "severe"))

AGE = Task(name="age", kind="regression", classes=("age",), range=(0, 120))

AXES = Task(name="axes", kind="regression", classes=("long", "short"), range=(-10, 40))

PARTS = Task(name="parts", kind="multi-label-segmentation", classes=("heart", "lung", "rib"))

DOSE = Task(name="dose", kind="dose", classes=("cord", "Larynx", "PTV70"), range=(0, 80))

TASKS = {task.name: task for task in (FINDINGS, GRADE, AGE, AXES, PARTS, DOSE)}


def config(*tasks: Task) -> Config:
    return Config(tasks={task.name: task for task in tasks}, focal_gamma=1.5)


def trained_by(task: Task, loss: str) -> Task:
    return Task.model_validate(task.model_dump() | {"loss": loss})


def source(root: Path = Path("."), image: str = "p.png", size: int = 8, dimensions: int = 2) -> Source:
    return Source(SiteData("north", Root(root), ()), image, size, dimensions)


def examples(task: Task, images: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = np.random.default_rng(seed)
    classes, shape = len(task.classes), (4, 5)
    channels = {
        "multi-label": (classes,), "ordinal": (classes - 1,), "regression": (classes,),
        "multi-label-segmentation": (classes, *shape), "dose": (1, *shape),
    }[task.kind]  # fmt: skip
    outputs = generator.normal(0.3, 1, (images, *channels))
    if task.kind == "multi-label":
        values = generator.integers(-1, 2, (images, classes))
        values[:, 0] = generator.integers(0, 2, images)  # at least one class of every image is known
    elif task.kind == "ordinal":
        values = generator.integers(0, classes, images)
    elif task.kind == "regression":
        values = generator.uniform(*task.range, (images, classes)).astype(np.float32)
        values[::3, 1:] = np.nan
    elif task.kind == "multi-label-segmentation":
        values = generator.integers(0, 2, (images, classes, *shape))
        values[1::2, 1:] = 255
        values[:3, 0], outputs[1, 0] = 0, -1  # absent: predicted, not predicted, predicted
    else:
        steps = np.where(
            generator.random((images, *shape)) < 0.7, generator.integers(0, dose.STEPS, (images, *shape)), -1
        )
        bits = generator.integers(0, 8, (images, *shape)) & np.where(np.arange(images) % 3, 7, 5)[:, None, None]
        values = np.stack([steps, bits, np.full_like(bits, 3)], axis=1)
    return torch.from_numpy(outputs), torch.from_numpy(values)


def perfect(task: Task, values: Tensor) -> Tensor:
    low, high = task.range or (0, 1)
    return {
        "multi-label": lambda: (values > 0) * 8.0 - 4,
        "ordinal": lambda: (values[:, None] > torch.arange(len(task.classes) - 1)) * 8.0 - 4,
        "regression": lambda: ((values - low) / (high - low)).nan_to_num(),
        "multi-label-segmentation": lambda: (values == 1) * 8.0 - 4,
        "dose": lambda: values[:, :1] / dose.STEPS,
    }[task.kind]()


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def patients(outputs: np.ndarray, values: np.ndarray, task: Task) -> Any:
    """Yield each patient's predicted and planned dose in Gy, where it is possible, and structures, by definition."""
    low, high = task.range
    for output, (steps, bits, tenth) in zip(outputs[:, 0], values, strict=True):
        possible = steps >= 0
        predicted = np.where(possible, output * (high - low) + low, 0)
        planned = np.where(possible, steps / dose.STEPS * (high - low) + low, 0)
        masks = {name: (bits // 2**i) % 2 == 1 for i, name in enumerate(task.classes)}
        yield predicted, planned, possible, {name: mask for name, mask in masks.items() if mask.any()}, tenth.flat[0]


def slow_dvh(gray: np.ndarray, name: str, mask: np.ndarray, tenth: int) -> dict[str, float]:
    """Return the metrics of a structure as the challenge defines them."""
    inside = gray[mask]
    if name.startswith("PTV"):
        return {"D_99": np.percentile(inside, 1), "D_95": np.percentile(inside, 5), "D_1": np.percentile(inside, 99)}
    return {"D_0.1cc": np.percentile(inside, max(0, 100 - tenth / len(inside) * 100)), "mean": np.mean(inside)}


def plan(shape: tuple[int, ...] = (6, 6)) -> dict[str, np.ndarray]:
    """Return a patient's arrays: dose rises along the last axis and is not possible in the first row."""
    possible = np.ones(shape, bool)
    possible[0] = False
    target = np.zeros(shape, bool)
    target[..., shape[-1] // 2 :] = True
    ramp = np.broadcast_to(np.linspace(0, 70, shape[-1]), shape)
    return {"dose": ramp * possible, "possible": possible, "spacing": np.array([3, 2, 2]), "PTV70": target}


def write_arrays(folder: Path, shape: tuple[int, ...], arrays: dict[str, np.ndarray]) -> Source:
    """Write an image of a shape and its arrays; return the image as a source with side 6."""
    if len(shape) == 2:
        Image.fromarray(np.zeros(shape, np.uint8)).save(folder / "p.png")
    else:
        np.save(folder / "p.npy", np.zeros(shape, np.uint8))
    np.savez(folder / "a.npz", **arrays)
    return source(folder, "p.png" if len(shape) == 2 else "p.npy", 6, len(shape))
