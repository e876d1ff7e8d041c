"""The sites of a federation: a card for each, requested by a ``query.describe`` message when a node joins."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from logging import getLogger
from typing import Any

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from .wire import record_in

log = getLogger("flwr")
KEY = re.compile(r"[\w.-]{1,64}")  # a site's key, which also names entries of checkpoints
DESCRIBE_SECONDS = 60.0  # timeout for a node's card; before the first round, doubled each time it does not reply
MAX_SAMPLES = 1e15  # per site; a larger count is a mistake, and its products with weights would overflow
MAX_DOUBLINGS = 10  # doublings of the pause before a silent node is asked again


class FederationError(RuntimeError):
    """The federation cannot continue: too few sites, a missed quorum, or a failure that the policy forbids."""


@dataclass(frozen=True)
class SiteCard:
    """A site's description of itself: a key that survives restarts, tasks and counts; never images or identifiers."""

    key: str
    node_id: int
    tasks: frozenset[str] | None = None  # None: the app does not describe itself, and trains every part
    counts: dict[str, float] = field(default_factory=dict)  # "train.TASK", "validation.TASK" -> samples
    about: dict[str, object] = field(default_factory=dict)  # modality and whatever else the app reports
    inputs: frozenset[str] | None = None  # kinds of its images (:func:`.wire.input_of`); None: it gets every input part

    def train_count(self, task: str) -> float:
        """Return how many labelled training samples of a task the site reported."""
        return self.counts.get(f"train.{task}", 0.0)


def read_card(reply: Message) -> SiteCard:
    """Read a site's card from its reply.

    The card of an app without a ``query.describe`` function has the node's id as key, all tasks and all inputs.

    Raises:
        ValueError: with the reason, if the site cannot take part.
    """
    node_id = reply.metadata.src_node_id
    if reply.has_error():
        reason = reply.error.reason or f"error code {reply.error.code}"
        if "registered with name" in reason:  # Flower's message for a missing function
            return SiteCard(key=f"node-{node_id}", node_id=node_id)
        raise ValueError(reason)
    if failure := record_in(reply.content, "failure", ConfigRecord):
        raise ValueError("\n".join(str(failure.get(name, "")) for name in ("reason", "traceback")))
    about: dict[str, Any] = dict(record_in(reply.content, "site", ConfigRecord) or {})
    key = str(about.pop("key", ""))
    if not KEY.fullmatch(key):
        raise ValueError(f"expected a key of letters, digits, '.', '_' and '-' in its record 'site', got {key!r}")
    tasks, inputs = (_read_names(about.pop(name, None), name) for name in ("tasks", "inputs"))
    nodes = about.get("num-partitions", 1)
    if not isinstance(nodes, int) or nodes < 1:
        raise ValueError(f"expected num-partitions to be an integer of 1 or more, got {nodes!r}")
    record = record_in(reply.content, "counts", MetricRecord) or MetricRecord()
    counts = {name: value for name, value in record.items() if isinstance(value, (int, float))}
    for name, value in counts.items():
        if not 0 <= value <= MAX_SAMPLES:
            raise ValueError(f"expected {name} to be a number of samples up to {MAX_SAMPLES:g}, got {value!r}")
    return SiteCard(key, node_id, tasks, {name: float(n) for name, n in counts.items()}, about, inputs)


def _read_names(value: object, what: str) -> frozenset[str] | None:
    if value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise ValueError(f"expected {what} to be a list of names, got {value!r}")
    return None if value is None else frozenset(value)


class Roster:
    """The sites that are connected, in the order of their keys.

    Node ids and arrival order change from run to run, keys do not; everything that must be reproducible uses keys.
    """

    def __init__(self, min_sites: int = 1, join_timeout: float = 600.0) -> None:
        self.min_sites = min_sites
        self.join_timeout = join_timeout
        self.refused: dict[int, str] = {}  # node id -> why it cannot take part
        self._silent: dict[int, tuple[int, float]] = {}  # node id -> how often it did not reply, and when to ask again
        self._cards: dict[int, SiteCard] = {}
        self._complete = False  # min_sites have joined once; from then on only the quorum counts

    def refresh(self, grid: Grid) -> list[SiteCard]:
        """Ask new nodes for their cards, forget nodes that left, and return the sites in the order of their keys.

        The first call waits until ``min_sites`` have joined; in a simulation, whose nodes all report how many there
        will be, until all have. A node that does not reply is asked again after pauses that double.

        Raises:
            FederationError: after ``join_timeout`` seconds, or if no site can take part.
        """
        deadline = time.monotonic() + self.join_timeout
        while True:
            node_ids = set(grid.get_node_ids())
            left = (self._cards.keys() | self.refused.keys()) - node_ids
            for node in left & self._cards.keys():
                log.warning("Site %s left the federation.", self._cards.pop(node).key)
            if left:  # a node that was refused for its key may be a site that came back before its old node was gone
                self.refused.clear()
            self._silent = {node: silence for node, silence in self._silent.items() if node in node_ids}
            self._describe(grid, sorted(node_ids - self._cards.keys() - self.refused.keys()), deadline)
            sites = self.sites
            # The minimum, because one site's number alone must not keep the others waiting.
            simulated = min([int(str(site.about.get("num-partitions", 1))) for site in sites], default=1)
            expected = max(self.min_sites, simulated - len(self.refused))
            if self._complete or len(sites) >= expected:
                self._complete = True
                return sites
            if not sites and len(self.refused) >= self.min_sites:
                reason = next(iter(self.refused.values())).partition("\n")[0]
                raise FederationError(f"No site can take part. The first reason is: {reason}")
            if time.monotonic() > deadline:
                joined = ", ".join(site.key for site in sites) or "none"
                setting = "min-sites" if expected == self.min_sites else "the num-partitions that the sites report"
                raise FederationError(
                    f"Expected at least {expected} sites within {self.join_timeout:g} s, found {joined}; "
                    f"start the missing sites, or lower {setting}."
                )
            time.sleep(0.05)

    @property
    def sites(self) -> list[SiteCard]:
        """Return the sites in the order of their keys."""
        return sorted(self._cards.values(), key=lambda card: card.key)

    def tasks(self) -> frozenset[str] | None:
        """Return the tasks of all sites, or ``None`` if a site did not report its own."""
        tasks = [site.tasks for site in self._cards.values()]
        return None if None in tasks else frozenset().union(*(own for own in tasks if own is not None))

    def by_node(self, node_id: int) -> SiteCard | None:
        """Return the card of a node, or ``None`` if it has none."""
        return self._cards.get(node_id)

    def by_key(self, key: str) -> SiteCard:
        """Return the card of a site."""
        return next(card for card in self._cards.values() if card.key == key)

    def _describe(self, grid: Grid, node_ids: Sequence[int], deadline: float) -> None:
        now, timeout = time.monotonic(), DESCRIBE_SECONDS
        if self._complete:  # other sites are waiting for the round to begin
            node_ids = [node for node in node_ids if self._silent.get(node, (0, now))[1] <= now]
        else:  # a site may take long to read its data for the first time
            times = max([self._silent.get(node, (0, now))[0] for node in node_ids], default=0)
            timeout = min(DESCRIBE_SECONDS * 2**times, max(deadline - now, 1.0))
        if not node_ids:
            return
        content = RecordDict({"config": ConfigRecord()})
        messages = [Message(content, dst_node_id=node, message_type="query.describe") for node in node_ids]
        nodes = {card.key: card.node_id for card in self._cards.values()}
        replies = sorted(grid.send_and_receive(messages, timeout=timeout), key=lambda m: m.metadata.src_node_id)
        now = time.monotonic()
        for node in set(node_ids) - {reply.metadata.src_node_id for reply in replies}:
            times = min(self._silent.get(node, (0, now))[0] + 1, MAX_DOUBLINGS)
            self._silent[node] = times, now + DESCRIBE_SECONDS * 2**times
        for reply in replies:
            node = reply.metadata.src_node_id
            try:
                card = read_card(reply)
                if (key := card.key) in nodes:
                    raise ValueError(f"it calls itself {key}, as node {nodes[key]} does; give each site its own key")
            except ValueError as error:
                self.refused[node] = str(error)
                log.error("Node %s cannot take part: %s", node, error)
                continue
            nodes[key] = node
            self._cards[node] = card
