"""How the tasks of a model share an encoder: entirely, not at all, or through attention (:mod:`.mtan`, :mod:`.ctan`).

A scheme returns features of the encoder's own shape for every task, so any decoder fits any scheme.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from ..strategies.wire import DECODER
from ..tasks.task import Task
from .encoders import Encoder, EncoderSettings, FeatureInfo, Features


class Sharing(nn.Module):
    """A sharing scheme: computes the features of each task from an image.

    The encoder's modules become the scheme's under the same names: the encoder's ``body.*`` is the scheme's ``body.*``.
    """

    # Module with named entries -> the kind of part that an entry belongs to: decoder or cross, if it has an entry for
    # each task; input, if it has one for each kind of images (a name of :func:`mtfed.data.image_kinds.image_kinds`).
    owners: ClassVar[Mapping[str, str]] = {}
    _encoder: tuple[Encoder, ...] = ()  # in a tuple, so that PyTorch registers its weights under one name only

    def __init__(self, encoder: Encoder, tasks: Iterable[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self._encoder = (encoder,)
        for name, module in encoder.named_children():
            self.add_module(name, module)

    @classmethod
    def build(cls, settings: EncoderSettings, tasks: Mapping[str, Task], **options: Any) -> Sharing:
        """Return the scheme over as many new encoders as it needs; ``options`` are those of its constructor."""
        return cls(settings.build(), list(tasks), **options)

    @property
    def encoder(self) -> Encoder:
        """Return an encoder whose channels, strides and sizes are those of every task's features."""
        return self._encoder[0]

    def info(self, task: str) -> FeatureInfo:
        """Return the form of the features of a task."""
        return self.encoder.info

    @abstractmethod
    def forward(self, image: Tensor, rows: Mapping[str, Tensor], words: Tensor | None = None) -> dict[str, Features]:
        """Return the features of each task in ``rows``.

        Args:
            image: (B, C, *S), normalised.
            rows: task -> (M,) indices of the images that the task is computed for, ascending and unique. A task that
                is missing costs nothing, unless other tasks attend to it.
            words: (B, 2) indices of each image's modality and body part (:mod:`mtfed.data.vocabulary`), if known.
        """

    def part(self, name: str) -> str:
        """Return the part that a tensor of the scheme's ``state_dict`` belongs to in the federation.

        This is ``encoder``, which all sites share; ``decoder.TASK``, which only sites with the task receive;
        ``cross.TASK``, which all sites receive and only sites with the task train; or ``input.NAME``, which only sites
        with such images receive. The forward pass must use an input part only if such an image is in the batch: without
        a gradient the optimiser leaves it alone, but with a gradient of 0 it decays.
        """
        module, _, rest = name.partition(".")
        if module not in self.owners:
            return "encoder"
        return f"{self.owners[module]}.{rest.partition('.')[0]}"

    def is_encoder(self, name: str) -> bool:
        """Return whether a tensor of the scheme's ``state_dict`` is the encoder's, and not built by the scheme.

        These are the tensors that pretrained weights provide, and that learn at ``encoder-rate``.
        """
        return name.startswith("body.")

    def layers(self) -> dict[str, int]:
        """Return the layer of each of the encoder's weights by name, 0 for the first, which ``layer-decay`` needs.

        Weights of the encoder (:meth:`is_encoder`) that are missing count as those of the last layer.
        """
        return {name: layer for encoder in self._encoder for name, layer in encoder.layers().items()}

    def train(self, mode: bool = True) -> Sharing:
        for encoder in self._encoder:
            encoder.training = mode  # it is not a child module, but its forward runs
        return super().train(mode)


class HardSharing(Sharing):
    """One encoder for all tasks (Caruana, 1997)."""

    def forward(self, image: Tensor, rows: Mapping[str, Tensor], words: Tensor | None = None) -> dict[str, Features]:
        features = self.encoder(image)
        return {t: features if len(index) == len(image) else features.rows(index) for t, index in rows.items()}


class SeparateEncoders(Sharing):
    """Single-task learning: every task has its own encoder, which sees only the images of this task."""

    owners: ClassVar[Mapping[str, str]] = {"own": DECODER}

    def __init__(self, make_encoder: Callable[[], Encoder], tasks: Iterable[str]) -> None:
        nn.Module.__init__(self)  # there is no shared encoder to take modules from
        self.tasks = tuple(tasks)
        self.own = nn.ModuleDict({task: make_encoder() for task in self.tasks})

    @classmethod
    def build(cls, settings: EncoderSettings, tasks: Mapping[str, Task], **options: Any) -> Sharing:
        return cls(settings.build, list(tasks), **options)

    @property
    def encoder(self) -> Encoder:
        return cast(Encoder, self.own[self.tasks[0]])

    def is_encoder(self, name: str) -> bool:
        return True

    def layers(self) -> dict[str, int]:
        encoders = {task: cast(Encoder, encoder) for task, encoder in self.own.items()}
        return {f"own.{task}.{name}": layer for task, own in encoders.items() for name, layer in own.layers().items()}

    def forward(self, image: Tensor, rows: Mapping[str, Tensor], words: Tensor | None = None) -> dict[str, Features]:
        return {task: self.own[task](select_rows(image, index)) for task, index in rows.items()}


def select_rows(x: Tensor, index: Tensor) -> Tensor:
    """Return some rows of a batch, or the batch itself if all are selected; for indices see :meth:`Sharing.forward`."""
    return x if len(index) == len(x) else x[index]


def max_pool_to(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Max-pool maps (B, C, *S) to a coarser size; maps of that size are returned unchanged."""
    if x.shape[2:] == size:
        return x
    return F.adaptive_max_pool2d(x, size) if len(size) == 2 else F.adaptive_max_pool3d(x, size)
