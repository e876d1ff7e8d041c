"""Decode the images and labels of a manifest into the arrays of a :class:`.store.Store`, on all cores."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
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
from .store import FAULTS, SITE, Decoded, Store

CHUNK = 2**18  # values of the images that a thread decodes at a time
SLICES = 32  # times as many values if they are slices of one volume
CHUNKS_AHEAD = 2  # chunks per thread that are decoded before they are needed
MAX_MESSAGE = 300  # characters of a decoder's own message
MakeArray = Callable[[str, tuple[int, ...], np.dtype], np.ndarray]  # name, shape, type -> an array of zeros


def write_store(
    folder: Path, data: SiteData, rows: Sequence[Row], config: Config, digests: np.ndarray, old: Store | None
) -> None:
    """Decode into the files of a folder; raise ``OSError`` if the disk is full."""
    arrays: list[np.memmap] = []

    def make(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        arrays.append(np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape, version=(1, 0)))
        reserve(folder / f"{name}.npy")
        return arrays[-1]

    faults = fill_arrays(data, rows, config, make, digests, old)
    for array in arrays:
        array.flush()
    (folder / FAULTS).write_text(json.dumps(faults), "utf-8")


def decode_store(data: SiteData, rows: Sequence[Row], config: Config) -> Store:
    """Decode into memory."""
    arrays: dict[str, Tensor] = {}

    def make(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        arrays[name] = torch.from_numpy(np.zeros(shape, dtype))
        return arrays[name].numpy()

    faults = fill_arrays(data, rows, config, make, np.zeros((len(rows), 16), np.uint8))
    return Store.of(arrays, faults)


def reserve(path: Path) -> None:
    """Allocate the blocks of a sparse file: writing to a map when the disk is full would kill the process."""
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


def fill_arrays(
    data: SiteData, rows: Sequence[Row], config: Config, make: MakeArray, digests: np.ndarray, old: Store | None = None
) -> dict[int, str]:
    """Decode a site's rows into arrays; rows that an older store contains are copied from it.

    Args:
        rows: the rows to decode, each with a label.
        make: makes the arrays. Apart from these, only the images that are being decoded are in memory.
        digests: (N, 16) uint8, digests of what each row is read from.
        old: another store with the same settings.

    Returns:
        Why images could not be read, by row; :data:`.store.SITE` stands for the site's name.
    """
    count, tasks = len(rows), config.tasks
    images = make("images", (count, config.channels, *(config.image_size,) * config.dimensions), np.dtype(np.uint8))
    sums = make("sums", (count, config.channels, 2), np.dtype(np.int64))
    make("digests", digests.shape, digests.dtype)[:] = digests
    labelled = {name: np.fromiter((name in row.labels for row in rows), bool, count) for name in tasks}
    positions = {
        name: np.where(has, has.cumsum() - 1, -1).astype(np.int32) for name, has in labelled.items() if has.any()
    }
    for name, of_task in positions.items():
        make(f"{name}.positions", (count,), of_task.dtype)[:] = of_task
    fixed: dict[str, np.ndarray] = {}
    ragged: dict[str, dict[int, np.ndarray]] = {}
    faults: dict[int, str] = {}
    for i, decoded in enumerate(decode_rows(data, rows, config, digests, old)):
        if isinstance(decoded, str):
            faults[i] = decoded
            continue
        images[i], labels = decoded
        sums[i] = channel_sums(torch.from_numpy(images[i]))
        for name, label in labels.items():
            position = int(positions[name][i])
            if kind_of(tasks[name]).stack is not np.stack:
                ragged.setdefault(name, {})[position] = label
                continue
            if name not in fixed:
                fixed[name] = make(f"{name}.values", (int(labelled[name].sum()), *label.shape), label.dtype)
            fixed[name][position] = label
    for name, by_position in ragged.items():  # boxes and the like, which are small
        empty = next(iter(by_position.values()))[:0]
        every = [by_position.get(position, empty) for position in range(int(labelled[name].sum()))]
        stacked = kind_of(tasks[name]).stack(every)
        make(f"{name}.values", stacked.shape, stacked.dtype)[:] = stacked
        make(f"{name}.lengths", (len(every),), np.dtype(np.int64))[:] = [len(label) for label in every]
    return faults


def decode_rows(
    data: SiteData, rows: Sequence[Row], config: Config, digests: np.ndarray, old: Store | None
) -> Iterator[Decoded | str]:
    """Yield the image and labels of each row in order, or why they cannot be read."""
    data = replace(data, key=SITE)
    known = {} if old is None else {d.tobytes(): i for i, d in enumerate(old.digests.numpy()) if i not in old.faults}

    def decode_chunk(chunk: range) -> list[Decoded | str]:
        copies = [(i, known.get(digests[i].tobytes())) for i in chunk]
        return [decode_row(data, rows[i], config) if k is None or old is None else old.row(k) for i, k in copies]

    def decode_in_threads() -> Iterator[Decoded | str]:
        chunks = chunk_rows(rows, max(1, CHUNK // (config.channels * config.image_size**config.dimensions)))
        yield from decode_chunk(next(chunks))  # the readers' imports must precede the threads
        threads = usable_cores()
        waiting: deque[Future[list[Decoded | str]]] = deque()
        with ThreadPoolExecutor(threads) as pool:
            for chunk in chunks:
                waiting.append(pool.submit(decode_chunk, chunk))
                if len(waiting) > CHUNKS_AHEAD * threads:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()

    return counted(decode_in_threads() if rows else iter(()), len(rows), f"decoding {data.root.path.name}")


def chunk_rows(rows: Sequence[Row], min_rows: int) -> Iterator[range]:
    """Yield ranges of at least ``min_rows`` rows; slices of a volume stay together, as a thread caches its volume."""
    start = 0
    for i in range(1, len(rows) + 1):
        same_file = i < len(rows) and file_of(rows[i].image) == file_of(rows[start].image)
        if i == len(rows) or i - start >= (SLICES if same_file else 1) * min_rows:
            yield range(start, i)
            start = i


def decode_row(data: SiteData, row: Row, config: Config) -> Decoded | str:
    """Return an image and its labels, or in one sentence why they cannot be read, whatever a decoder raises."""
    try:
        source = Source(data, row.image, config.image_size, config.dimensions, config.window_ends, config.proportions)
        pixels = source.pixels(config.channels)
        tasks = {name: config.tasks[name] for name in row.labels}
        return pixels, {name: kind_of(task).read(row.labels[name], task, source) for name, task in tasks.items()}
    except MtfedError as error:
        return str(error)
    except Exception as error:  # decoders raise all kinds of them
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:MAX_MESSAGE].rstrip(".: ")
        return f"Cannot read image {row.image} of site {data.key} or its labels: {reason}; repair or remove it."


def channel_sums(image: Tensor) -> Tensor:
    """Return the sums (C, 2) int64 of an image's values and of their squares in each channel."""
    values = image.flatten(1)
    return torch.stack([values.sum(1), values.int().square().sum(1)], 1)
