"""Build a multi-task model by name."""

from __future__ import annotations

from importlib import import_module

import torch

from ..config import Config, Form
from ..errors import MtfedError, unknown
from ..tasks.task import Task
from .encoders import EncoderSettings
from .normalisation import encoder_normalisation
from .sharing import Sharing
from .specs import INITIAL_BALANCE, MODEL_SPECS
from .system import MultiTaskModel

# Containers that hold an entry for each task as an attribute of the task's name.
_CONTAINERS = (torch.nn.ModuleDict(), torch.nn.ParameterDict())


def build_model(config: Config, *, pretrained: bool = False) -> MultiTaskModel:
    """Build the config's model. The same config gives the same initial weights on the same machine.

    With ``pretrained``, the encoder gets the weights that the config names. Only the server needs to read them, because
    it sends them to the sites. A frozen encoder, which is not sent, always gets them.

    Raises:
        MtfedError: as :func:`assemble`, or if the encoder has no layers for ``layer-decay`` or no mean and deviation
            for ``normalise``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model = assemble(
            config.model,
            config.tasks,
            config.forms,
            encoder=config.encoder,
            weights=config.weights if pretrained or config.is_encoder_frozen else "",
            decoder_width=config.decoder_width,
            balance=INITIAL_BALANCE[config.balancing],
            frozen=config.is_encoder_frozen,
        )
        if config.is_encoder_frozen:
            torch.default_generator.manual_seed(config.seed)  # sources of weights differ in the numbers that they draw
            model.freeze_encoder(config.lora_rank)
    if config.layer_decay < 1 and not model.layers():
        raise MtfedError(
            f"Config key layer-decay: expected an encoder whose layers timm groups, got {config.encoder!r}; set it to "
            "1, or choose another encoder."
        )
    encoder_normalisation(config)
    return model


def scheme_of(name: str) -> type[Sharing]:
    """Return the sharing scheme of a model by the model's name."""
    module, _, scheme = MODEL_SPECS[name].scheme.partition(":")
    return getattr(import_module(module), scheme)


def assemble(
    name: str,
    tasks: dict[str, Task],
    forms: tuple[Form, ...],
    *,
    encoder: str,
    weights: str = "",
    decoder_width: int = 48,
    balance: float = INITIAL_BALANCE["uncertainty"],
    frozen: bool = False,
) -> MultiTaskModel:
    """Return a model by name. Its random initial weights are drawn from torch's default generator.

    Args:
        name: a key of :data:`.specs.MODEL_SPECS`.
        tasks: tasks by name.
        forms: forms of the images that the tasks need, for whose size position embeddings are made.
        encoder: the name of a timm model, or in three dimensions a key of :data:`.volumes.VOLUMES`.
        weights: weights of the encoder, see :mod:`.pretrained`.
        decoder_width: channels of the decoders that output maps.
        balance: initial value of each task's learned number.
        frozen: whether the encoder will be frozen, see :class:`.encoders.EncoderSettings`.

    Raises:
        MtfedError: for an unknown model, a task name that PyTorch reserves, or an encoder that does not fit.
    """
    if name not in MODEL_SPECS:
        raise unknown("model", name, MODEL_SPECS)
    spec = MODEL_SPECS[name]
    for task in tasks:
        if any(hasattr(container, task) for container in _CONTAINERS):
            raise MtfedError(f"Config key task.{task}: PyTorch uses this name itself; choose another.")
    settings = EncoderSettings(encoder, forms, weights, frozen)
    sharing = scheme_of(name).build(settings, tasks, **spec.options)
    model = MultiTaskModel(tasks, sharing, decoder_width, balance)
    if spec.requires_transformer and not sharing.encoder.is_transformer:
        raise MtfedError(
            f"Config key encoder: {name} expects a transformer (a ViT, Swin or PVT), which {encoder} is not; "
            "choose another, or model = 'hard-sharing'."
        )
    return model
