"""What may enter a merge: an update is refused alone, by name, and the round goes on without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, Message

from .wire import MANIFEST


@dataclass(frozen=True)
class Update:
    """One site's answer to a training message.

    ``arrays`` maps a key of the record that was sent to the trained values; ``counts`` maps a task to the labelled
    samples it was trained on; ``num_examples`` counts images, whatever labels they carry.
    """

    site: str
    arrays: dict[str, np.ndarray]
    num_examples: float
    counts: dict[str, float]


def read_update(site: str, reply: Message, sent: Mapping[str, Array]) -> Update:
    """Read and check an update against the arrays that were sent to its site; raise ``ValueError`` to refuse it."""
    if "arrays" not in reply.content or "metrics" not in reply.content:
        raise ValueError("expected records 'arrays' and 'metrics' in the reply, got " + ", ".join(reply.content))
    metrics = dict(reply.content["metrics"])
    counts = {
        name.removeprefix("num-examples."): _count(name, value)
        for name, value in metrics.items()
        if name.startswith("num-examples.")
    }
    arrays = {}
    for key, array in reply.content["arrays"].items():
        if key == MANIFEST:
            if array.numpy().tobytes() != sent[MANIFEST].numpy().tobytes():
                raise ValueError("its tensors are laid out differently from those it was sent")
            continue
        if key not in sent:
            raise ValueError(f"it holds {key!r}, which it was not sent")
        values, reference = array.numpy(), sent[key]
        if values.shape != tuple(reference.shape) or str(values.dtype) != reference.dtype:
            raise ValueError(
                f"{key!r} should be {reference.dtype}{list(reference.shape)}, it is {values.dtype}{list(values.shape)}"
            )
        # A sum is finite only if its terms are; float64 cannot overflow on finite float32 terms.
        if values.dtype.kind == "f" and not (np.isfinite(values.sum(dtype=np.float64)) or np.isfinite(values).all()):
            raise ValueError(f"{key!r} holds values that are not finite; its training diverged")
        arrays[key] = values
    if not arrays:
        raise ValueError("it holds no arrays")
    return Update(site, arrays, _count("num-examples", metrics.get("num-examples", 1)), counts)


def _count(name: str, value: object) -> float:
    if not isinstance(value, (int, float)) or not np.isfinite(value) or value < 0:
        raise ValueError(f"{name} should be a number of samples, it is {value!r}")
    return float(value)
