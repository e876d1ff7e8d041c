"""What may enter a merge: an update is refused alone, by name, and the round goes on without it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord

from .sites import SiteCard
from .wire import MANIFEST, record_in


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


def read_update(site: SiteCard, reply: Message, sent: ArrayRecord) -> Update:
    """Read and check an update against the arrays that were sent to its site; raise ``ValueError`` to refuse it."""
    trained, metrics = (
        record_in(reply.content, "arrays", ArrayRecord),
        record_in(reply.content, "metrics", MetricRecord),
    )
    if trained is None or metrics is None:
        raise ValueError("expected records 'arrays' and 'metrics' in the reply, got " + ", ".join(reply.content))
    counts = {
        name.removeprefix("num-examples."): _count(name, value)
        for name, value in metrics.items()
        if name.startswith("num-examples.")
    }
    num_examples = _count("num-examples", metrics.get("num-examples", 1))
    if site.counts:  # it said on joining how many it has, and a count is its weight in the merge
        for task, count in counts.items():
            if count > site.train_count(task):
                raise ValueError(f"it counts {count:g} samples of {task}, on joining it had {site.train_count(task):g}")
        held = sum(count for name, count in site.counts.items() if name.startswith("train."))
        if num_examples > held:
            raise ValueError(f"it counts {num_examples:g} samples, on joining it had {held:g}")
    arrays = {}
    for key, array in trained.items():
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
    return Update(site.key, arrays, num_examples, counts)


def _count(name: str, value: object) -> float:
    if not isinstance(value, (int, float)) or not np.isfinite(value) or value < 0:
        raise ValueError(f"{name} should be a number of samples, it is {value!r}")
    return float(value)


class Sums:
    """Metrics of several sites, added number by number and list by list.

    A site's record goes in whole or is refused: one with another version of a metric must not end everybody's run.
    """

    def __init__(self) -> None:
        self.total: dict[str, int | float | list[int] | list[float]] = {}

    def add(self, record: MetricRecord) -> None:
        """Add a record; raise ``ValueError`` if its values are not finite or do not match what is there."""
        for name, value in record.items():
            size = len(value) if isinstance(value, list) else None
            if not np.isfinite(value).all():
                raise ValueError(f"its metric {name} is not finite")
            if name in self.total:
                own = self.total[name]
                if size != (len(own) if isinstance(own, list) else None):
                    raise ValueError(f"its metric {name} has another form than that of the sites before it")
        for name, value in record.items():
            before = self.total.get(name)
            if isinstance(value, list) and isinstance(before, list):
                self.total[name] = [a + b for a, b in zip(before, value, strict=True)]
            elif isinstance(value, list):
                self.total[name] = list(value)
            else:
                self.total[name] = value + (before if isinstance(before, (int, float)) else 0)
