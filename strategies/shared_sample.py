"""A fixed sample of the shared weights, and the layer that each of its tensors belongs to.

Of a large tensor, :data:`SAMPLED` numbers are read, in blocks that are spread evenly over it. An inner product of two
updates over a sample, times the size of the tensor relative to it, estimates that of the whole tensors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from math import prod
from types import EllipsisType

import numpy as np
from flwr.app import ArrayRecord

from .wire import input_of, part_of, task_of, tensors_in

SAMPLED = 1 << 15  # numbers that are read of a tensor with more than twice as many; others are read as a whole
BLOCK = 32  # contiguous numbers in a sample: two lines of the processor's cache
STATISTICS = ("running_mean", "running_var")
WRAPPERS = {"encoder", "body"}  # modules that contain the layers
NUMBERED = re.compile(r".*?\.\d+(\.(blocks|layers)\.\d+)?(?=\.)")


def layer_of(name: str) -> str:
    """Return the layer to which a tensor belongs: its numbered block, or the first module inside the encoder.

    >>> [layer_of(f"encoder.body.{name}.weight") for name in ("blocks.3.attn.qkv", "layers.0.blocks.1.norm1", "stem")]
    ['encoder.body.blocks.3', 'encoder.body.layers.0.blocks.1', 'encoder.body.stem']
    """
    if match := NUMBERED.match(name):
        return match[0]
    words = name.split(".")
    depth = next((i for i, word in enumerate(words) if word not in WRAPPERS), 0)
    return ".".join(words[: depth + 1])


@dataclass(frozen=True)
class SampledTensor:
    """A tensor, and the place of the numbers that are read in the vector of all such numbers."""

    key: str
    index: int  # among the tensors of its array
    part: str
    layer: str
    source: slice | EllipsisType  # in the flattened array
    stride: int  # from block to block; 0: the whole tensor is read
    place: slice
    factor: float  # size of the tensor, relative to the numbers that are read

    def read(self, array: np.ndarray) -> np.ndarray:
        """Return the numbers of this tensor in its array, as a view."""
        return self.read_tensor(array.reshape(-1)[self.source])

    def read_tensor(self, tensor: np.ndarray) -> np.ndarray:
        """Return the numbers of the tensor, as a view of one axis, or of (blocks, :data:`BLOCK`)."""
        values, count = tensor.reshape(-1), SAMPLED // BLOCK
        if not self.stride:
            return values
        return values[: count * self.stride].reshape(count, self.stride)[:, :BLOCK]


class SharedSample:
    """The sampled tensors of a record's shared parts, without BatchNorm's statistics and integers."""

    def __init__(self, arrays: ArrayRecord) -> None:
        self.tensors: list[SampledTensor] = []
        self.size = 0
        for key, entries in tensors_in(arrays).items():
            part = part_of(key)
            if task_of(part) or np.dtype(arrays[key].dtype).kind != "f":
                continue
            for index, tensor in enumerate(entries):
                size = prod(tensor.shape)
                if not size or tensor.name.endswith(STATISTICS):
                    continue
                stride, count = (stride_of(size), SAMPLED) if size > 2 * SAMPLED else (0, size)
                place, layer = slice(self.size, self.size + count), _layer(part, tensor.name)
                sampled = SampledTensor(key, index, part, layer, tensor.place, stride, place, size / count)
                self.tensors.append(sampled)
                self.size += count

    @cached_property
    def runs(self) -> list[SampledTensor]:
        """Return the tensors, with adjacent small ones of an array joined, so that there are fewer to handle."""
        runs: list[SampledTensor] = []
        for tensor in self.tensors:
            last = runs[-1] if runs else tensor
            own, before = tensor.source, last.source
            are_whole = last.key == tensor.key and not last.stride and not tensor.stride
            is_small = tensor.place.stop - last.place.start <= SAMPLED
            if (
                is_small
                and are_whole
                and isinstance(own, slice)
                and isinstance(before, slice)
                and own.start == before.stop
            ):
                source, place = slice(before.start, own.stop), slice(last.place.start, tensor.place.stop)
                runs[-1] = SampledTensor(last.key, last.index, last.part, "", source, 0, place, 1.0)
            else:
                runs.append(tensor)
        return runs

    @property
    def layers(self) -> list[tuple[str, str]]:
        """Return the parts and the layers in them, in the order of the tensors."""
        return list(dict.fromkeys((tensor.part, tensor.layer) for tensor in self.tensors))

    def values(self, arrays: ArrayRecord) -> np.ndarray:
        """Return (size,) the numbers that are read, at least in single precision."""
        dtypes = {np.dtype(arrays[run.key].dtype) for run in self.runs}
        values = np.empty(self.size, np.result_type(np.float32, *dtypes))
        for run in self.runs:
            values[run.place] = run.read(arrays[run.key].numpy()).reshape(-1)
        return values


def stride_of(size: int) -> int:
    """Return the distance between the blocks of a tensor; it is odd, so that they do not meet the same columns."""
    stride = size // (SAMPLED // BLOCK)
    return stride - 1 if stride % 2 == 0 else stride


def _layer(part: str, name: str) -> str:
    """Return a tensor's layer. An input part is one: it is the way of one kind of images into the encoder."""
    if input_of(part):
        return part
    return layer_of(name if not part or name.startswith(f"{part}.") else f"{part}.{name}")
