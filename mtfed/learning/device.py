"""The device of a run, and seeds that make training on it reproducible."""

from __future__ import annotations

import zlib
from operator import methodcaller

import torch

from ..data.shard import Batch
from ..errors import MtfedError


def pick_device(name: str) -> torch.device:
    """Return the device of a config; ``auto`` is a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    missing = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available(), "cpu": False}
    if missing[name.partition(":")[0]]:
        raise MtfedError(f"Config key device: {name!r} asks for a GPU, this machine has none; use auto or cpu.")
    return torch.device(name)


def derive_seed(*parts: object) -> int:
    """Return a seed derived from, for example, a run's seed, a site's key and a round; it is the same everywhere."""
    return zlib.crc32("/".join(map(str, parts)).encode())


def seed_device(seed: int, device: torch.device) -> None:
    """Seed the CPU and the device in use.

    On a CPU, the same seed and number of threads give the same bits. On CUDA they give the same batches, dropout and
    initial weights, and convolutions add up in a fixed order. The gradients of interpolation and of some poolings do
    not, so weights agree up to rounding (PyTorch's deterministic mode would refuse such models).

    ``torch.manual_seed`` is not used because it also queues a call, with its stack trace, for every absent kind of
    GPU. That takes milliseconds for each site, and memory that is never freed.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
        torch.backends.cudnn.deterministic = True


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on a device."""
    if device.type == "cpu":
        return batch
    move = methodcaller("to", device)
    labels = {task: own.changed(move(own.rows), move) for task, own in batch.labels.items()}
    return Batch(move(batch.images), labels, None if batch.words is None else move(batch.words))
