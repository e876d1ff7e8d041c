"""Decoded images and labels of a manifest, as tensors in memory or over files.

A store of N images consists of these arrays:

* ``images`` (N, C, S, S[, S]) uint8; a row of zeros for an image that could not be read,
* ``sums`` (N, C, 2) int64: sums of each image's values and of their squares,
* ``digests`` (N, 16) uint8: digests of everything that an image and its labels were read from,
* for each task, ``TASK.positions`` (N,) int32: the index of the image's label among the task's labels, or -1,
* ``TASK.values`` (M, ...): the labels,
* ``TASK.lengths`` (M,): lengths of the labels, if they differ; shorter ones are padded.

In a folder, an array is the file ``NAME.npy``; ``faults.json`` contains the reasons why images could not be read.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FAULTS = "faults.json"
SITE = "\0"  # stands for the site's name in the text of a fault, because several sites may share a store
Decoded = tuple[np.ndarray, dict[str, np.ndarray]]  # an image (C, S, S[, S]) uint8, and its labels by task


@dataclass(frozen=True)
class StoredLabels:
    """The labels of one task, see above; ``lengths`` is ``None`` if all labels have the same shape."""

    positions: Tensor
    values: Tensor
    lengths: Tensor | None

    def take(self, index: Tensor) -> Tensor:
        """Return some labels (M, ...), padded to the longest of them."""
        values = self.values.index_select(0, index)
        return values if self.lengths is None else values[:, : int(self.lengths[index].max())].contiguous()


@dataclass(frozen=True)
class Store:
    """Decoded images and labels. Tensors over files are private: changes to them are not written to the files."""

    images: Tensor
    sums: Tensor
    digests: Tensor
    labels: dict[str, StoredLabels]
    faults: dict[int, str]
    logged: set[int] = field(default_factory=set)  # faults that this process has logged

    @classmethod
    def of(cls, arrays: dict[str, Tensor], faults: dict[int, str]) -> Store:
        """Return the store of arrays by name."""
        labels = {
            task: StoredLabels(arrays[f"{task}.positions"], values, arrays.get(f"{task}.lengths"))
            for name, values in arrays.items()
            if (task := name.removesuffix(".values")) != name
        }
        return cls(arrays["images"], arrays["sums"], arrays["digests"], labels, faults)

    @classmethod
    def read(cls, folder: Path) -> Store | None:
        """Return the store in a folder as maps of its files; ``None`` if there is none, or if it is broken."""
        try:
            faults = {int(i): str(reason) for i, reason in json.loads((folder / FAULTS).read_text("utf-8")).items()}
            return cls.of({path.stem: map_array(path) for path in folder.glob("*.npy")}, faults)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):  # torch raises RuntimeError
            return None

    def row(self, i: int) -> Decoded:
        """Return the image and the labels of a row."""
        labels = {}
        for task, stored in self.labels.items():
            if (position := int(stored.positions[i])) >= 0:
                labels[task] = stored.values[position].numpy()
                if stored.lengths is not None:
                    labels[task] = labels[task][: stored.lengths[position]]
        return self.images[i].numpy(), labels


def map_array(path: Path) -> Tensor:
    """Return the array of an ``.npy`` file as a tensor over the file, which is read when it is used.

    Unlike a map by numpy it keeps no file open: a process may have the maps of a thousand sites.
    """
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        start, size = file.tell(), os.fstat(file.fileno()).st_size
    torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
    length = int(np.prod(shape)) * dtype.itemsize
    if fortran_order or size != start + length:
        raise ValueError(f"{path} is cut off")
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[start:].view(torch_dtype).view(shape)
