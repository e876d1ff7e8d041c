"""Read and check updates: a faulty one is refused with its site's name, and the round continues without it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord

from .precision import Precision, read_precision
from .sites import MAX_SAMPLES, SiteCard
from .wire import MANIFEST, is_packed, part_of, record_in, values_of

MAX_VALUE = 1e10  # a variance of 16-bit pixels is 1e9; products of the squares of larger values overflow


@dataclass(frozen=True)
class Update:
    """One site's reply to a training message.

    ``arrays`` maps a key of the record that was sent to the trained values; ``counts`` maps a task to the number of
    labelled samples it was trained on; ``num_examples`` is the number of images, whatever their labels; ``precision``
    maps a key of ``arrays`` to the precision of these values, if the site's app sends it; ``pulled`` is true if the
    site trained under the pull that the strategy sent.
    """

    site: str
    arrays: dict[str, np.ndarray]
    num_examples: float
    counts: dict[str, float]
    precision: dict[str, Precision] = field(default_factory=dict)
    pulled: bool = False


def read_update(site: SiteCard, reply: Message, sent: ArrayRecord) -> Update:
    """Read a reply, and check it against the arrays that its site was sent.

    A part may be missing, but one that is there must be complete.

    Raises:
        ValueError: with the reason, if the update has to be refused.
    """
    trained = record_in(reply.content, "arrays", ArrayRecord)
    metrics = record_in(reply.content, "metrics", MetricRecord)
    if trained is None or metrics is None:
        raise ValueError("expected records 'arrays' and 'metrics' in the reply, got " + ", ".join(reply.content))
    num_examples, counts = _read_counts(site, metrics)
    arrays = _read_arrays(trained, sent)
    record = record_in(reply.content, "precision", ArrayRecord)
    precision = read_precision(record, arrays) if record is not None else {}
    return Update(site.key, arrays, num_examples, counts, precision, bool(metrics.get("pulled", 0)))


def _read_counts(site: SiteCard, metrics: MetricRecord) -> tuple[float, dict[str, float]]:
    prefix = "num-examples."
    counts = {name.removeprefix(prefix): _read_count(name, n) for name, n in metrics.items() if name.startswith(prefix)}
    num_examples = _read_count("num-examples", metrics.get("num-examples", 1))
    if not num_examples:
        raise ValueError("it was trained on no samples: its num-examples is 0")
    if site.counts:  # a count is a weight in the merge, so it may not exceed what the site reported on joining
        for task, count in counts.items():
            if count > (joined := site.train_count(task)):
                raise ValueError(f"it reports {count:g} samples of {task}, on joining it reported {joined:g}")
        joined = sum(count for name, count in site.counts.items() if name.startswith("train."))
        if num_examples > joined:
            raise ValueError(f"it reports {num_examples:g} samples, on joining it reported {joined:g}")
    return num_examples, counts


def _read_count(name: str, value: object) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value <= MAX_SAMPLES:
        raise ValueError(f"{name} should be a number of samples up to {MAX_SAMPLES:g}, it is {value!r}")
    return float(value)


def _read_arrays(trained: ArrayRecord, sent: ArrayRecord) -> dict[str, np.ndarray]:
    arrays = {}
    for key, array in trained.items():
        if key not in sent:
            raise ValueError(f"it contains {key!r}, which it was not sent")
        if key == MANIFEST:
            if values_of(key, array).tobytes() != sent[MANIFEST].numpy().tobytes():
                raise ValueError("its tensors are laid out differently from those it was sent")
            continue
        values, dtype, shape = values_of(key, array), sent[key].dtype, list(sent[key].shape)
        if list(values.shape) != shape or str(values.dtype) != dtype:
            raise ValueError(f"{key!r} should be {dtype}{shape}, it is {values.dtype}{list(values.shape)}")
        is_float = values.dtype.kind == "f" and values.size > 0
        # NaN fails every comparison, and the squares of larger values overflow.
        if is_float and not -MAX_VALUE <= float(values.min()) <= float(values.max()) <= MAX_VALUE:
            wrong = f"beyond {MAX_VALUE:g}" if np.isfinite(values).all() else "that are not finite"
            raise ValueError(f"{key!r} contains values {wrong}; its training diverged")
        arrays[key] = values
    if not arrays:
        raise ValueError("it contains no arrays")
    if is_packed(sent):
        parts = {part_of(key) for key in arrays}
        for key in sent:
            if key != MANIFEST and key not in arrays and part_of(key) in parts:
                raise ValueError(f"it contains {part_of(key)!r} without {key!r}; a part must be whole or left out")
    return arrays
