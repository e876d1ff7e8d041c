"""MTMedFormer: a shared transformer encoder, one decoder a task, and a hybrid loss (Nath, Shukla, Gupta, MBEC 2025).

The paper's details beyond that sentence are not public; encoder, decoders and loss here are our design.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..tasks import Task
from .decoders import DECODERS
from .encoders import Encoder


class MTMedFormer(nn.Module):
    """A multi-task model whose parts federate by themselves: ``encoder``, ``decoder.TASK``.

    ``log_variance[t]`` is the learned uncertainty of task t (Kendall, Gal, Cipolla, CVPR 2018); it travels with the
    task's decoder.
    """

    def __init__(
        self, tasks: dict[str, Task], *, encoder: str, image_size: int, channels: int, decoder_width: int
    ) -> None:
        super().__init__()
        self._parts: dict[str, dict[str, Tensor]] | None = None
        self.encoder = Encoder(encoder, image_size, channels)
        self.decoders = nn.ModuleDict(
            {name: DECODERS[task.kind](task, self.encoder, decoder_width) for name, task in tasks.items()}
        )
        self.log_variance = nn.ParameterDict({name: nn.Parameter(torch.tensor(-0.5)) for name in tasks})

    def forward(self, images: Tensor, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs of each named task for its rows of the batch; a task without rows costs nothing."""
        features = self.encoder(images)
        return {
            task: self.decoders[task](features if len(index) == len(images) else features.rows(index))
            for task, index in rows.items()
        }

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of every part by name, parameters and buffers alike, sharing the model's memory."""
        if self._parts is None:
            parts: dict[str, dict[str, Tensor]] = {"encoder": {}}
            parts |= {f"decoder.{task}": {} for task in self.decoders}
            for name, tensor in self.state_dict(keep_vars=True).items():
                kind, _, rest = name.partition(".")
                parts["encoder" if kind == "encoder" else "decoder." + rest.partition(".")[0]][name] = tensor.detach()
            self._parts = parts
        return self._parts

    def _apply(self, fn: Any, recurse: bool = True) -> MTMedFormer:
        self._parts = None  # a move to another device or dtype gives the model other tensors
        return super()._apply(fn, recurse)
