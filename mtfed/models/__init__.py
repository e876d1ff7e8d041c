"""The multi-task models by name."""

from __future__ import annotations

import torch

from ..config import Config
from ..errors import MtfedError, unknown
from .mtmedformer import MTMedFormer

MODELS = {"mtmedformer": MTMedFormer}


def build_model(config: Config) -> MTMedFormer:
    """Build the config's model; the same config gives the same initial weights on the same machine."""
    if config.model not in MODELS:
        raise unknown("model", config.model, MODELS)
    for task in config.tasks:
        if hasattr(torch.nn.ModuleDict, task) or task in {"training"}:
            raise MtfedError(f"Config key task.{task}: PyTorch has a use for this name of its own; choose another.")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return MODELS[config.model](
            config.tasks,
            encoder=config.encoder,
            image_size=config.image_size,
            channels=config.channels,
            decoder_width=config.decoder_width,
        )
