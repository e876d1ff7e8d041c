"""A multi-task model: a sharing scheme over an encoder, and a decoder for each task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..strategies.wire import decoder_part
from ..tasks.task import Task
from .decoders import DECODERS
from .encoders import Encoder


class MultiTaskModel(nn.Module):
    """A model whose parts federate by themselves.

    ``encoder`` is what all tasks share, ``decoder.TASK`` what a task has for itself, ``cross.TASK`` what makes a task's
    features but is evaluated for the others' too (CTAN). ``balance[t]`` is a learned number of task t, for balancing
    that learns (:mod:`mtfed.learning.balancing`); it travels with the task's decoder.
    """

    def __init__(
        self,
        tasks: dict[str, Task],
        make_encoder: Callable[[], Encoder],
        share: Callable[[Callable[[], Encoder], list[str]], Any],
        decoder_width: int,
        balance: float,
    ) -> None:
        super().__init__()
        self._parts: dict[str, dict[str, Tensor]] | None = None
        self.encoder: Any = share(make_encoder, list(tasks))
        self.decoders = nn.ModuleDict(
            {
                name: DECODERS[task.kind][task.decoder](task, self.encoder.reads, decoder_width)
                for name, task in tasks.items()
            }
        )
        self.balance = nn.ParameterDict({name: nn.Parameter(torch.tensor(balance)) for name in tasks})

    def forward(self, images: Tensor, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs of each named task for its rows of the batch; a task without rows costs nothing."""
        features = self.encoder(images, rows)
        return {task: self.decoders[task](features[task]) for task in rows}

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of every part by name, parameters and buffers alike, sharing the model's memory."""
        if self._parts is None:
            parts: dict[str, dict[str, Tensor]] = {}
            for name, tensor in self.state_dict(keep_vars=True).items():
                parts.setdefault(self.part(name), {})[name] = tensor.detach()
            self._parts = parts
        return self._parts

    def part(self, name: str) -> str:
        """Return the part that a tensor of the state dict belongs to."""
        kind, _, rest = name.partition(".")
        return self.encoder.part(rest) if kind == "encoder" else decoder_part(rest.partition(".")[0])

    def _apply(self, fn: Any, recurse: bool = True) -> MultiTaskModel:
        self._parts = None  # a move to another device or dtype gives the model other tensors
        return super()._apply(fn, recurse)
