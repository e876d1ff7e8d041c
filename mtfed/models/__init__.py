"""The multi-task models by name: which sharing scheme, over which encoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..config import Config
from ..errors import MtfedError, unknown
from ..learning.balancing import INITIAL
from ..tasks.task import Task
from .ctan import CrossTaskAttention
from .encoders import Encoder
from .mtan import TaskAttention
from .sharing import HardSharing, SeparateEncoders
from .system import MultiTaskModel

__all__ = ["MODELS", "MultiTaskModel", "assemble", "build_model"]


@dataclass(frozen=True)
class ModelSpec:
    """How a model shares features between its tasks, and what it wants of its encoder."""

    share: Callable[[Callable[[], Encoder], list[str]], Any]
    transformer: bool = False  # whether the encoder must be one


# What keeps one entry a task, as an attribute of the task's name.
HOLDERS = (torch.nn.ModuleDict(), torch.nn.ParameterDict())


def _over_one(scheme: Callable[..., Any], **options: bool) -> Callable[[Callable[[], Encoder], list[str]], Any]:
    return lambda make_encoder, tasks: scheme(make_encoder(), tasks, **options)


MODELS = {
    "mtmedformer": ModelSpec(_over_one(HardSharing), transformer=True),
    "hard-sharing": ModelSpec(_over_one(HardSharing)),
    "single-task": ModelSpec(SeparateEncoders),
    "mtan": ModelSpec(_over_one(TaskAttention)),
    "ctan": ModelSpec(_over_one(CrossTaskAttention)),
    "ctan-encoder": ModelSpec(_over_one(CrossTaskAttention, at_bottleneck=False)),
    "ctan-bottleneck": ModelSpec(_over_one(CrossTaskAttention, in_encoder=False)),
}


def assemble(
    name: str,
    tasks: dict[str, Task],
    *,
    encoder: str,
    image_size: int,
    channels: int = 1,
    dimensions: int = 2,
    weights: str = "",
    decoder_width: int = 48,
    balance: float = INITIAL["uncertainty"],
) -> MultiTaskModel:
    """Return a model by name, its random initial weights from torch's default generator.

    Args:
        name: a key of :data:`MODELS`.
        tasks: by name.
        encoder: a timm model by name, or in three dimensions one of :mod:`.volumes`.
        image_size: side of the square or cube that position embeddings are made for, in pixels.
        channels: 1 or 3.
        dimensions: 2 or 3.
        weights: of the encoder, see :mod:`.pretrained`.
        decoder_width: channels of decoders that draw.
        balance: initial value of each task's learned number.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    row = MODELS[name]
    for task in tasks:
        if any(hasattr(holder, task) for holder in HOLDERS):
            raise MtfedError(f"Config key task.{task}: PyTorch has a use for this name of its own; choose another.")
    make_encoder = partial(Encoder, encoder, image_size, channels, dimensions, weights)
    model = MultiTaskModel(tasks, make_encoder, row.share, decoder_width, balance)
    if row.transformer and not model.encoder.reads.is_transformer:
        raise MtfedError(
            f"Config key encoder: {name} wants a transformer (a ViT, Swin or PVT), {encoder} is none; choose "
            "another, or model = 'hard-sharing'."
        )
    return model


def build_model(config: Config, *, pretrained: bool = False) -> MultiTaskModel:
    """Build the config's model; the same config gives the same initial weights on the same machine.

    ``pretrained`` reads the encoder's weights that the config names: only the server has to, sites are sent them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return assemble(
            config.model,
            config.tasks,
            encoder=config.encoder,
            image_size=config.image_size,
            channels=config.channels,
            dimensions=config.dimensions,
            weights=config.weights if pretrained else "",
            decoder_width=config.decoder_width,
            balance=INITIAL[config.balancing],
        )
