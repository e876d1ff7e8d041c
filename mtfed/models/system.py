"""A multi-task model: a sharing scheme over an encoder, and a decoder for each task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..strategies.wire import decoder_part
from ..tasks.task import Task
from .decoders import DECODERS
from .lora import add_lora, is_lora
from .sharing import Sharing


class MultiTaskModel(nn.Module):
    """A model whose parts are federated separately.

    ``encoder`` is shared by all tasks and ``decoder.TASK`` belongs to one task. ``cross.TASK`` computes a task's
    features but is also evaluated for the other tasks (CTAN). Only one kind of images passes through ``input.NAME``.
    ``balance[t]`` is a learned number of task t, for the balancing rules that learn (:mod:`mtfed.learning.balancing`);
    it is sent with the task's decoder.

    Args:
        tasks: tasks by name.
        sharing: the scheme over the encoder.
        decoder_width: channels of the decoders that output maps.
        balance: initial value of each task's learned number.
    """

    def __init__(self, tasks: dict[str, Task], sharing: Sharing, decoder_width: int, balance: float) -> None:
        super().__init__()
        self._parts: dict[str, dict[str, Tensor]] | None = None
        self.frozen: frozenset[str] = frozenset()
        self.encoder: Any = sharing
        self.decoders = nn.ModuleDict()
        for name, task in tasks.items():
            self.decoders[name] = DECODERS[task.kind][task.decoder](task, sharing.info(name), decoder_width)
        self.balance = nn.ParameterDict({name: nn.Parameter(torch.tensor(balance)) for name in tasks})

    def forward(self, images: Tensor, rows: dict[str, Tensor], words: Tensor | None = None) -> dict[str, Tensor]:
        """Return each task's outputs for its rows of the batch; a task without rows costs nothing.

        For the arguments see :meth:`.sharing.Sharing.forward`.
        """
        features = self.encoder(images, rows, words)
        return {task: self.decoders[task](features[task]) for task in rows}

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of every part by name, parameters and buffers alike; they share the model's memory.

        Frozen tensors belong to no part: they are the same at all sites, and are not sent.
        """
        if self._parts is None:
            parts: dict[str, dict[str, Tensor]] = {}
            for name, tensor in self.state_dict(keep_vars=True).items():
                if name not in self.frozen:
                    parts.setdefault(self.part(name), {})[name] = tensor.detach()
            self._parts = parts
        return self._parts

    def part(self, name: str) -> str:
        """Return the part that a tensor of the state dict belongs to."""
        module, _, rest = name.partition(".")
        return self.encoder.part(rest) if module == "encoder" else decoder_part(rest.partition(".")[0])

    def is_encoder(self, name: str) -> bool:
        """Return whether a tensor of the state dict is the encoder's (:meth:`.sharing.Sharing.is_encoder`)."""
        module, _, rest = name.partition(".")
        return module == "encoder" and self.encoder.is_encoder(rest)

    def layers(self) -> dict[str, int]:
        """Return the layer of each of the encoder's weights by name (:meth:`.sharing.Sharing.layers`)."""
        return {f"encoder.{name}": layer for name, layer in self.encoder.layers().items()}

    def freeze_encoder(self, lora_rank: int = 0) -> None:
        """Freeze the encoder, except low-rank updates of its linear layers if ``lora_rank`` is not 0 (:mod:`.lora`)."""
        if lora_rank:
            add_lora(self, self.is_encoder, lora_rank)
        self.frozen = frozenset(name for name in self.state_dict() if self.is_encoder(name) and not is_lora(name))
        self._parts = None

    def _apply(self, fn: Any, recurse: bool = True) -> MultiTaskModel:
        self._parts = None  # moving the model to another device or dtype replaces its tensors
        return super()._apply(fn, recurse)
