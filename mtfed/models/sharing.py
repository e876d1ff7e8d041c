"""How the tasks of a model share an encoder: wholly, not at all, or through attention (:mod:`.mtan`, :mod:`.ctan`).

A scheme gives every task features of the encoder's own shape, so a decoder fits them all.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from ..strategies.wire import DECODER, task_part
from .encoders import Encoder, Features

MAX_POOLS: dict[int, Callable[[Tensor, tuple[int, ...]], Tensor]] = {
    2: F.adaptive_max_pool2d,
    3: F.adaptive_max_pool3d,
}


class Sharing(nn.Module):
    """A sharing scheme: what makes of an image the features of each task.

    The modules of the encoder keep their names in it: ``body.*`` in the scheme is ``body.*`` of the encoder.

    Args:
        encoder: its modules become the scheme's.
        tasks: names of all tasks of the model.
    """

    owners: ClassVar[Mapping[str, str]] = {}  # module that holds one entry a task -> the kind of part these make

    def __init__(self, encoder: Encoder, tasks: Iterable[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self._reads = (encoder,)  # in a tuple, so that its weights have one name each
        for name, module in encoder.named_children():
            self.add_module(name, module)

    @property
    def reads(self) -> Encoder:
        """Return an encoder whose channels, strides and sizes are those of every task's features."""
        return self._reads[0]

    @abstractmethod
    def forward(self, image: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Features]:
        """Return the features of each named task.

        Args:
            image: (B, C, *S), normalised.
            rows: task -> (M,) which images of the batch it is wanted for, in ascending order, each once. A task that
                is not named costs nothing, unless others attend to it.
        """

    def part(self, name: str) -> str:
        """Return the part that a tensor of the scheme's ``state_dict`` federates with.

        That is ``encoder``, which all sites share; ``decoder.TASK``, which only sites with the task are sent; or
        ``cross.TASK``, which all are sent and only sites with the task train.
        """
        module, _, rest = name.partition(".")
        return task_part(self.owners[module], rest.partition(".")[0]) if module in self.owners else "encoder"

    def train(self, mode: bool = True) -> Sharing:
        self.reads.training = mode  # no child of ours, but it runs its own forward
        return super().train(mode)


class HardSharing(Sharing):
    """One encoder for all tasks (Caruana, 1997)."""

    def forward(self, image: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Features]:
        features = self.reads(image)
        return {t: features if len(index) == len(image) else features.rows(index) for t, index in rows.items()}


class SeparateEncoders(Sharing):
    """Single-task learning: an encoder of its own for every task; each sees the images of its task only.

    Args:
        make_encoder: called once a task.
        tasks: names of all tasks of the model.
    """

    owners: ClassVar[Mapping[str, str]] = {"own": DECODER}

    def __init__(self, make_encoder: Callable[[], Encoder], tasks: Iterable[str]) -> None:
        nn.Module.__init__(self)  # there is no shared encoder to take modules from
        self.tasks = tuple(tasks)
        self.own = nn.ModuleDict({task: make_encoder() for task in self.tasks})

    @property
    def reads(self) -> Encoder:
        return cast(Encoder, self.own[self.tasks[0]])

    def forward(self, image: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Features]:
        return {task: self.own[task](taken(image, index)) for task, index in rows.items()}


def taken(x: Tensor, index: Tensor) -> Tensor:
    """Return some rows of a batch, or the batch itself where all are wanted; see :meth:`Sharing.forward`."""
    return x if len(index) == len(x) else x[index]


def max_pool_to(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Max-pool maps (B, C, *S) to a coarser size; those of that size pass as they are."""
    return x if x.shape[2:] == size else MAX_POOLS[len(size)](x, size)
