"""What may enter a merge: an update is refused alone, by name, and the round goes on without it."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord

from .precision import Precision, read_precision
from .sites import MAX_SAMPLES, SiteCard
from .wire import MANIFEST, is_packed, json_record, part_of, read_json_record, record_in, values_of

REMEMBERED = 16  # updates of a site that a later one is held against
RECENT = 3  # rounds, beside the current one, whose distances say what is usual
MOST = 256  # distances kept a part, so that a round does not cost the square of its sites
LARGEST = 1e10  # of a value: a variance of 16-bit pixels is 1e9; squares of more, and their products, are no floats


@dataclass(frozen=True)
class Failure:
    """A site that gave no usable answer: in which round, doing what, and why."""

    site: str
    server_round: int
    action: str
    reason: str
    traceback: str = ""


@dataclass(frozen=True)
class Update:
    """One site's answer to a training message.

    ``arrays`` maps a key of the record that was sent to the trained values; ``counts`` maps a task to the labelled
    samples it was trained on; ``num_examples`` counts images, whatever labels they carry; ``precision`` maps a key of
    ``arrays`` to how sure the site is of those values, where its app tells that; ``pulled`` says that it trained under
    the pull that the strategy sent it.
    """

    site: str
    arrays: dict[str, np.ndarray]
    num_examples: float
    counts: dict[str, float]
    precision: dict[str, Precision] = field(default_factory=dict)
    pulled: bool = False


def read_failure(site: str, server_round: int, action: str, reply: Message | None) -> Failure | None:
    """Return why a reply cannot be used, or ``None`` if it can."""
    if reply is None:
        return Failure(site, server_round, action, "no answer in time")
    if reply.has_error():
        reason = (reply.error.reason or f"error code {reply.error.code}").strip()
        head, _, traceback = reason.partition("\n")
        return Failure(site, server_round, action, head, traceback)
    if told := record_in(reply.content, "failure", ConfigRecord):
        return Failure(site, server_round, action, str(told.get("reason", "")), str(told.get("traceback", "")))
    return None


def read_update(site: SiteCard, reply: Message, sent: ArrayRecord) -> Update:
    """Read and check an update against the arrays that were sent to its site; raise ``ValueError`` to refuse it.

    A part may be left out; one that is there must be whole.
    """
    trained, metrics = (
        record_in(reply.content, "arrays", ArrayRecord),
        record_in(reply.content, "metrics", MetricRecord),
    )
    if trained is None or metrics is None:
        raise ValueError("expected records 'arrays' and 'metrics' in the reply, got " + ", ".join(reply.content))
    num_examples, counts = _read_counts(site, metrics)
    arrays = _read_arrays(trained, sent)
    told = record_in(reply.content, "precision", ArrayRecord)
    precision = read_precision(told, arrays) if told is not None else {}
    return Update(site.key, arrays, num_examples, counts, precision, bool(metrics.get("pulled", 0)))


def _read_counts(site: SiteCard, metrics: MetricRecord) -> tuple[float, dict[str, float]]:
    counts = {
        name.removeprefix("num-examples."): _count(name, value)
        for name, value in metrics.items()
        if name.startswith("num-examples.")
    }
    num_examples = _count("num-examples", metrics.get("num-examples", 1))
    if not num_examples:
        raise ValueError("it was trained on no samples: its num-examples is 0")
    if site.counts:  # it said on joining how many it has, and a count is its weight in the merge
        for task, count in counts.items():
            if count > site.train_count(task):
                raise ValueError(f"it counts {count:g} samples of {task}, on joining it had {site.train_count(task):g}")
        held = sum(count for name, count in site.counts.items() if name.startswith("train."))
        if num_examples > held:
            raise ValueError(f"it counts {num_examples:g} samples, on joining it had {held:g}")
    return num_examples, counts


def _count(name: str, value: object) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value <= MAX_SAMPLES:
        raise ValueError(f"{name} should be a number of samples up to {MAX_SAMPLES:g}, it is {value!r}")
    return float(value)


def _read_arrays(trained: ArrayRecord, sent: ArrayRecord) -> dict[str, np.ndarray]:
    arrays = {}
    for key, array in trained.items():
        if key not in sent:
            raise ValueError(f"it holds {key!r}, which it was not sent")
        if key == MANIFEST:
            if values_of(key, array).tobytes() != sent[MANIFEST].numpy().tobytes():
                raise ValueError("its tensors are laid out differently from those it was sent")
            continue
        values, reference = values_of(key, array), sent[key]
        if values.shape != tuple(reference.shape) or str(values.dtype) != reference.dtype:
            raise ValueError(
                f"{key!r} should be {reference.dtype}{list(reference.shape)}, it is {values.dtype}{list(values.shape)}"
            )
        if not is_sound(values):
            wrong = f"beyond {LARGEST:g}" if np.isfinite(values).all() else "that are not finite"
            raise ValueError(f"{key!r} holds values {wrong}; its training diverged")
        arrays[key] = values
    if not arrays:
        raise ValueError("it holds no arrays")
    if is_packed(sent):
        begun = {part_of(key) for key in arrays}
        for key in sent:
            if key != MANIFEST and key not in arrays and part_of(key) in begun:
                raise ValueError(f"it holds {part_of(key)!r} without {key!r}; a part must be whole or left out")
    return arrays


def is_sound(values: np.ndarray) -> bool:
    """Say whether all floats of an array are finite, and none is so large that squares of it overflow."""
    if values.dtype.kind != "f" or not values.size:
        return True
    return float(values.min()) >= -LARGEST and float(values.max()) <= LARGEST  # NaN fails either


@dataclass(frozen=True)
class Trace:
    """What an update leaves in the memory: checksums of it and of what was sent, and how far each part moved."""

    given: int
    sent: int
    distances: dict[str, float]


class Memory:
    """What is known of earlier updates, so that a replay or an outlier is seen.

    A replay is bit-equal to one of the site's last 16 accepted updates although the site was sent other values than
    then. A site whose training changes nothing, sent the same, is none.

    With ``max_norm_ratio`` above 0, an update is an outlier if a part of it lies further (Euclidean distance, floats
    only) from what was sent than that many times the median of the other sites' distances. Updates are merged as they
    arrive, so that median cannot wait for the round's end: it is that of the distances accepted so far in this round
    and in the three before it, part by part. Where there is none, or it is 0, the update is accepted: the first site
    of a run is judged by nobody.
    """

    def __init__(self, max_norm_ratio: float = 0.0) -> None:
        self.max_norm_ratio = max_norm_ratio
        self._given: dict[str, list[tuple[int, int]]] = {}  # site -> (checksum given, checksum sent), newest last
        self._distances: dict[str, list[tuple[int, str, float]]] = {}  # part -> (round, site, distance), newest last
        self._round = 0
        self._shared: dict[int, tuple[Array, int | None]] = {}  # id of a global array -> itself, its checksum

    def begin_round(self, server_round: int, arrays: ArrayRecord) -> None:
        """Start a round whose sites are sent, if nothing of their own, the given arrays."""
        self._round = server_round
        self._shared = {id(array): (array, None) for array in arrays.values()}

    def check(self, update: Update, sent: ArrayRecord) -> Trace:
        """Return what to remember of an update; raise ``ValueError`` to refuse it."""
        keys = sorted(update.arrays)
        given = _combined(keys, (checksum(update.arrays[key]) for key in keys))
        was_sent = _combined(keys, (self._checksum(sent[key]) for key in keys))
        for earlier_given, earlier_sent in self._given.get(update.site, ()):
            if given == earlier_given and was_sent != earlier_sent:
                raise ValueError("it repeats an update of an earlier round bit by bit, though it was sent other values")
        moved = distances(update.arrays, sent) if self.max_norm_ratio else {}
        for part, distance in moved.items():
            usual = self._usual(part, update.site)
            if usual and distance > self.max_norm_ratio * usual:
                raise ValueError(
                    f"its {part or 'model'} moved by {distance:.3g}, more than {self.max_norm_ratio:g} times "
                    f"the other sites' median of {usual:.3g}"
                )
        return Trace(given, was_sent, moved)

    def keep(self, site: str, trace: Trace) -> None:
        """Remember an update that was accepted."""
        self._given[site] = [*self._given.get(site, ()), (trace.given, trace.sent)][-REMEMBERED:]
        for part, distance in trace.distances.items():
            self._distances[part] = [*self._distances.get(part, ()), (self._round, site, distance)][-MOST:]

    def state(self) -> ArrayRecord:
        """Return the memory, so that a resumed run refuses what the run itself would have."""
        return json_record({"given": self._given, "distances": self._distances})

    def restore(self, state: ArrayRecord) -> None:
        """Take back what :meth:`state` gave."""
        content = read_json_record(state)
        self._given = {site: [(a, b) for a, b in pairs] for site, pairs in content["given"].items()}
        self._distances = {part: [(r, s, d) for r, s, d in told] for part, told in content["distances"].items()}

    def _checksum(self, array: Array) -> int:
        known = self._shared.get(id(array))
        if known is not None and known[1] is not None:
            return known[1]
        found = checksum(array.numpy())
        if known is not None:  # read once, not once a site
            self._shared[id(array)] = array, found
        return found

    def _usual(self, part: str, site: str) -> float:
        others = [
            distance
            for server_round, other, distance in self._distances.get(part, ())
            if other != site and server_round >= self._round - RECENT
        ]
        return float(np.median(others)) if others else 0.0


def checksum(values: np.ndarray) -> int:
    """Return the CRC-32 of an array's memory: 2 GB/s, and no secret to keep; one pair in 4e9 is taken for equal."""
    return zlib.crc32(np.asarray(values, order="C"))  # type: ignore[arg-type]


def _combined(keys: Iterable[str], checksums: Iterable[int]) -> int:
    return zlib.crc32(repr(list(zip(keys, checksums, strict=True))).encode())


def distances(arrays: Mapping[str, np.ndarray], sent: ArrayRecord, chunk: int = 1 << 15) -> dict[str, float]:
    """Return each part's Euclidean distance from what was sent, over its floats, in pieces that stay in cache."""
    squares: dict[str, float] = {}
    for key, values in arrays.items():
        if values.dtype.kind != "f":
            continue
        own, start = values.reshape(-1), sent[key].numpy().reshape(-1)
        total = squares.get(part_of(key), 0.0)
        for i in range(0, own.size, chunk):
            moved = np.subtract(own[i : i + chunk], start[i : i + chunk], dtype=np.float64)
            total += float(moved @ moved)
        squares[part_of(key)] = total
    return {part: total**0.5 for part, total in squares.items()}


class MetricSums:
    """Metrics of several sites, added number by number and list by list when all are there.

    A record goes in whole or not at all. Which form a metric has, number or list of so many, most sites decide, and
    of as many the first by key: one with another version must not keep the others out.
    """

    def __init__(self) -> None:
        self.records: dict[str, MetricRecord] = {}  # by site

    def add(self, site: str, record: MetricRecord) -> None:
        """Take in a site's record; raise ``ValueError`` if its values are not finite."""
        for name, value in record.items():
            if not np.isfinite(value).all():
                raise ValueError(f"its metric {name} is not finite")
        self.records[site] = record

    def leave_out(self) -> dict[str, str]:
        """Drop the records of which a metric has another form than most; return why, by site."""
        forms: dict[str, Counter[int]] = {}
        for record in self.records.values():
            for name, value in record.items():
                forms.setdefault(name, Counter())[_form(value)] += 1
        usual = {name: found.most_common(1)[0][0] for name, found in forms.items()}
        left = {
            site: f"its metric {name} has another form than that of most sites"
            for site, record in self.records.items()
            for name, value in record.items()
            if _form(value) != usual[name]
        }
        self.records = {site: record for site, record in self.records.items() if site not in left}
        return left

    def total(self) -> dict[str, int | float | list[int] | list[float]]:
        """Return the sums, added in the order in which the records came."""
        total: dict[str, int | float | list[int] | list[float]] = {}
        for record in self.records.values():
            for name, value in record.items():
                before = total.get(name)
                if isinstance(value, list) and isinstance(before, list):
                    total[name] = [a + b for a, b in zip(before, value, strict=True)]
                elif isinstance(value, list):
                    total[name] = list(value)
                else:
                    total[name] = value + (before if isinstance(before, (int, float)) else 0)
        return total


def _form(value: object) -> int:
    return len(value) if isinstance(value, list) else -1
