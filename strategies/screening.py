"""Screening: updates are compared with earlier ones and with those of other sites, to refuse replays and outliers."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord

from .update import Update
from .wire import json_record, part_of, read_json_record

MAX_UPDATES = 16  # earlier updates of a site that a new one is compared with
MAX_DISTANCES = 256  # distances stored for each part, so that a round's cost does not grow with the square of its sites
RECENT_ROUNDS = 3  # rounds before the current one whose distances also define what is usual


@dataclass(frozen=True)
class Trace:
    """The part of an update that is remembered: checksums of it and of the arrays sent, and each part's distance."""

    returned: int
    sent: int
    distances: dict[str, float]


class Memory:
    """Earlier updates of all sites, to recognise a replay or an outlier.

    A replay is bit-equal to one of the site's last 16 accepted updates although the site was sent different values
    then. A site whose training changes nothing and that is sent the same values is not a replay.

    With ``max_norm_ratio`` above 0, an update is an outlier if the Euclidean distance of one of its parts from the
    values sent (floats only) is more than that many times the median distance of the other sites. Updates are merged
    as they arrive, so the median cannot wait for the end of the round: it is taken part by part over the distances
    that were accepted so far in this round and in the three rounds before it. If there are none, or the median is 0,
    the update is accepted; nothing can be compared with the first site of a run.
    """

    def __init__(self, max_norm_ratio: float = 0.0) -> None:
        self.max_norm_ratio = max_norm_ratio
        self._checksums: dict[str, list[tuple[int, int]]] = {}  # site -> (returned, sent), newest last
        self._distances: dict[str, list[tuple[int, str, float]]] = {}  # part -> (round, site, distance), newest last
        self._round = 0
        self._global = ArrayRecord()
        self._global_checksums: dict[str, int] = {}

    def begin_round(self, server_round: int, arrays: ArrayRecord) -> None:
        """Start a round in which all sites are sent these arrays, except where they have arrays of their own."""
        self._round, self._global, self._global_checksums = server_round, arrays, {}

    def check(self, update: Update, sent: ArrayRecord) -> Trace:
        """Return the trace of an update; raise ``ValueError`` to refuse the update."""
        keys = sorted(update.arrays)
        returned = _combined(keys, (checksum(update.arrays[key]) for key in keys))
        sent_sum = _combined(keys, (self._checksum(key, sent[key]) for key in keys))
        for earlier_returned, earlier_sent in self._checksums.get(update.site, ()):
            if returned == earlier_returned and sent_sum != earlier_sent:
                raise ValueError("it repeats an update of an earlier round bit by bit, though it was sent other values")
        moved = distances(update.arrays, sent) if self.max_norm_ratio else {}
        for part, distance in moved.items():
            others = [
                earlier for server_round, site, earlier in self._distances.get(part, ())
                if site != update.site and server_round >= self._round - RECENT_ROUNDS
            ]  # fmt: skip
            usual = float(np.median(others)) if others else 0.0
            if usual and distance > self.max_norm_ratio * usual:
                raise ValueError(
                    f"its {part or 'model'} moved by {distance:.3g}, more than {self.max_norm_ratio:g} times "
                    f"the other sites' median of {usual:.3g}"
                )
        return Trace(returned, sent_sum, moved)

    def remember(self, site: str, trace: Trace) -> None:
        """Remember an update that was accepted."""
        checksums = [*self._checksums.get(site, ()), (trace.returned, trace.sent)]
        self._checksums[site] = checksums[-MAX_UPDATES:]
        for part, distance in trace.distances.items():
            recent = [*self._distances.get(part, ()), (self._round, site, distance)]
            self._distances[part] = recent[-MAX_DISTANCES:]

    def state(self) -> ArrayRecord:
        """Return the memory as a record, so that a resumed run refuses the same updates."""
        return json_record({"given": self._checksums, "distances": self._distances})

    def restore(self, state: ArrayRecord) -> None:
        """Restore what :meth:`state` returned."""
        content = read_json_record(state)
        self._checksums = {site: [(a, b) for a, b in pairs] for site, pairs in content["given"].items()}
        self._distances = {part: [(r, s, d) for r, s, d in rows] for part, rows in content["distances"].items()}

    def _checksum(self, key: str, array: Array) -> int:
        if array is not self._global.get(key):
            return checksum(array.numpy())
        if key not in self._global_checksums:  # a global array is read once, not once for each site
            self._global_checksums[key] = checksum(array.numpy())
        return self._global_checksums[key]


def checksum(values: np.ndarray) -> int:
    """Return the CRC-32 of an array's memory, at 2 GB/s; nothing is secret, and one pair of arrays in 4e9 collides."""
    return zlib.crc32(np.asarray(values, order="C"))  # type: ignore[arg-type]


def _combined(keys: Iterable[str], checksums: Iterable[int]) -> int:
    return zlib.crc32(repr(list(zip(keys, checksums, strict=True))).encode())


def distances(arrays: Mapping[str, np.ndarray], sent: ArrayRecord, chunk: int = 1 << 15) -> dict[str, float]:
    """Return each part's Euclidean distance from the values sent, over its floats, in chunks that fit the cache."""
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
