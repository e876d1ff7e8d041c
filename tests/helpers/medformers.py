"""Small Medformers of images and volumes with tasks of many kinds, and their inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from mtfed.config import Form
from mtfed.data.vocabulary import BODY_PARTS, MODALITIES
from mtfed.models.build import assemble
from mtfed.models.medformer import Medformer
from mtfed.models.system import MultiTaskModel
from mtfed.tasks.task import Task

FLAT, CUBE = Form(2, 32), Form(3, 16)
TASKS = {
    "grade": Task(name="grade", kind="classification", classes=("no", "yes"), dimensions=2),  # reads pooled features
    "lungs": Task(name="lungs", kind="segmentation", classes=("outside", "lung"), dimensions=2),  # reads maps
    "nodule": Task(name="nodule", kind="classification", classes=("no", "yes"), dimensions=3),
    "liver": Task(name="liver", kind="segmentation", classes=("outside", "liver"), dimensions=3),
}


def medformer(
    tasks: dict[str, Task] = TASKS, forms: tuple[Form, ...] = (FLAT, CUBE), *, seed: int = 0, noise: bool = True,
    encoder: str = "vit_nano_patch8", weights: str = "", frozen: bool = False,
) -> MultiTaskModel:  # fmt: skip
    """Return a model with noise on its weights, because tensors that begin at zero would hide mistakes."""
    torch.manual_seed(seed)
    settings = {"encoder": encoder, "decoder_width": 8, "weights": weights, "frozen": frozen}
    model = assemble("medformer", tasks, forms, **settings)
    with torch.no_grad():
        for tensor in model.state_dict().values() if noise else ():
            if tensor.is_floating_point():
                tensor += 0.1 * torch.rand(tensor.shape)
    return model


def scheme(model: MultiTaskModel) -> Medformer:
    assert isinstance(model.encoder, Medformer)
    return model.encoder


def images(*size: int, count: int = 3, channels: int = 1) -> Tensor:
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(1))


def words(*names: tuple[str, str]) -> Tensor:
    """Return the indices of each image's modality and body part."""
    modalities, body_parts = list(MODALITIES), list(BODY_PARTS)
    return torch.tensor([[modalities.index(modality), body_parts.index(part)] for modality, part in names])


def rows(**index: list[int]) -> dict[str, Tensor]:
    return {task: torch.tensor(own) for task, own in index.items()}
