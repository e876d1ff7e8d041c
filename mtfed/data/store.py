"""The images and labels of a manifest as a model sees them: decoded once, into arrays that may be files.

A store's arrays, of N images: ``images`` (N, C, S, S[, S]) uint8; ``sums`` (N, C, 2) int64, of an image's values and of
their squares; ``digests`` (N, 16) uint8, of all that an image and its labels were read from; and for each task
``TASK.places`` (N,) int32, where among the task's labels an image's lies, or -1, ``TASK.values`` (M, ...), and, where
labels differ in length, ``TASK.lengths`` (M,). As files they are ``NAME.npy``, beside ``faults.json``, which says of
the images that could not be read why not; such an image has a row of zeros.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..cores import usable_cores
from ..errors import MtfedError
from ..progress import counted
from ..tasks.kind import kind_of
from .formats import file_of
from .manifest import Row, SiteData
from .source import Source

FAULTS = "faults.json"
SITE = "\0"  # in a kept sentence: the site that reads it, as several may divide a store among them
CHUNK = 2**18  # values of the images that a thread is given at once
SLICES = 32  # times as many of one volume
AHEAD = 2  # such chunks a thread that are decoded before they are asked for
LONGEST = 300  # characters of a decoder's own words
Decoded = tuple[np.ndarray, dict[str, np.ndarray]]  # an image (C, S, S[, S]) uint8 and its labels by task
Make = Callable[[str, tuple[int, ...], np.dtype], np.ndarray]  # an array's name, shape and type -> it, of zeros


@dataclass(frozen=True)
class Column:
    """The labels of one task, see above; ``lengths`` is ``None`` where all have one shape."""

    places: Tensor
    values: Tensor
    lengths: Tensor | None

    def take(self, places: Tensor) -> Tensor:
        """Return some labels (M, ...), padded as far as these need it."""
        found = self.values.index_select(0, places)
        return found if self.lengths is None else found[:, : int(self.lengths[places].max())].contiguous()


@dataclass(frozen=True)
class Store:
    """Decoded images and labels; tensors that are mapped files are private: what is written to them is not kept."""

    images: Tensor
    sums: Tensor
    digests: Tensor
    columns: dict[str, Column]
    faults: dict[int, str]
    told: set[int] = field(default_factory=set)  # faults that the log of this process has

    @classmethod
    def of(cls, arrays: dict[str, Tensor], faults: dict[int, str]) -> Store:
        """Return the store of arrays by name."""
        columns = {
            task: Column(arrays[f"{task}.places"], values, arrays.get(f"{task}.lengths"))
            for name, values in arrays.items()
            if (task := name.removesuffix(".values")) != name
        }
        return cls(arrays["images"], arrays["sums"], arrays["digests"], columns, faults)

    @classmethod
    def read(cls, folder: Path) -> Store | None:
        """Return the store in a folder, as maps of its files; ``None`` if there is none, or a broken one."""
        try:
            faults = {int(i): str(told) for i, told in json.loads((folder / FAULTS).read_text("utf-8")).items()}
            return cls.of({path.stem: mapped(path) for path in folder.glob("*.npy")}, faults)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):  # the last is torch's
            return None

    def row(self, i: int) -> Decoded:
        """Return what was decoded of an image."""
        labels = {}
        for task, column in self.columns.items():
            if (place := int(column.places[i])) >= 0:
                labels[task] = column.values[place].numpy()
                if column.lengths is not None:
                    labels[task] = labels[task][: column.lengths[place]]
        return self.images[i].numpy(), labels


def mapped(path: Path) -> Tensor:
    """Return the array of an ``.npy`` file as a tensor over the file, of which nothing is read yet.

    Unlike numpy's map it keeps no file open: a process may hold the maps of a thousand sites.
    """
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
        start, size = file.tell(), os.fstat(file.fileno()).st_size
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    length = int(np.prod(shape)) * dtype.itemsize
    if by_column or size != start + length:
        raise ValueError(f"{path} is cut off")
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[start:].view(kind).view(shape)


def write(
    folder: Path, data: SiteData, rows: Sequence[Row], config: Config, digests: np.ndarray, old: Store | None
) -> None:
    """Decode into the files of a folder, straight to the disk; raise ``OSError`` where it has no room."""
    made: list[np.memmap] = []

    def make(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        made.append(np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape, version=(1, 0)))
        reserve(folder / f"{name}.npy")
        return made[-1]

    faults = fill(data, rows, config, make, digests, old)
    for array in made:
        array.flush()
    (folder / FAULTS).write_text(json.dumps(faults), "utf-8")


def decode(data: SiteData, rows: Sequence[Row], config: Config) -> Store:
    """Decode into memory."""
    arrays: dict[str, Tensor] = {}

    def make(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        arrays[name] = torch.from_numpy(np.zeros(shape, dtype))
        return arrays[name].numpy()

    faults = fill(data, rows, config, make, np.zeros((len(rows), 16), np.uint8))
    return Store.of(arrays, faults)


def reserve(path: Path) -> None:
    """Take the room that a file of holes needs: a full disk, met through a map, would end the process."""
    size = path.stat().st_size
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
            else:
                return
    if shutil.disk_usage(path.parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill(
    data: SiteData, rows: Sequence[Row], config: Config, make: Make, digests: np.ndarray, old: Store | None = None
) -> dict[int, str]:
    """Decode a site's rows into arrays, over all cores; what an older store has of them is taken from there.

    Args:
        data: where the files are.
        rows: those to decode, each with a label.
        config: of the run.
        make: makes the arrays; of the images' memory, only those being decoded are held.
        digests: (N, 16) uint8, of what the rows are read from.
        old: another store of the same settings.

    Returns:
        Why images could not be read, by row; :data:`SITE` stands for the site's name.
    """
    count, tasks = len(rows), config.tasks
    images = make("images", (count, config.channels, *(config.image_size,) * config.dimensions), np.dtype(np.uint8))
    sums = make("sums", (count, config.channels, 2), np.dtype(np.int64))
    make("digests", digests.shape, digests.dtype)[:] = digests
    held = {name: np.fromiter((name in row.labels for row in rows), bool, count) for name in tasks}
    places = {name: np.where(has, has.cumsum() - 1, -1).astype(np.int32) for name, has in held.items() if has.any()}
    for name, places_of in places.items():
        make(f"{name}.places", (count,), places_of.dtype)[:] = places_of
    fixed: dict[str, np.ndarray] = {}
    ragged: dict[str, dict[int, np.ndarray]] = {}
    faults: dict[int, str] = {}
    for i, found in enumerate(decoded(data, rows, config, digests, old)):
        if isinstance(found, str):
            faults[i] = found
            continue
        images[i], labels = found
        sums[i] = sums_of(torch.from_numpy(images[i]))
        for name, label in labels.items():
            place = int(places[name][i])
            if kind_of(tasks[name]).stack is not np.stack:
                ragged.setdefault(name, {})[place] = label
                continue
            if name not in fixed:
                fixed[name] = make(f"{name}.values", (int(held[name].sum()), *label.shape), label.dtype)
            fixed[name][place] = label
    for name, found_of in ragged.items():  # boxes and the like, which are small
        none = next(iter(found_of.values()))[:0]
        every = [found_of.get(place, none) for place in range(int(held[name].sum()))]
        stacked = kind_of(tasks[name]).stack(every)
        make(f"{name}.values", stacked.shape, stacked.dtype)[:] = stacked
        make(f"{name}.lengths", (len(every),), np.dtype(np.int64))[:] = [len(label) for label in every]
    return faults


def decoded(
    data: SiteData, rows: Sequence[Row], config: Config, digests: np.ndarray, old: Store | None
) -> Iterator[Decoded | str]:
    """Yield what becomes of each row, in order: image and labels, or why they cannot be read."""
    data = replace(data, key=SITE)
    known = {} if old is None else {d.tobytes(): i for i, d in enumerate(old.digests.numpy()) if i not in old.faults}

    def one(i: int) -> Decoded | str:
        place = known.get(digests[i].tobytes()) if known else None
        return decode_row(data, rows[i], config) if place is None or old is None else old.row(place)

    def several(chunk: range) -> list[Decoded | str]:
        return [one(i) for i in chunk]

    def through_threads() -> Iterator[Decoded | str]:
        work = chunks(rows, max(1, CHUNK // (config.channels * config.image_size**config.dimensions)))
        yield from several(next(work))  # alone: what its readers import is to be imported before there are threads
        threads = usable_cores()
        waiting: deque[Future[list[Decoded | str]]] = deque()
        with ThreadPoolExecutor(threads) as pool:
            for chunk in work:
                waiting.append(pool.submit(several, chunk))
                if len(waiting) > AHEAD * threads:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()

    return counted(through_threads() if rows else iter(()), len(rows), f"decoding {data.root.path.name}")


def chunks(rows: Sequence[Row], least: int) -> Iterator[range]:
    """Yield ranges of at least so many rows: those of one volume's slices together, as a thread keeps the volume."""
    start = 0
    for i in range(1, len(rows) + 1):
        together = i < len(rows) and file_of(rows[i].image) == file_of(rows[start].image)
        if i == len(rows) or i - start >= (SLICES if together else 1) * least:
            yield range(start, i)
            start = i


def decode_row(data: SiteData, row: Row, config: Config) -> Decoded | str:
    """Return an image and its labels, or why they cannot be read: of whatever a decoder raises, it is a sentence."""
    try:
        source = Source(data, row.image, config.image_size, config.dimensions, config.window_ends, config.proportions)
        pixels = source.pixels(config.channels)
        tasks = {name: config.tasks[name] for name in row.labels}
        return pixels, {name: kind_of(task).read(row.labels[name], task, source) for name, task in tasks.items()}
    except MtfedError as error:
        return str(error)
    except Exception as error:  # of as many kinds as there are ways to be broken
        told = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST].rstrip(".: ")
        return f"Cannot read image {row.image} of site {data.key} or its labels: {told}; mend or remove it."


def sums_of(image: Tensor) -> Tensor:
    """Return the sums (C, 2) int64 of an image's values and of their squares, channel by channel."""
    values = image.flatten(1)
    return torch.stack([values.sum(1), values.int().square().sum(1)], 1)
