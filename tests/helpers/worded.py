"""A model with input parts: a number for each modality, which is added to the images of the tasks of that modality."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from mtfed.config import RunConfigValue
from mtfed.data.site_file import SITE_FILE, write_site_file
from mtfed.data.vocabulary import MODALITIES
from mtfed.models.encoders import Encoder, Features
from mtfed.models.sharing import HardSharing
from mtfed.models.specs import MODEL_SPECS, ModelSpec, register_model
from mtfed.strategies.wire import INPUT

from .hospitals import keys, write_site

WORDS = {"grade": "ct", "size": "mri"}  # task -> the modality of its images
SITES = {"a": ("grade", "CT"), "b": ("size", "MRI"), "c": ("grade", "CT")}
MODEL = "worded"


class WordedSharing(HardSharing):
    """A shared encoder whose input is the image plus a learned number of its modality and one of its dimensions."""

    owners: ClassVar[Mapping[str, str]] = {"numbers": INPUT}

    def __init__(self, encoder: Encoder, tasks: Iterable[str]) -> None:
        super().__init__(encoder, tasks)
        names = ("2d", "3d", *MODALITIES)
        self.numbers = nn.ParameterDict({name: nn.Parameter(torch.tensor(i / 10)) for i, name in enumerate(names)})

    def forward(self, image: Tensor, rows: Mapping[str, Tensor], words: Tensor | None = None) -> dict[str, Features]:
        own = image.new_zeros(len(image))
        for task, index in rows.items():
            own = own.index_add(0, index, self.numbers[WORDS[task]].expand(len(index)))
        shift = own + self.numbers[f"{image.ndim - 2}d"]
        return super().forward(image + shift.reshape(-1, *(1,) * (image.ndim - 1)), rows)


if MODEL not in MODEL_SPECS:
    register_model(MODEL, ModelSpec("Worded", "hard sharing with input parts", f"{__name__}:WordedSharing"))


def federation(path: Path) -> dict[str, RunConfigValue]:
    """Write three sites with one modality each, and test images of both tasks; return their config.

    The validation images of site c are X-rays, and an image of it that has no label is of PET.
    """
    for seed, (name, (task, modality)) in enumerate(SITES.items()):
        folder = write_site(path / "data" / name, [task], 8, seed=seed)
        write_site_file(folder / SITE_FILE, {"modality": modality, "body-part": "chest"})
    write_site(path / "data" / "test", list(WORDS), 8, seed=9)
    manifest = path / "data" / "c" / "manifest.csv"
    with open(manifest, newline="", encoding="utf-8") as file:
        table = [[*row, "X-ray" if row[2] == "val" else ""] for row in csv.reader(file)]
    table[0][-1] = "modality"
    table.append(["unlabelled.png", "p9", "train", "", "PET"])  # never read
    with open(manifest, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(table)
    return {
        "name": "worded", "data": str(path / "data"), "out": str(path / "runs"), "image-size": 32, "model": MODEL,
        "encoder": "vit_nano_patch8", "decoder-width": 8, "batch-size": 4, "local-steps": 3, "rounds": 1,
        "curvature-samples": 4, **keys(*WORDS),
    }  # fmt: skip
